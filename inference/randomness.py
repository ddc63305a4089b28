"""Torch's random numbers: their state, their use under `vmap`, and the lock on what is global."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _get_current_dispatch_mode

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


def is_transformed() -> bool:
    """Tell whether values cannot be compared here: inside a transform of torch's, or a trace."""
    stack = torch._C._functorch.peek_interpreter_stack()
    return stack is not None or _get_current_dispatch_mode() is not None


class DrawnAnew(TorchFunctionMode):
    """Rewrite random numbers as `vmap` requires: out of place, and simplexes from gammas."""

    def __enter__(self) -> Any:
        self._simplex = patch(
            "torch.distributions.dirichlet._Dirichlet", SimpleNamespace(apply=_simplex)
        )
        self._simplex.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._simplex.stop()
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.data.__get__:  # type: ignore[attr-defined]  # Pyro's enumeration looks at shapes through it
            return args[0].detach()
        if func is Tensor.normal_ and len(args) == 1 and not kwargs:
            return torch.randn_like(args[0])
        if func is Tensor.uniform_ and not kwargs:
            low, high = args[1:] or (0.0, 1.0)
            return low + (high - low) * torch.rand_like(args[0])
        if func is Tensor.exponential_ and len(args) == 1:
            return -torch.log1p(-torch.rand_like(args[0]))
        if func is Tensor.cauchy_ and len(args) == 1:
            return torch.tan(math.pi * (torch.rand_like(args[0]) - 0.5))
        return func(*args, **kwargs)


def _simplex(concentration: Tensor) -> Tensor:
    """A draw from a Dirichlet distribution, (..., C), whose gradients are those of the gammas."""
    tiny = torch.finfo(concentration.dtype).tiny
    gamma = torch._standard_gamma(concentration).clamp(min=tiny)
    return gamma / gamma.sum(-1, keepdim=True)
