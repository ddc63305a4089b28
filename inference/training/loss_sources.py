"""The source of a loss that is not finite: the site, and the rows of the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..pairs.inspection import unfactorised
from ..randomness import forked
from ..weights import no_validation
from .batches import Batches
from .state import Training, random_state, set_random_state
from .steps import EagerStep
from .update import Update, Variables, at_step

SHOWN = 5  # rows that are named


def source_of_loss(run: Training, update: Any, batches: Batches, rate: Tensor, steps: int) -> str:
    """Make the steps after the last good state again, eagerly, and look at the one that fails.

    Args:
        run: in its last good state, and `batches` in theirs; both stay as they are.
        update: of its steps.
        steps: how many there are to the first loss that is not finite.

    Returns:
        ": site 'x', rows 3, 17", or another source, or "" where the steps go well this time.
    """
    if not isinstance(update, Update) or update.vary is not None or batches.streamed:
        return ""
    variables, order = run.variables.clone(), batches.state()
    step = EagerStep(update, variables, rate)
    with forked():
        if run.random_state is not None:
            set_random_state(run.random_state, run.device)
        try:
            for _ in range(steps):
                rows = None if batches.size is None else batches.upcoming()
                batch, _ = batches.next()
                before, noise = variables.clone(), random_state(run.device)
                try:
                    loss = step(batch)
                except torch.linalg.LinAlgError as error:
                    return f": {unfactorised(error)}"
                if not bool(loss.isfinite()):
                    set_random_state(noise, run.device)
                    return _first_site(update, before, batch, rows)
                for name, p in variables.params.items():
                    if not bool(p.isfinite().all()):
                        return f", from the gradient of {name!r} in the step before"
        finally:
            batches.restore(order)
    return ""


def _first_site(update: Update, at: Variables, batch: tuple, rows: Tensor | None) -> str:
    """The first site whose log density is not finite, and the rows of the data where."""
    if update.transform is not None:
        batch = update.transform(batch)
    floating = at.count.to(torch.get_default_dtype())
    with (
        torch.no_grad(), no_validation(), update.pair.bind(at.params, at.buffers),
        at_step(update.estimator, floating),
    ):  # fmt: skip
        weights = update.estimator.draw(
            update.pair.model, update.pair.guide, *batch, nesting=update.pair.nesting,
            full_sizes=update.pair.full_sizes, **update.kwargs,
        )  # fmt: skip
    for _, term in weights.terms():
        bad = ~term.log_prob.isfinite()
        if not bool(bad.any()):
            continue
        if rows is None or bad.dim() < 2 or bad.shape[-1] != len(rows):
            return f", from site {term.name!r}"
        where = rows[bad.flatten(0, -2).any(0).to(rows.device)].unique().tolist()
        some = ", ".join(map(str, where[:SHOWN])) + (", ..." if len(where) > SHOWN else "")
        return f", from site {term.name!r} at row{'s' * (len(where) > 1)} {some} of the data"
    return ""
