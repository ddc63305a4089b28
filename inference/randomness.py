"""Torch's random state, put back after a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def forked(seed: int | None = None) -> Iterator[None]:
    """Draw freely inside the block; afterwards torch's generators stand as they stood before.

    Those are the CPU's and those of all CUDA devices, once the process uses any.

    Args:
        seed: what the block starts from; None goes on from the present state.
    """
    cuda = torch.cuda.is_initialized()
    with torch.random.fork_rng(range(torch.cuda.device_count()) if cuda else []):
        if seed is not None:  # torch.manual_seed would also set a CUDA that starts up later
            (torch.manual_seed if cuda else torch.default_generator.manual_seed)(seed)
        yield
