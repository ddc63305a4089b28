"""The arguments of a fit on their device, and mini-batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
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
from .sources import Source, Stream, source_of

LARGEST = 2**26  # particles times numbers of data in one pass


class Batches:
    """Mini-batches of a fixed size, every row once per epoch, in an order that follows the seed.

    Batches run on over the end of an epoch, so that all have one shape.

    Args:
        args: the pair's arguments, or where they are read from.
        held_out: those that validation looks at.
        batch_size: rows, None for all; `seed`: of the order.
        ranks: the processes that share the rows of each batch of a given size, in one order.
        device: of batches that are read.

    Raises:
        ValueError: the batch is larger than the data, or the data holds NaN.
    """

    def __init__(
        self,
        args: tuple | Source,
        batch_size: int | None,
        seed: int,
        held_out: Any = None,
        ranks: Ranks | None = None,
        device: torch.device | None = None,
    ):
        self.source = args if isinstance(args, Source) else None
        self.ranks, self._device = ranks, device or torch.device("cpu")
        if isinstance(args, Source):
            args = self._first_rows(args, batch_size or args.rows, seed)
        self.args = args
        self.held_out = held_out if isinstance(held_out, tuple) else (held_out,)
        tensors = [a for a in args if torch.is_tensor(a)]
        check_values(args)
        self.size = len(tensors[0]) if tensors and tensors[0].dim() else None
        if self.source is not None:
            self.size = self.source.rows
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
        self.whole &= self.source is None
        self.batch_size = self.size if self.whole else batch_size
        self._order = torch.Generator().manual_seed(seed)
        self._where = next((a.device for a in args if has_rows(a, self.size)), torch.device("cpu"))
        if self.source is not None:
            self._where = torch.device("cpu")
            self._read: tuple[Tensor, Future] | None = None  # rows, and when they are there
            self._reader = ThreadPoolExecutor(1) if self.source.ahead else None
        self._queue = torch.empty(0, dtype=torch.long, device=self._where)

    def _first_rows(self, source: Source, rows: int, seed: int) -> tuple:
        """A batch to try things with; of a stream, one that is taken all the same."""
        if isinstance(source, Stream):
            source.seed = seed
        return self._moved(source.checked(torch.arange(min(rows, source.rows))))

    def _moved(self, rows: tuple) -> tuple:
        """Rows that were read, on the device; from pinned memory where that is CUDA."""
        if self._device.type == "cuda":
            rows = tuple(a.pin_memory() if torch.is_tensor(a) else a for a in rows)
        return tuple(
            a.to(self._device, non_blocking=True) if torch.is_tensor(a) else a for a in rows
        )

    def _taken(self, index: Tensor, repeats: int) -> tuple:
        """Rows of the source; the next ones are begun to be read."""
        assert self.source is not None
        if self._reader is None:
            return self._moved(self.source.checked(index))
        ready, self._read = self._read, None
        if ready is not None and torch.equal(ready[0], index):
            rows = ready[1].result()
        else:
            rows = self.source.checked(index)
        coming = self.upcoming(repeats).clone()
        self._read = coming, self._reader.submit(self.source.checked, coming)
        return self._moved(rows)

    @property
    def streamed(self) -> bool:
        """True where rows come as they come, and cannot be asked for again."""
        return self.source is not None and not self.source.indexable

    def example(self, rows: int | None = None) -> tuple:
        """The first rows, in order: a batch, or as many as asked for."""
        if self.whole and rows is None:
            return self.args
        n = rows or self.batch_size
        return take_rows(self.args, slice(n), None if self.source else self.size)

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
                a = a.index_select(0, index)
            elif self.source is None or not has_rows(a, len(index)):
                return a.expand(repeats, *a.shape) if repeats > 1 and torch.is_tensor(a) else a
            return a.reshape(*shape, *a.shape[1:])

        args = self.args if self.source is None else self._taken(index, repeats)
        return tuple(take(a) for a in args), False

    def trial(self, repeats: int = 1) -> tuple[tuple, bool]:
        """A batch as of `next`, to try a step with; the order stays as it is."""
        if self.source is None:
            before = self._order.get_state(), self._queue
            found = self.next(repeats)
            self._order.set_state(before[0])
            self._queue = before[1]
            return found
        rows = len(self.upcoming())
        batch = take_rows(self.args, slice(rows))
        if repeats > 1:
            batch = tuple(torch.stack([a] * repeats) if torch.is_tensor(a) else a for a in batch)
        return batch, False

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
        own = fingerprint(self.args) if self.source is None else self.source.fingerprint()
        return {"data": own, "valid": fingerprint(self.held_out)}

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
    model: Callable,
    guide: Any,
    data: Any,
    valid: Any,
    device: torch.device,
    batch_size: int | None = None,
    *,
    streams: bool = False,
) -> tuple[Callable, Callable, Any, Any, tuple | None]:
    """Model, guide and data of `fit(pair, data)` or `fit(model, guide, data)`, and the arguments.

    Args:
        batch_size: of batches of data that are read by and by, `streams` where they may be.

    Returns:
        The three, the pair's arguments on a device or their source, and the held-out ones if any.

    Raises:
        TypeError: there is no data, or it is not what the model takes.
        ValueError: it is to be read by and by, and may not.
    """
    if data is None:
        data = guide
        model, guide, rest, _ = gate.halves(model, (guide,), "fit")
        if data is None or not rest:
            raise TypeError("fit: no data was given: fit(pair, data) or fit(model, guide, data).")
    if valid is not None:
        valid = checked_arguments(model, valid, "valid")
    source = source_of(data, batch_size)
    if isinstance(source, tuple):
        source, data = None, source
    if source is not None:
        if not streams:
            raise ValueError(
                "data: expected values in memory, got some that are read by and by, which only "
                "fit does. Load them first, as in torch.tensor(numpy.array(x))."
            )
        return model, guide, data, source, valid and moved(valid, device)
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
    """Return the function applied to a batch inside the step: it draws pixels, or their noise."""
    if getattr(data, "pixels", "") not in ("dynamic", "dequantised"):
        return lambda batch: batch
    return lambda batch: (data.transform(batch[0]), *batch[1:])
