"""The number of threads that code is made for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_MEANT: list[int] = []


def thread_count() -> int:
    """Return the threads of the process that will run the code: this one's, unless said."""
    return _MEANT[-1] if _MEANT else torch.get_num_threads()


@contextmanager
def threads_meant(number: int) -> Iterator[None]:
    """Make code for so many threads inside the block, by one alone."""
    import torch._inductor.config as config

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    _MEANT.append(number)
    try:
        with config.patch({"cpp.threads": number}):
            yield
    finally:
        _MEANT.pop()
        torch.set_num_threads(before)
