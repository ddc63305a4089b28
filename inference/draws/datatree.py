"""From a fit to ArviZ: an `xarray.DataTree` of draws, densities and data, in memory or on disk."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
import xarray as xr
from arviz_base import dict_to_dataset
from pyro.infer import Predictive

from ..pairs.gate import CheckedPair, admit_all
from ..pairs.options import check_options
from ..weights.sites import is_flat
from .arrays import GROUPS, Tree, Variable, gathered, named_arrays, observations
from .density import missing_density, missing_spread
from .elsewhere import given_draws
from .psis import EQUAL, LEAST, ess, khat
from .sampler import NUMBERS, Chunk, sample

Names = Mapping[str, Sequence] | None


def to_datatree(
    run: Any,
    *data: Any,
    draws: int = 1_000,
    groups: Sequence[str] = GROUPS,
    coords: Names = None,
    dims: Names = None,
    chunk: int | None = None,
    vectorized: bool | str | None = None,
    seed: int = 0,
) -> xr.DataTree:
    """Draws from a fitted guide, with everything that ArviZ can use, as a DataTree.

    Groups: `posterior` (latents, deterministic sites, and discrete latents that the guide leaves
    out, drawn given the others), `unconstrained_posterior` (latents on
    the real line), `log_likelihood` (per observation), `log_prior` (per latent),
    `posterior_predictive`, `prior`, `prior_predictive`, `observed_data`, `constant_data` (the
    pair's other tensor arguments), `sample_stats` and `loss_trace`.

    `sample_stats` has, in nats, `log_p` = log p(x, z) and `log_q` = log q(z | x) of each draw,
    as `arviz_stats.loo_approximate_posterior` takes them; `log_weight` = log p - log q for each
    element of the plates that all sites share (for each datum of an amortised guide); and `khat`
    and `ess` (draws) of those weights in each chain, where the guide has a density.

    Axes are called (chain, draw, *plates, *event); event axes `z_dim`, or `z_dim_0`, `z_dim_1`.
    Draws are independent: R-hat within one fit says nothing. Restarts are and R-hat over
    them says whether they found the same posterior.

    Args:
        run: a `Run`, a list of runs (each becomes a chain), a module with methods `model` and
            `guide`, a model followed by its guide (with what Pyro's parameter store holds), or
            draws that were made elsewhere: a `pyro.infer.MCMC` that has run, a
            `pyro.infer.Predictive`, or a model followed by a dict of samples, site ->
            (draws, ...) or (chains, draws, ...). `sample_stats` then has `diverging` in place of
            what belongs to a guide.
        data: the pair's arguments, or one tuple of them.
        draws: per chain; of draws that were made elsewhere, all are taken.
        groups: which of the sampled groups to make.
        coords: axis name -> labels.
        dims: site -> names of its axes after (chain, draw), in place of the ones above.
        chunk: draws per run of the pair; by default as many as hold 2^22 numbers.
        vectorized: how draws are made together, as for `log_weights`; by default it is found out.
        seed: of the draws.

    Returns:
        The tree. `write_datatree` makes the same one on disk, without holding it.

    Raises:
        TypeError: `run` is none of the above.
        ValueError: samples that do not fit the model; fewer than one draw, an unknown
            group, labels that do not fit their axis.
    """
    sources, parts, draws = _drawn(
        run, data, draws=draws, groups=groups, chunk=chunk, vectorized=vectorized, seed=seed
    )
    whole = gathered(parts, draws)
    weights = whole.get("sample_stats", {}).get("log_weight")
    for group, variables in _once(sources, weights, seed).items():
        whole.setdefault(group, {}).update(variables)
    return xr.DataTree.from_dict(datasets(whole, coords, dims))


def write_datatree(
    path: str | Path, run: Any, *data: Any, coords: Names = None, dims: Names = None, **options: Any
) -> Path:
    """Write the tree of `to_datatree` to disk, one chunk of draws after the other.

    Memory holds one chunk, and the log weights (for their k-hat).

    Args:
        path: a new file `*.nc` for NetCDF (by h5netcdf), or a folder `*.zarr` for zarr, which
            must be installed.
        run, data, coords, dims: as for `to_datatree`.
        options: its `draws`, `groups`, `chunk`, `vectorized` and `seed`.

    Returns:
        The path. `xarray.open_datatree(path)` opens it, and reads what is asked for.

    Raises:
        FileExistsError: there is something at the path.
        ValueError: another ending, or what `to_datatree` raises.
    """
    path = Path(path)
    if path.suffix not in (".nc", ".zarr"):
        raise ValueError(f"path: expected a name that ends in .nc or .zarr, got {path.name!r}.")
    if path.exists():
        raise FileExistsError(f"{path} exists. Remove it, or write to another name.")
    sources, parts, _ = _drawn(run, data, **options)
    log_weight: list[np.ndarray] = []
    for here, trees in parts:
        part = gathered([(slice(None), trees)], here.stop - here.start)
        _append(path, datasets(part, coords, dims, here.start), here.start)
        if weight := part.get("sample_stats", {}).get("log_weight"):
            log_weight.append(weight.array)
            axes = weight.dims
    whole = Variable(np.concatenate(log_weight, 1), axes) if log_weight else None
    rest = datasets(_once(sources, whole, options.get("seed", 0)), coords, dims)
    there = part.keys()
    _append(path, {g: d.drop_attrs() if g in there else d for g, d in rest.items()}, 0)
    return path


def _append(path: Path, groups: Mapping[str, xr.Dataset], start: int) -> None:
    """Write groups, or more draws of them."""
    for group, dataset in groups.items():
        if path.suffix == ".zarr":
            more = "draw" if start else None
            dataset.to_zarr(path, group=group, mode="a", consolidated=False, append_dim=more)
        elif start == 0:
            grows = "draw" in dataset.dims
            chunks = {n: {"chunksizes": v.shape} for n, v in dataset.data_vars.items() if grows}
            dataset.to_netcdf(
                path, mode="a", group=group, engine="h5netcdf", encoding=chunks,
                unlimited_dims=["draw"] if grows else [],
            )  # fmt: skip
    if start and path.suffix == ".nc":
        import h5netcdf

        with h5netcdf.File(path, "a") as file:
            for group, dataset in groups.items():
                stop = start + dataset.sizes["draw"]
                file[group].resize_dimension("draw", stop)
                for name, variable in dataset.variables.items():
                    if "draw" in variable.dims:
                        at = [slice(None)] * variable.ndim
                        at[variable.dims.index("draw")] = slice(start, stop)
                        file[group][name][tuple(at)] = variable.values


def _drawn(
    run: Any,
    data: tuple,
    *,
    draws: int = 1_000,
    groups: Sequence[str] = GROUPS,
    chunk: int | None = None,
    vectorized: bool | str | None = None,
    seed: int = 0,
) -> tuple[list[CheckedPair], Iterator[tuple[slice, list[Tree]]], int]:
    """The checked pairs, their draws as `side_by_side` makes them, and how many in each."""
    unknown = [g for g in groups if g not in GROUPS]
    if unknown:
        raise ValueError(f"groups: expected some of {', '.join(GROUPS)}; got {unknown}.")
    made = given_draws(run, data)
    if made is not None:
        check_options(None, chunk=chunk, seed=seed)
        sources, draws = [made.pair] * made.shape[0], made.shape[1]
    else:
        if isinstance(run, Predictive):
            run, data = run.model, (run.guide, *data)
        options = {"draws": draws, "chunk": chunk, "seed": seed}
        sources = admit_all(run, *data, vectorized=vectorized, who="to_datatree", **options)
    with sources[0].ready(seed):
        flat = [n for n, t in sources[0].weights().model.items() if t.is_latent and is_flat(t.fn)]
    if flat and any(g.startswith("prior") for g in groups):
        groups = [g for g in groups if not g.startswith("prior")]
        named = ", ".join(map(repr, flat))
        warnings.warn(f"no prior groups: the prior of {named} is flat (improper).", stacklevel=3)
    chains: list[dict[str, Any]] = [
        {"pair": pair, "seed": [seed, i], "chunk": chunk, "numbers": NUMBERS // len(sources)}
        for i, pair in enumerate(sources)
    ]
    if made is None:
        return sources, side_by_side(chains, draws, groups), draws
    for i, chain in enumerate(chains):
        chain["given"] = {n: v[i] for n, v in made.values.items()}
    return sources, made.completed(side_by_side(chains, draws, groups)), draws


def side_by_side(
    chains: Sequence[Mapping[str, Any]], draws: int, groups: Sequence[str]
) -> Iterator[tuple[slice, list[Tree]]]:
    """Draw all chains in step: which draws, and the tree of each chain.

    Args:
        chains: the pair of each, and other arguments of `sample`.
        draws: of each.
        groups: of `named_arrays`.
    """

    def tree(part: Chunk) -> tuple[slice, Tree]:
        return part.draws, named_arrays(part, groups)

    for parts in zip(*(sample(draws=draws, reduce=tree, **chain) for chain in chains), strict=True):
        yield parts[0][0], [part for _, part in parts]


def _once(sources: Sequence[CheckedPair], log_weight: Variable | None, seed: int) -> Tree:
    """Collect what has no draws: k-hat and effective size of the weights, data, losses."""
    out: Tree = {}
    with sources[0].ready(seed):
        out["observed_data"], out["constant_data"] = observations(sources[0])
        two = sources[0].weights(2)
    if log_weight is not None and log_weight.array.shape[1] >= LEAST:
        lw = torch.as_tensor(log_weight.array).transpose(0, 1)  # (draw, chain, *plates)
        equal = float((lw - lw[:1]).abs().max()) < EQUAL  # two draws alone may be so by chance
        if not (missing_density(two) or (equal and missing_spread(two))):
            axes = ("chain", *log_weight.dims[2:])
            out["sample_stats"] = {
                "khat": Variable(khat(lw).numpy(), axes),
                "ess": Variable(ess(lw).numpy(), axes),
            }
    losses = [s.run.losses for s in sources if s.run is not None]
    if losses:
        longest = max(map(len, losses))
        table = np.array([[*trace, *[np.nan] * (longest - len(trace))] for trace in losses])
        logged = sources[0].run.history["step"]  # type: ignore[union-attr]
        each = len(logged) == longest  # many fits keep means over intervals, one fit every loss
        steps = logged.astype(int) if each else np.arange(1, longest + 1)
        out["loss_trace"] = {"loss": Variable(table, ("chain", "step"), {"step": steps})}
    return out


def datasets(block: Tree, coords: Names, dims: Names, start: int = 0) -> dict[str, xr.Dataset]:
    """A dataset for each group that is not empty, with ArviZ's attributes."""
    out = {}
    for group, variables in block.items():
        if not variables:
            continue
        names: dict[Any, Any] = {}
        labels: dict[str, Any] = {}
        for name, v in variables.items():
            own = [d for d in v.dims if d in ("chain", "draw", "step")]
            axes = [f"{d}_plate" if d in variables else d for d in v.dims[len(own) :]]
            given = (dims or {}).get(name)
            names[name] = own + (list(given) if given and len(given) == len(axes) else axes)
            for axis, size in zip(names[name], v.array.shape):
                if axis in (coords or {}):
                    labels[axis] = (coords or {})[axis]
                    if len(labels[axis]) != size and group != "unconstrained_posterior":
                        raise ValueError(
                            f"coords: {axis!r} of site {name!r} has {size} elements, got "
                            f"{len(labels[axis])} labels."
                        )
                elif axis == "draw":
                    labels["draw"] = np.arange(start, start + size)
            labels |= v.labels
        out[group] = dict_to_dataset(
            {n: v.array for n, v in variables.items()}, dims=names, coords=labels,
            sample_dims=[], inference_library=pyro,
        )  # fmt: skip
    return out
