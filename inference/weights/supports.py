"""Latents whose support depends on other latents or parameters, as in `Uniform(0, 1 - a)`."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoGuide
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR
from torch import Tensor
from torch.distributions import biject_to

from ..randomness import forked
from .sites import At, at_zero, is_discrete, is_latent

SCATTER = 0.5  # of the places at which supports are compared, on the real line


def bounds_of(fn: Any) -> dict[str, Tensor]:
    """Return the ends of a distribution's support that are numbers; empty where it has none."""
    try:
        support = fn.support
    except NotImplementedError:
        return {}
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    ends = {k: v for k, v in vars(support).items() if k in ("lower_bound", "upper_bound")}
    return {k: torch.as_tensor(v) for k, v in ends.items()}


def with_bounds(support: Any, ends: Mapping[str, Any]) -> Any:
    """Return a support with other ends."""
    if not ends:
        return support
    out = copy.copy(support)
    if hasattr(support, "base_constraint"):
        out.base_constraint = with_bounds(support.base_constraint, ends)
    else:
        vars(out).update(ends)
    return out


def moving_supports(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> list[str]:
    """List the latents whose support moves with other latents, or with the model's parameters.

    The model is run at two places. Where it does not run to its end, the sites reached count.
    """
    at: list[dict[str, dict[str, Tensor]]] = []
    for seed in (0, 1):
        scattered = _Scattered()
        # nobody asked for these places: where the model stops, the guide's own setup tells
        with forked(seed), torch.enable_grad(), suppress(Exception), poutine.block(), scattered:
            model(*args, **kwargs)
        at.append(scattered.bounds)
    return [n for n, ends in at[0].items() if n in at[1] and not _same(ends, at[1][n])]


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    fixed = not any(v.requires_grad for v in a.values())
    return fixed and a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


class _Scattered(Messenger):
    """Puts continuous latents somewhere in their supports, and notes the ends of these."""

    def __init__(self) -> None:
        super().__init__()
        self.bounds: dict[str, dict[str, Tensor]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if not is_latent(msg) or msg["done"] or is_discrete(msg):
            return
        self.bounds[msg["name"]] = bounds_of(msg["fn"])
        try:
            move = biject_to(msg["fn"].support)
        except NotImplementedError:  # it is drawn
            return
        u = move.inv(at_zero(msg))
        msg["value"], msg["done"] = move(u + SCATTER * torch.randn_like(u)), True


class Following(AutoGuide):
    """An autoguide that lets supports follow the latents that they depend on.

    Pyro's autoguides map each latent from the real line to the support that it had when the model
    was first run. Here a latent z_i whose support S_i(z_<i) moves is mapped there anew at each
    draw: z_i = f(u_i; S_i(z_<i)), log q(z_i | z_<i) = log q(u_i) - log |dz_i / du_i|, where the
    model is run up to that site. Inherit from it after the autoguide.
    """

    _moving: tuple[str, ...] = ()

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        for name in ("quantiles", "median"):
            if hasattr(cls, name):
                setattr(cls, name, _if_fixed(getattr(cls, name)))

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self._moving = tuple(moving_supports(_without_starts(self.model), args, kwargs))
        for name in self._moving:  # on the real line as far as the guide is concerned
            site = self.prototype_trace.nodes[name]
            if any(f.full_size not in (None, f.size) for f in site["cond_indep_stack"]):
                raise ValueError(
                    f"site {name!r}: its support depends on other sites, and its plate is drawn in "
                    "mini-batches: a guide for all rows cannot follow it. Fit on all data, or draw "
                    "a fraction of the support, Uniform(0, 1), and compute the site from it."
                )
            fn = site["fn"]
            u = biject_to(fn.support).inv(site["value"]).detach()
            if u.shape != site["value"].shape:
                raise ValueError(
                    f"site {name!r}: expected a support that is an interval in each element, got "
                    f"{type(fn).__name__} whose support depends on other sites. Draw something "
                    "without that, and compute the site from it with pyro.deterministic."
                )
            line = dist.Normal(torch.zeros_like(u), 1.0).to_event(fn.event_dim)
            site.update(fn=line, value=u)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Draw every latent: site -> value."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        if not self._moving:
            return super().__call__(*args, **kwargs)
        counted = not isinstance(self, AutoDelta)
        model = functools.partial(_without_starts(self.model), *args, **kwargs)
        with _Moved(model, self._moving, counted):
            return super().__call__(*args, **kwargs)


def _if_fixed(method: Callable) -> Callable:
    """Let a method of closed forms refuse where supports move."""

    @functools.wraps(method)
    def closed_form(self: Following, *args: Any, **kwargs: Any) -> Any:
        if self._moving:
            raise NotImplementedError(
                f"{method.__name__}: there is no closed form for {', '.join(self._moving)}, whose "
                "support depends on other latents: draw from the guide."
            )
        return method(self, *args, **kwargs)

    return closed_form


class _Moved(Messenger):
    """Maps the draws of some sites of a guide from the real line to their present supports."""

    def __init__(self, model: Callable, moving: tuple[str, ...], counted: bool):
        super().__init__()
        self.model, self.moving, self.counted = model, moving, counted
        self.values: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.moving:
            return
        fn = msg["fn"]
        u, density = _point_of(fn)
        move = biject_to(_distribution_at(self.model, msg["name"], self.values).support)
        value = move(u)
        if self.counted:
            density = density - move.log_abs_det_jacobian(u, value)
        msg["fn"] = dist.Delta(value, log_density=density, event_dim=fn.event_dim)

    def _pyro_post_sample(self, msg: Any) -> None:
        if is_latent(msg):
            self.values[msg["name"]] = msg["value"]


def _point_of(fn: Any) -> tuple[Tensor, Any]:
    """Return place and log density of a Delta, which plates may have expanded."""
    while not hasattr(fn, "v"):
        fn = fn.base_dist
    return fn.v, fn.log_density


class _Reached(Exception):
    """Carries the distribution of the site up to which a model was run."""


class _UpTo(At):
    """Runs a model at known values up to a site."""

    def __init__(self, site: str, values: Mapping[str, Tensor]):
        super().__init__(values)
        self.site = site

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            raise _Reached(msg["fn"])
        super()._pyro_sample(msg)
        if not msg["done"] and is_discrete(msg):  # no support may depend on it: it is summed out
            msg["value"], msg["done"] = msg["fn"].enumerate_support()[0], True


def _distribution_at(model: Callable, site: str, values: Mapping[str, Tensor]) -> Any:
    """Return the distribution of a site given the latents before it."""
    around = list(_DIM_ALLOCATOR._stack)  # the guide stands in plates that the model opens itself
    _DIM_ALLOCATOR._stack[:] = []
    try:
        with poutine.block(), _UpTo(site, values):
            model()
    except _Reached as reached:
        return reached.args[0]
    finally:
        _DIM_ALLOCATOR._stack[:] = around
    raise ValueError(
        f"the model did not reach its site {site!r}, whose support depends on other sites: "
        "expected the same sites at each call."
    )


def _without_starts(model: Any) -> Callable:
    """Return the model without the draws that an autoguide starts from."""
    inner = model
    while isinstance(inner, functools.partial):
        if not inner.args:  # what Pyro's handlers make of a function
            inner = inner.func
        elif isinstance(inner.args[0], InitMessenger):
            model = inner = inner.args[1]
        else:
            break
    return model
