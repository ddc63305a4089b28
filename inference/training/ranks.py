"""The processes that make one fit together: who they are, and what they tell each other.

Every rank makes the same steps in the same order, each on its share of the rows and with noise of
its own; gradients are added up inside the step. Whatever depends on a clock or a signal is agreed
upon between two steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PULSE = 0.5  # seconds between two agreements, about
LOST = ("gloo", "nccl", "connection", "peer", "socket", "backend")  # words of a lost connection


@dataclass(frozen=True)
class Ranks:
    """One of several processes that make a fit together.

    Attributes:
        rank, size: which of how many; rank 0 writes and shows.
        group: of torch.distributed.
        device: that the group's messages lie on.
    """

    rank: int
    size: int
    group: Any
    device: torch.device

    @property
    def first(self) -> bool:
        """True for the one that writes."""
        return self.rank == 0

    def sums(self, tensors: list[Tensor], share: float) -> list[Tensor]:
        """Sums over ranks of so large a share of each: one message, which a trace can hold."""
        ops = torch.ops._c10d_functional
        flat = torch.cat([t.reshape(-1) for t in tensors]) * share
        flat = ops.wait_tensor(ops.all_reduce(flat, "sum", self.group.group_name))
        parts = flat.split([t.numel() for t in tensors])
        return [p.reshape(t.shape).to(t.dtype) for p, t in zip(parts, tensors)]

    def most(self, *numbers: float) -> list[float]:
        """The largest of each number, over ranks."""
        tensor = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, self.group)
        return tensor.tolist()

    def from_first(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of rank 0 into these tensors."""
        source = dist.get_global_rank(self.group, 0)
        for t in tensors:
            whole = t.detach().contiguous()
            dist.broadcast(whole, source, self.group)
            if whole.data_ptr() != t.data_ptr():
                t.copy_(whole)

    def gathered(self, value: Any) -> list[Any]:
        """Everybody's value, in the order of ranks."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, self.group)
        return found

    def part(self, rows: int) -> slice:
        """This rank's share of some rows."""
        return slice(self.rank * rows // self.size, (self.rank + 1) * rows // self.size)

    def seed(self, seed: int, step: int) -> int:
        """The seed of this rank's noise, for one without a state of its own."""
        return (seed + 0x9E3779B97F4A7C15 * self.rank + 0xBF58476D1CE4E5B9 * step) % 2**63


class Pulse:
    """Agree between steps, on all ranks alike, to end a loop or to write its state.

    Args:
        come: signals so far, in this process.
        due: whether it is time for a state, in this process.

    Attributes:
        ended: the signals that end the loop.
    """

    def __init__(self, ranks: Ranks | None, come: list[int], due: Callable[[], bool]):
        self.ranks, self.come, self.due = ranks, come, due
        self.ended = come if ranks is None else []
        self._next, self._begin = 1, time.monotonic()

    def save_due(self, made: int) -> bool:
        """Agree after so many steps; between two agreements nothing is due."""
        if self.ranks is None:
            return self.due()
        if made < self._next:
            return False
        each = (time.monotonic() - self._begin) / made
        signal, due, each = self.ranks.most(max(self.come, default=0), self.due(), each)
        self._next = made + max(1, int(PULSE / max(each, 1e-9)))
        if signal and not self.ended:
            self.ended.append(int(signal))
        return bool(due)


def ranks_of(group: Any) -> Ranks | None:
    """The ranks of a process group; None for a process that works alone.

    Args:
        group: a `torch.distributed.ProcessGroup`; "auto" for the default one where there is one;
            False (or None) for none.

    Raises:
        TypeError: it is no group.
    """
    if group is None or group is False or not dist.is_available():
        return None
    if isinstance(group, str) and group == "auto":
        group = dist.group.WORLD if dist.is_initialized() else None
        if group is None:
            return None
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            "group: expected a torch.distributed.ProcessGroup, 'auto' or False, got "
            f"{type(group).__name__}."
        )
    size = dist.get_world_size(group)
    if size < 2:
        return None
    nccl = "nccl" in str(dist.get_backend(group))
    device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
    return Ranks(dist.get_rank(group), size, group, device)


def is_lost(error: BaseException) -> bool:
    """True where an error says that another rank can no longer be reached."""
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in LOST)
