"""The proof of a compiled step: from the same state on the same noise, the state of the eager one.

Everything that an update changes is compared after a few of them made in place: parameters,
buffers, the optimiser's slots and counts, and the losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..graph import Noise, Recorded, TraceFailure
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
    """

    def __init__(self, update: Update, variables: Variables, lr: Tensor, rows: Sequence[tuple]):
        self.lr, self.rows = lr, rows
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
            with forked(SEED), Recorded() as self._tape:
                self.losses = torch.stack([update(self.after, lr, row) for row in rows])
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
        drawn = () if noise is None else self._tape.noise.view(n, -1)
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
        if all(row is self.rows[0] for row in self.rows):
            return _tensors(self.rows[0])
        return [torch.stack(column) for column in zip(*map(_tensors, self.rows))]

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


def _by_kind(v: Variables) -> dict[str, dict[str, Tensor]]:
    """The variables by what they are: parameters, buffers, slots of the optimiser, counts."""
    slots = {f"{key} of": dict(zip(v.params, v.optim[key])) for key in v.optim if key != "count"}
    counts = {str(i): c for i, c in enumerate([v.count, *v.optim.get("count", ())])}
    return {"parameter": v.params, "buffer": v.buffers, **slots, "count of updates": counts}


def _norm(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t.double()))


def _tensors(batch: tuple) -> list[Tensor]:
    return [b for b in batch if torch.is_tensor(b)]
