"""The proof of a compiled step: from the same state on the same noise, the state of the eager one.

Everything that an update changes is compared after a few of them made in place: parameters,
buffers, the optimiser's slots and counts, and the losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..graph import Noise, Tape, TraceFailure, recorded
from ..randomness import forked
from .update import Update, Variables

PROVED = 3  # updates that are compared
SEED = 20  # of their noise
ROUNDINGS = 4  # of a stored value in one update, at most: decay, two terms, the sum


class Disproved(TraceFailure):
    """A compiled step changes its variables in another way than the eager one."""


class Proof:
    """Some eager updates, made on creation, that compiled ones are held against.

    They start one update further than `variables`, with the mean size of each kind of slot added to
    it. An update is then a smooth function of the gradient: Adam's first one is lr times its sign,
    which rounding decides where the gradient vanishes.

    Half of the digits have to agree, √eps of the dtype (of bfloat16 under autocast): the updates
    may enlarge rounding by as much, and a wrong formula shows in the first digits.

    Args:
        update: what one update computes.
        variables: where a fit stands; left as they are.
        lr: learning rate.
        rows: a batch for each update.
        outside: draw the noise outside of the graph, where it is standard.

    Attributes:
        tape: what one of the updates was made of: the graph to compile.

    Raises:
        TraceFailure: an update depends on a tensor's value, or is another from call to call.
    """

    def __init__(
        self, update: Update, variables: Variables, lr: Tensor, rows: Sequence[tuple],
        outside: bool = True,
    ):  # fmt: skip
        self.lr, self.rows, self._outside = lr, [_contiguous(row) for row in rows], outside
        rows = self.rows
        self.after = variables.clone()
        with torch.no_grad():
            with forked(SEED):
                update(self.after, lr, rows[0])
            for key in update.optimiser.slots:
                slots = self.after.optim[key]
                size = sum(s.abs().sum() for s in slots) / sum(s.numel() for s in slots)
                for s in slots:
                    s.add_(size)
            self.start = self.after.clone()
            with forked(SEED):
                made = [self._recorded(update, row) for row in rows]
        tapes, losses = zip(*made)
        self.losses, self.tape = torch.stack(losses), tapes[0]
        self._draws = [d for tape in tapes for d in tape.draws]
        if not all(tape.same(self.tape) for tape in tapes[1:]):
            raise TraceFailure(
                "an update is not the same operations as the one before it: something outside of "
                "torch changes from call to call (a counter, random numbers of numpy or Python)"
            )
        eps = max(
            torch.finfo(t.dtype).eps
            for t in (self.losses, *variables.params.values())
            if t.is_floating_point()
        )
        if update.autocast:
            eps = torch.finfo(torch.bfloat16).eps
        elif lr.is_cuda and torch.backends.cuda.matmul.allow_tf32:
            eps = 2.0**-10
        self.tolerance = eps**0.5

    def _recorded(self, update: Update, row: tuple) -> tuple[Tape, Tensor]:
        """Make one eager update, and write it down."""
        losses = []

        def function(*inputs: Tensor) -> Tensor:
            *flat, lr = inputs[: self.own]
            rest = iter(inputs[self.own :])
            batch = tuple(next(rest) if torch.is_tensor(b) else b for b in row)
            losses.append(update(self.after.like(flat), lr, batch))
            return losses[0]

        inputs = [*self.after.flat(), self.lr, *_tensors(row)]
        return recorded(function, inputs, self._outside, update.sizes(row)), losses[0]

    @property
    def own(self) -> int:
        """The number of the tape's inputs that are variables or the rate; the batch follows."""
        return len(self.after.flat()) + 1

    @property
    def batch(self) -> int:
        """The number of the tape's inputs that are the batch."""
        return len(self.tape.inputs) - self.own

    @property
    def inputs(self) -> list[Tensor]:
        """The variables at the start and what else the compiled code is a function of."""
        noise = self.tape.noise()
        more = [*_tensors(self.rows[0]), *self.tape.constants]
        return [*self.start.flat(), self.lr, *more, *([] if noise is None else [noise.example])]

    def hold(self, run: Callable, noise: Noise | None, together: bool) -> None:
        """Compare `run(own, others, updates)` with the eager updates: one by one, and in one call.

        Args:
            run: compiled updates of variables and rate; the others are the batch and the noise.
            noise: the part of the noise that is an input, or None.
            together: whether several updates are to be made in one call too.

        Raises:
            Disproved: a loss or a variable differs.
        """
        n = len(self.rows)
        drawn = () if noise is None else torch.cat(self._draws).view(n, -1)
        for several in (False, True) if together else (False,):
            variables = self.start.clone()
            own = [*variables.flat(), self.lr]
            with forked(SEED), torch.no_grad():
                if several:
                    losses = run(own, [*self._stacked(), *([drawn] if len(drawn) else [])], n)
                else:
                    singly = [
                        run(own, [*_tensors(row), *drawn[i : i + 1]], None)
                        for i, row in enumerate(self.rows)
                    ]
                    losses = torch.stack(singly)
            self._compare(losses, variables, f"{n} updates" + " in one call" * several)

    def _stacked(self) -> list[Tensor]:
        """The batches with a leading axis; one alone where they are all the same."""
        columns = list(zip(*map(_tensors, self.rows)))
        if all(t is column[0] for column in columns for t in column):
            return _tensors(self.rows[0])
        return [torch.stack(column) for column in columns]

    def _compare(self, losses: Tensor, variables: Variables, what: str) -> None:
        if not torch.allclose(losses, self.losses, rtol=self.tolerance, atol=self.tolerance):
            got, want = (f"{t.flatten()[:6].tolist()}"[1:-1] for t in (losses, self.losses))
            raise Disproved(
                f"the compiled step's losses are {got}, the eager one's {want}, after {what} on "
                "the same noise"
            )
        before, eager, fast = map(_by_kind, (self.start, self.after, variables))
        for kind, starts in before.items():
            changes = {k: _norm(eager[kind][k] - start) for k, start in starts.items()}
            whole = sum(c**2 for c in changes.values()) ** 0.5
            for name, change in changes.items():
                value, other = eager[kind][name], fast[kind][name]
                gap, allowed = _norm(other - value), 0.0  # whole numbers are the same
                if value.is_floating_point():
                    stored = max(_norm(value), _norm(starts[name])) * torch.finfo(value.dtype).eps
                    allowed = self.tolerance * (change + 0.01 * whole)
                    allowed += ROUNDINGS * len(self.rows) * stored
                if not gap <= allowed:
                    raise Disproved(
                        f"the compiled step's {kind} {name!r} differs from the eager one's by "
                        f"{gap:.3g} (it changed by {change:.3g}), after {what} on the same noise"
                    )


def _contiguous(batch: tuple) -> tuple:
    return tuple(b.contiguous() if torch.is_tensor(b) else b for b in batch)


def _by_kind(v: Variables) -> dict[str, dict[str, Tensor]]:
    """The variables by what they are: parameters, buffers, slots of the optimiser, counts."""
    slots = {f"{key} of": dict(zip(v.params, v.optim[key])) for key in v.optim if key != "count"}
    counts = {str(i): c for i, c in enumerate([v.count, *v.optim.get("count", ())])}
    return {"parameter": v.params, "buffer": v.buffers, **slots, "count of updates": counts}


def _norm(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t.double()))


def _tensors(batch: tuple) -> list[Tensor]:
    return [b for b in batch if torch.is_tensor(b)]
