"""Several updates of a compiled graph in one call: made from Python, or captured on CUDA."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..randomness import forked


def cuda_graph(device: torch.device, body: Callable[[], None]) -> Callable[[], None]:
    """Capture the launches that `body` makes on a device; the result replays them."""
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            body()
    return graph.replay


class Launched:
    """`launched(own, others, updates)` makes so many updates, each a call from Python.

    Args:
        run: from `compiled`, of a graph whose one output is the loss.
        inputs: example inputs.
        own: how many of them, the first, are the same at every update (variables, learning rate).
    """

    def __init__(self, run: Callable, inputs: Sequence[Tensor], own: int):
        self.run = run
        self.dims = [t.dim() for t in inputs[own:]]

    def __call__(
        self, own: Sequence[Tensor], others: Sequence[Tensor], updates: int | None = None
    ) -> Tensor:
        """The losses, (updates, *loss), or the loss of one update where `updates` is None.

        One of the others that has one more axis than its example is a row per update.
        """
        losses = [
            self.run([*own, *(t[i] if t.dim() > d else t for t, d in zip(others, self.dims))])
            for i in range(updates or 1)
        ]
        return torch.stack(losses) if updates else losses[0]


class Captured(Launched):
    """The same calls, their launches captured once on CUDA and replayed.

    Each number of updates, and each shape of batch, is captured at its first call, and its replay
    compared with the same launches made one by one, from the same state on the same noise. Where
    that fails, they are made one by one.

    Args:
        run, inputs, own: as for `Launched`; the first `own` inputs are used in place.
        record: what turns launches into a function that repeats them; by default a CUDA graph.
    """

    def __init__(
        self,
        run: Callable,
        inputs: Sequence[Tensor],
        own: int,
        record: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ):
        super().__init__(run, inputs, own)
        self.record = record or functools.partial(cuda_graph, inputs[0].device)
        self.mine = list(inputs[:own])
        self._captures: dict[Any, tuple[Callable[[], None], list[Tensor], Tensor]] = {}

    def __call__(
        self, own: Sequence[Tensor], others: Sequence[Tensor], updates: int | None = None
    ) -> Tensor:
        """As `Launched`; variables other than the example's, as in a proof, are launched for."""
        if any(a is not b for a, b in zip(own, self.mine)):
            return super().__call__(own, others, updates)
        n = updates or 1
        memory = tuple([t.data_ptr() for t in own])  # a variable may have moved since
        key = (n, memory, *((t.shape, t.dtype) for t in others))
        if key not in self._captures:
            self._captures[key] = self._capture(others, n)
        replay, fixed, losses = self._captures[key]
        for f, t in zip(fixed, others):
            f.copy_(t)
        replay()
        losses = losses.clone()  # the next replay writes over them
        return losses if updates else losses[0]

    def _capture(self, others: Sequence[Tensor], n: int) -> tuple:
        fixed = [t.clone() for t in others]
        kept = [t.clone() for t in self.mine]

        launch = functools.partial(super().__call__, self.mine, fixed, n)

        def undo() -> None:
            for t, k in zip(self.mine, kept):
                t.copy_(k)

        with forked():  # libraries allocate and tune at a first call: it must not be captured
            expected = launch()
        after = [t.clone() for t in self.mine]
        undo()
        losses = torch.empty_like(expected)

        def body() -> None:
            losses.copy_(launch())

        try:
            with forked():
                replay = self.record(body)
            undo()
            losses.zero_()
            with forked():
                replay()
            pairs = zip([losses, *self.mine], [expected, *after])
            same = all(torch.allclose(a, b, 1e-3, 1e-3, equal_nan=True) for a, b in pairs)
            undo()
            if not same:
                raise RuntimeError("the replay's losses are not those of the same launches")
        except RuntimeError as error:
            undo()
            why = str(error).strip().splitlines()[0][:160]
            warnings.warn(f"kernels are launched one by one, not replayed: {why}", stacklevel=2)
            return body, fixed, losses
        return replay, fixed, losses
