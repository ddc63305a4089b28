"""From a fit to new inputs: the posterior predictive distribution, as ArviZ's `predictions`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import xarray as xr

from ..pairs.arguments import as_arguments, check_values, misfit, moved
from ..pairs.gate import CheckedPair, admit
from ..pairs.options import whole
from ..weights import LogWeights, Term
from .arrays import Tree, Variable, constants, counted, dims_of, gathered
from .datatree import Names, datasets
from .sampler import Chunk, sample


def predict(
    run: Any,
    *new: Any,
    draws: int = 1_000,
    chunk: int | None = None,
    coords: Names = None,
    dims: Names = None,
    seed: int = 0,
) -> xr.DataTree:
    """Draw from the posterior predictive distribution for new inputs.

    Latents are the guide's. Those in a plate whose size is another now belong to new data: they
    are drawn anew from the model given the others, or, of a guide that is amortised over data,
    from the guide given all new arguments.

    Args:
        run: a `Run`.
        new: the pair's arguments, or one tuple of them; None for what is to be predicted. Those
            left out at the end are None.
        draws, chunk, coords, dims, seed: as for `to_datatree`.

    Returns:
        A tree with `predictions` (what the model observes in the data, and its deterministic
        sites) and `predictions_constant_data` (the new inputs).

    Raises:
        TypeError: not a run; too many arguments.
        ValueError: an argument of another shape than in training, rows left aside.
    """
    if not hasattr(run, "example"):
        raise TypeError(
            f"predict: expected a run, got {type(run).__name__}: fit the pair first, "
            "run = fit(model, guide, data)."
        )
    whole("draws", draws)
    source = admit(run, run.example)
    there = replace(source, args=_new_arguments(source, new))
    with source.ready(seed):
        two, observed = source.weights(2), source.once()[1]
    names = {*observed, *(n for n, t in two.model.items() if t.is_computed)}
    latent = {n for n, t in two.model.items() if t.is_latent}
    if two.plates:
        if any(a is None for a in there.args):
            raise ValueError(
                "predict: the latents of this pair belong to single data, so its guide needs all "
                "arguments of the new ones. Pass them too."
            )
        source = there
        with there.ready(seed):
            new_sites = there.once()[0]
    else:
        new_sites = _sites(there, two, seed)
        latent = {n for n in latent if two.model[n].plates == new_sites[n].plates}

    def predicted(part: Chunk) -> tuple[slice, list[Tree]]:
        k, model = part.weights.particles, part.weights.model
        sites = there.simulate(k, {n: model[n].value for n in latent})[0]
        drawn = {n: counted(t).values(k, there.nesting) for n, t in sites.items() if n in names}
        made = {n: Variable(v, dims_of(n, axes)) for n, (v, axes) in drawn.items()}
        return part.draws, [{"predictions": made}]

    tree = gathered(sample(source, draws, predicted, seed=seed, chunk=chunk), draws)
    tree["predictions_constant_data"] = constants(there, new_sites, {})
    return xr.DataTree.from_dict(datasets(tree, coords, dims))


def _sites(there: CheckedPair, drawn: LogWeights, seed: int) -> dict[str, Term]:
    """The model's sites on new arguments, at two draws of what belongs to no datum."""
    given = {n: t.value for n, t in drawn.model.items() if t.is_latent and not t.plates}
    try:
        with there.ready(seed):
            return there.simulate(2, given)[0]
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"predict: the model does not run on the new arguments: {reason}. Where it is told "
            "None it must not look at it: the size of a plate comes from an input, as in "
            "pyro.plate('data', len(x)), and obs=y."
        ) from error


def _new_arguments(source: CheckedPair, new: tuple) -> tuple:
    """The new arguments, those that were left out as None, of the shapes of training."""
    args = new[0] if len(new) == 1 and isinstance(new[0], tuple) else new
    args = tuple(a if a is None else as_arguments((a,), "new")[0] for a in args)
    while (why := misfit(source.model, args, {})) is not None and "missing" in why[1]:
        args = (*args, None)
    if why is not None:
        raise TypeError(f"predict: the model takes {why[0]}, got {len(args)} arguments.")
    for i, (a, b) in enumerate(zip(args, source.args)):
        both = torch.is_tensor(a) and torch.is_tensor(b)
        if both and a.shape[1:] != b.shape[1:]:
            raise ValueError(
                f"predict: argument {i}: expected shape (rows, {str(tuple(b.shape[1:]))[1:]} as in "
                f"training, got {tuple(a.shape)}. Give each new datum a row of the same columns."
            )
    return moved(check_values(args, "new"), source.device)
