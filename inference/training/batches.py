"""The arguments of a fit on their device, and mini-batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..pairs import gate
from ..pairs.arguments import (
    check_values,
    checked_arguments,
    has_rows,
    moved,
    take_rows,
    takes,
)
from .ranks import Ranks

LARGEST = 2**26  # particles times numbers of data in one pass


class Batches:
    """Mini-batches of a fixed size, every row once per epoch, in an order that follows the seed.

    Batches run on over the end of an epoch, so that all have one shape.

    Args:
        args: the pair's arguments; `held_out`: those that validation looks at.
        batch_size: rows, None for all; `seed`: of the order.
        ranks: the processes that share the rows of each batch of a given size, in one order.

    Raises:
        ValueError: the batch is larger than the data, or the data holds NaN.
    """

    def __init__(
        self,
        args: tuple,
        batch_size: int | None,
        seed: int,
        held_out: Any = None,
        ranks: Ranks | None = None,
    ):
        self.args, self.ranks = args, ranks
        self.held_out = held_out if isinstance(held_out, tuple) else (held_out,)
        tensors = [a for a in args if torch.is_tensor(a)]
        check_values(args)
        self.size = len(tensors[0]) if tensors and tensors[0].dim() else None
        if batch_size is not None:
            if self.size is None:
                raise ValueError("batch_size: the data has no tensor with rows to take a batch of.")
            if not 1 <= batch_size <= self.size:
                raise ValueError(
                    f"batch_size: expected 1 .. {self.size} (the rows of the data), "
                    f"got {batch_size}."
                )
            if ranks is not None and batch_size < ranks.size:
                raise ValueError(
                    f"batch_size: expected at least one row for each of {ranks.size} processes, "
                    f"got {batch_size}."
                )
        self.whole = batch_size is None or (batch_size == self.size and ranks is None)
        self.batch_size = self.size if self.whole else batch_size
        self._order = torch.Generator().manual_seed(seed)
        self._where = next((a.device for a in args if has_rows(a, self.size)), torch.device("cpu"))
        self._queue = torch.empty(0, dtype=torch.long, device=self._where)

    def example(self, rows: int | None = None) -> tuple:
        """The first rows, in order: a batch, or as many as asked for."""
        if self.whole and rows is None:
            return self.args
        n = rows or self.batch_size
        return take_rows(self.args, slice(n), self.size)

    def next(self, repeats: int = 1) -> tuple[tuple, bool]:
        """A batch, and whether it is shared by all repeats (else it has a leading axis)."""
        if self.whole:
            return self.args, True
        assert self.batch_size is not None and self.size is not None
        index = self.upcoming(repeats)
        self._queue = self._queue[self.batch_size * repeats :]
        rows = len(index) // repeats
        shape = (repeats, rows) if repeats > 1 else (rows,)

        def take(a: Any) -> Any:
            if has_rows(a, self.size):
                return a.index_select(0, index).reshape(*shape, *a.shape[1:])
            return a.expand(repeats, *a.shape) if repeats > 1 and torch.is_tensor(a) else a

        return tuple(take(a) for a in self.args), False

    def upcoming(self, repeats: int = 1) -> Tensor:
        """The rows of the next batches, (repeats B,), of those this rank's; the order stays."""
        assert self.size is not None and self.batch_size is not None
        if self.whole:
            return torch.arange(self.size)
        need = self.batch_size * repeats
        while len(self._queue) < need:
            order = torch.randperm(self.size, generator=self._order)  # one order on all devices
            self._queue = torch.cat([self._queue, order.to(self._where)])
        index = self._queue[:need]
        if self.ranks is None:
            return index
        return index.view(repeats, -1)[:, self.ranks.part(self.batch_size)].reshape(-1)

    @property
    def share(self) -> float:
        """This rank's part of each batch; where all take all, each is as good as another."""
        if self.ranks is None:
            return 1.0
        if self.whole or not self.batch_size:
            return 1 / self.ranks.size
        part = self.ranks.part(self.batch_size)
        return (part.stop - part.start) / self.batch_size

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Of the data, and of what is held out."""
        return {"data": fingerprint(self.args), "valid": fingerprint(self.held_out)}

    def state(self) -> dict[str, Any]:
        """Return the state of the order, from which `restore` goes on, and of what it is."""
        return {
            "order": self._order.get_state().clone(),
            "queue": self._queue.cpu().clone(),
            "rows": self.size or 0,
            "batch_size": self.batch_size,
            "data": self.fingerprints,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            ValueError: it was taken from other data, or in batches of another size.
        """
        anew = "or begin anew: fit(run.model, run.guide, data)."
        if state["rows"] != (self.size or 0):
            raise ValueError(
                f"resume: the run was fitted to {state['rows']:,} rows, the data has "
                f"{self.size or 0:,}. Give the same data, {anew}"
            )
        for name, values in state["data"].items():
            if values != self.fingerprints[name]:
                raise ValueError(
                    f"resume: {name}: expected the values that the run was fitted with "
                    f"(fingerprint {values:.8}), got others ({self.fingerprints[name]:.8}). "
                    f"Give the same data, {anew}"
                )
        if state["batch_size"] != self.batch_size:
            raise ValueError(
                f"batch_size: the run goes on with batches of {state['batch_size']}, got "
                f"{self.batch_size}. Leave batch_size= out, {anew}"
            )
        self._order.set_state(state["order"])
        self._queue = state["queue"].to(self._where)


