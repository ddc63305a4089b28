"""A guide for any model by the name of its kind."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger

from ..pairs.inspection import factorising
from ..pairs.options import nearest
from ..randomness import ALONE
from ..weights.sites import at_zero, is_discrete, is_flat
from ..weights.supports import Following
from .packed import FlowGuide, MixtureGuide
from .paths import Normal, Paths
from .placed import FAMILIES as PLACED
from .placed import PlacedGuide
from .plates import FAMILIES, PlateGuide

NORMAL = ("mean-field", "full-rank", "low-rank")  # begin near the posterior where data are given


# under Pyro's names, by which their parameters go
class AutoNormal(autoguide.AutoNormal, Following):
    """Pyro's, with supports that may depend on other latents."""


class AutoMultivariateNormal(autoguide.AutoMultivariateNormal, Following):
    """Pyro's, with supports that may depend on other latents."""


class AutoLowRankMultivariateNormal(autoguide.AutoLowRankMultivariateNormal, Following):
    """Pyro's, with supports that may depend on other latents."""


class AutoDelta(autoguide.AutoDelta, Following):
    """Pyro's, with supports that may depend on other latents."""


KINDS: dict[str, Callable[..., AutoGuide]] = {
    "mean-field": AutoNormal,
    "full-rank": AutoMultivariateNormal,
    "low-rank": AutoLowRankMultivariateNormal,
    "structured": functools.partial(PlateGuide, family="structured"),
    "mixture": MixtureGuide,
    "iaf": functools.partial(FlowGuide, transform="iaf"),
    "spline": functools.partial(FlowGuide, transform="spline"),
    "flow": FlowGuide,
    "pathfinder": functools.partial(PlacedGuide, start="pathfinder"),
    "laplace": functools.partial(PlacedGuide, start="laplace"),
    "delta": AutoDelta,
}


def make_guide(
    kind: str,
    model: Any,
    *args: Any,
    amortized: bool = False,
    start: str | Normal | Paths | Mapping[str, Any] | None = None,
    **options: Any,
) -> AutoGuide:
    """A guide for the continuous latents of `model`. Discrete ones are left to exact enumeration.

    | kind | q over the unconstrained latents u | parameters |
    |---|---|---|
    | mean-field | independent normals (Pyro's AutoNormal) | 2 D |
    | full-rank | one normal distribution (AutoMultivariateNormal) | D²/2 |
    | low-rank | N(m, diag + W Wᵀ), `rank` (AutoLowRankMultivariateNormal) | (rank + 2) D |
    | structured | normal per element of each plate, linear in what is around it | as the plates |
    | mixture | `components` diagonal normals | 2 C D |
    | iaf, spline | autoregressive flow with affine or rational-quadratic layers | network |
    | flow | `transform`: a function of D that returns an invertible map | its own |
    | pathfinder | one normal distribution, begun at the best on a way up the log joint | D²/2 |
    | laplace | the same, begun at the peak, with the curvature there | D²/2 |
    | delta | a point, the peak in the latents' own space (AutoDelta) | D |

    All work under a plate of particles and can be compiled. Without `args` none needs to know the
    data, and parameters are made when the guide is first called. With all data as `args` they are
    made at once, and mean-field, low-rank and full-rank begin where a quasi-Newton path found the
    posterior: their parameters are then in whitened coordinates, where one learning rate (0.01,
    say) suits all of them, and a `fit` ends after a few hundred steps.

    Args:
        kind: from the table.
        model: a Pyro model, or a pair, whose model is taken.
        args: the model's arguments, all data of a fit.
        start: "pathfinder" or "laplace": begin there, for mean-field, low-rank, full-rank, iaf and
            spline (`inference.guides.placed.PlacedGuide`). Or a dictionary, site -> the value that
            its distribution is placed at, in the site's own space; the others start as their kind
            does, those with a flat prior (`ImproperUniform`) at the middle of their support. By
            default "pathfinder" for mean-field, low-rank and full-rank with `args` (and without
            options of their own); `{}` is the start of the kind.
        amortized: the latents of each datum get their distribution from a network that is shown
            the datum, instead of parameters of their own: for mini-batches and new data. For
            mean-field, low-rank, full-rank, structured, iaf and spline; latents of no datum keep
            their parameters.
        options: of the guide's class: `init_scale`, `rank`, `components`, `transform`, `hidden`,
            `depth`, `encoder`, `create_plates`.

    Returns:
        An autoguide, for `fit`, `pyro.infer.SVI` or as part of a larger one.

    Raises:
        ValueError: an unknown kind (the nearest is named), or one that cannot be amortised.
        TypeError: an option that this kind does not have.
    """
    others = {e.name: e for e in entry_points(group="zoo.guides")}  # of installed packages
    known = (*KINDS, *others)
    if kind not in known:
        raise ValueError(
            f"guide: there is no {kind!r}; known are {', '.join(known)}.{nearest(kind, known)}"
        )
    make: Callable[..., Any] = KINDS[kind] if kind in KINDS else others[kind].load()
    if amortized:
        if kind not in FAMILIES:
            raise ValueError(
                f"guide: {kind!r} cannot be amortised; these can: {', '.join(FAMILIES)}."
            )
        make = functools.partial(PlateGuide, family=kind, amortized=True)
    own_start = start is not None or amortized or bool({*options} - {"rank"})
    if args and kind in NORMAL and not own_start:
        try:
            return make_guide(kind, model, *args, start="pathfinder", **options)
        except ValueError as why:
            warnings.warn(
                f"{kind}: begins as its kind does (start={{}}), and not near the posterior: {why}",
                stacklevel=2,
            )
    values: Mapping[str, Any] = start if isinstance(start, Mapping) else {}
    if start is not None and not isinstance(start, Mapping):
        if kind not in PLACED:
            raise ValueError(f"start: {kind!r} has none; these have: {', '.join(PLACED)}.")
        make = functools.partial(PlacedGuide, family=kind, start=start)
    accepted = [p for p in inspect.signature(make).parameters if p != "model"]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise TypeError(
            f"guide: {kind!r} has no option {', '.join(unknown)}; it takes {', '.join(accepted)}."
        )
    model = model_of(model)
    placed = isinstance(make, functools.partial) and make.func is PlacedGuide  # hides them itself
    latent = poutine.block(model, hide_fn=is_discrete)
    guide = make(model if placed else _Started(values)(latent), **options)
    if args:
        empty: Any = {"params": {}, "constraints": {}}
        with factorising("guide"), ALONE, pyro.get_param_store().scope(empty):
            guide._setup_prototype(*args)
    return guide


class _Started(Messenger):
    """Gives latents the values that their guide starts from, where those are told.

    And where they cannot be drawn: those of a flat prior start at the middle of their support.
    """

    def __init__(self, start: Mapping[str, Any]):
        super().__init__()
        self.start = start

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None:
            return
        fn = msg["fn"]
        if msg["name"] in self.start:
            value = torch.as_tensor(self.start[msg["name"]])
            msg["value"] = value.to(torch.get_default_dtype()).expand(fn.shape())
        elif is_flat(fn):
            msg["value"] = at_zero(msg)


def model_of(given: Any) -> Callable:
    """The model of a pair; anything else is a model as it is."""
    pair = all(callable(getattr(given, half, None)) for half in ("model", "guide"))
    return given.model if pair else given
