"""Torch's random state, put back after a block, and the lock for what a process has once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Torch's generators and Pyro's parameter store, handlers and flags are one for all threads: whoever
# changes them holds this. Fits in several threads are made one after another, each as if alone.
ALONE = threading.RLock()


@contextmanager
def forked(seed: int | None = None) -> Iterator[None]:
    """Draw freely inside the block; afterwards torch's generators stand as they stood before.

    Those are the CPU's and those of all CUDA devices, once the process uses any. Another thread's
    block waits for the end of this one: the generators are the process's.

    Args:
        seed: what the block starts from; None goes on from the present state.
    """
    cuda = torch.cuda.is_initialized()
    devices = range(torch.cuda.device_count()) if cuda else []
    with ALONE, torch.random.fork_rng(devices):
        if seed is not None:  # torch.manual_seed would also set a CUDA that starts up later
            (torch.manual_seed if cuda else torch.default_generator.manual_seed)(seed)
        yield