def fingerprint(args: Iterable[Any]) -> str:
    """The hash of the tensors among some arguments: types, shapes and values."""
    digest = hashlib.sha256()
    for a in args:
        if torch.is_tensor(a):
            digest.update(f"{a.dtype}{tuple(a.shape)}".encode())
            values = a.detach().cpu().contiguous().reshape(-1)
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def chunk_rows(batches: Batches, particles: int, chunk: int | None) -> int | None:
    """Most rows that go through the pair at once; None for whole batches."""
    rows = batches.batch_size
    if rows is None:
        return None
    if chunk is None:
        width = next(a for a in batches.args if torch.is_tensor(a))[0].numel()
        chunk = max(1, LARGEST // max(1, width * particles))
    return chunk if chunk < rows else None


def arguments(
    model: Callable, guide: Any, data: Any, valid: Any, device: torch.device
) -> tuple[Callable, Callable, Any, tuple, tuple | None]:
    """Model, guide and data of `fit(pair, data)` or `fit(model, guide, data)`, and the arguments.

    Returns:
        The three, the pair's arguments on a device, and the held-out ones if any.

    Raises:
        TypeError: there is no data, or it is not what the model takes.
    """
    if data is None:
        data = guide
        model, guide, rest, _ = gate.halves(model, (guide,), "fit")
        if data is None or not rest:
            raise TypeError("fit: no data was given: fit(pair, data) or fit(model, guide, data).")
    if valid is not None:
        valid = checked_arguments(model, valid, "valid")
    if hasattr(data, "train"):
        labels = takes("y", model)
        if labels and data.train_labels is None:
            raise ValueError(f"data: the model needs labels y, and {data.name!r} has none.")
        args: tuple = (data.train, data.train_labels)[: 1 + labels]
        if valid is None and len(data.valid):
            valid = (data.valid, data.valid_labels)[: 1 + labels]
    else:
        args = checked_arguments(model, data)
    return model, guide, data, moved(args, device), valid and moved(valid, device)


def batch_transform(data: Any) -> Callable[[tuple], tuple]:
    """Return the function applied to a batch inside the step: it draws dynamic pixels."""
    if getattr(data, "pixels", "") != "dynamic":
        return lambda batch: batch
    return lambda batch: (data.transform(batch[0]), *batch[1:])
