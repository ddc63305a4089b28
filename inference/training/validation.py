"""The held-out value of a pair in training, in the unit of its history."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pairs.arguments import rows_of, take_rows
from ..randomness import DrawnAnew
from ..weights import no_validation
from .batches import Batches
from .run import Run
from .update import Variables, at_step, even_parts


def held_out_values(
    run: Run,
    variables: Variables,
    args: tuple,
    batches: Batches,
    vary: tuple[int | None, ...] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The estimator's bound on held-out rows, and beside it the ELBO and its divergences.

    Buffers stay as they are. An annealed estimator is taken at the end of its schedule, so that
    values of different steps compare.

    Args:
        run: the fit; what its plates are told.
        variables: at which values: of one fit, or of R with `vary`.
        args: held-out arguments.
        batches: most rows at once are those of a batch; parts are of one size, but for one row.
        vary: which arguments have a leading axis of fits; None is one single fit.

    Returns:
        The score, () or (R,), and columns for the history: `valid_elbo`, `valid_bound` where it is
        another, and `kl_SITE`; means over fits, of which those with NaN are left out.
    """
    from ..elbo import kl_by_site

    pair, estimator = run.pair_, run.estimator
    fitwise = vary is not None
    rows = rows_of(args) or 1
    kwargs = dict.fromkeys(run.kwargs, rows)

    def values(params: dict, buffers: dict, part: tuple) -> dict[str, Tensor]:
        with pair.bind(params, buffers):
            weights = estimator.draw(pair.model, pair.guide, *part, nesting=pair.nesting, **kwargs)
        found = {"bound": estimator.bound(weights), "elbo": weights.elbo().mean()}
        found |= {f"kl_{n}": torch.as_tensor(kl) for n, kl in kl_by_site(weights).items()}
        return {k: v / (weights.scale or 1.0) for k, v in found.items()}

    if fitwise:
        values = torch.vmap(values, in_dims=(0, 0, vary), randomness="different")
    whole = run.divide == 1.0 or (fitwise and any(v == 0 for v in vary or ()))
    parts = [slice(0, rows)] if whole else even_parts(rows, batches.batch_size or rows)
    annealed = torch.tensor(1e9, device=variables.count.device)  # a schedule's value at its end
    sums: dict[str, Tensor] = {}
    with torch.no_grad(), no_validation(), at_step(estimator, annealed):
        for part in parts:
            buffers = {k: b.clone() for k, b in variables.buffers.items()}
            batch = args if whole else take_rows(args, part, rows)
            if fitwise:
                with DrawnAnew():
                    found = values(variables.params, buffers, batch)
            else:
                found = values(variables.params, buffers, batch)
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value.double()
    per = 1.0 if run.divide == 1.0 else float(rows)
    means = {k: float((v / per).nanmean()) for k, v in sums.items()}
    bound, elbo = means.pop("bound"), means.pop("elbo")
    row = {"valid_elbo": elbo, **({"valid_bound": bound} if bound != elbo else {}), **means}
    return sums["bound"] / per, row
