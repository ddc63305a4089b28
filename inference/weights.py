"""Log weights of a pair: log p(x, z) - log q(z | x), per particle and per datum.

This is the only file that handles Pyro traces. Everything else (bounds, gradients, evaluation,
ArviZ) is arithmetic on what `log_weights` returns.
"""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from torch import Tensor

PARTICLES = "particles"  # the name of the outermost plate


@dataclass(frozen=True)
class Plate:
    """An independence of a site: `dim` counts from the right, `scale` is N/B when subsampled."""

    name: str
    dim: int
    size: int
    scale: float


@dataclass
class Term:
    """One site's log density in one half of the pair.

    `log_prob` has shape (K, *plates), masked but not scaled; `user_scale` is what `poutine.scale`
    asked for and `plates` carry N/B. `fn` and `value` are Pyro's.
    """

    name: str
    log_prob: Tensor
    plates: tuple[Plate, ...] = ()
    user_scale: float | Tensor = 1.0
    observed: bool = False
    auxiliary: bool = False
    fn: Any = None
    value: Any = None
    mask: Any = None
    enumerated: bool = False
    deterministic: bool = False
    observation: Any = None

    @property
    def latent(self) -> bool:
        """Whether the site is a random variable that was drawn, not observed or computed."""
        return not (self.observed or self.deterministic or self.enumerated or self.fn is None)

    @property
    def data(self) -> bool:
        """Whether the site is an observation: not a `pyro.deterministic`, not a `pyro.factor`."""
        return self.observed and not self.deterministic and type(self.fn).__name__ != "Unit"

    def values(self, particles: int, nesting: int) -> tuple[Tensor, list[str | None]]:
        """The value as (K, *plates, *event), and the plate's name for each axis after K."""
        value = torch.as_tensor(self.value)
        event = getattr(self.fn, "event_dim", 0)
        if self.deterministic:  # pyro.deterministic calls all of its axes event
            drawn = particles > 1 and value.dim() > nesting and len(value) == particles
            batch = nesting + 1 if drawn else max((-p.dim for p in self.plates), default=0)
            event = max(0, value.dim() - batch)
        return by_plate(value, event, self.plates, particles, nesting)

    def pointwise(self, particles: int, nesting: int) -> tuple[Tensor, list[str | None]]:
        """`log_prob` as (K, *plates), and the plate's name for each axis after K."""
        return by_plate(self.log_prob, 0, self.plates, particles, nesting)

    @property
    def scale(self) -> float | Tensor:
        """The user's scale times N/B of every plate."""
        return self.user_scale * math.prod(p.scale for p in self.plates)

    @property
    def reparameterized(self) -> bool:
        """Whether a gradient reaches the site's distribution through its value."""
        return bool(getattr(self.fn, "has_rsample", False))

    def sum_to(self, plates: Iterable[Plate], nesting: int) -> Tensor:
        """`user_scale * log_prob`, summed (with N/B) over all plates but these: (K, *plates)."""
        keep = {p.name for p in plates}
        out = self.log_prob * self.user_scale
        for p in self.plates:
            if p.name not in keep:
                out = out.sum(p.dim, keepdim=True) * p.scale
        return out


@dataclass
class LogWeights:
    """What one run of guide and model says, site by site.

    Attributes:
        model: name -> Term, log p of every sample site (marginalised discrete ones are gone, their
            factor is called "marginal:" and their names).
        guide: name -> Term, log q of every sample site.
        particles: K.
        nesting: number of plate dimensions, so that every `log_prob` has 1 + nesting dimensions.
    """

    model: dict[str, Term]
    guide: dict[str, Term]
    particles: int
    nesting: int
    resample: Callable[[], dict[str, Term]] | None = field(default=None, repr=False)

    def terms(self) -> Iterator[tuple[int, Term]]:
        """Every term with its sign: + for the model, - for the guide."""
        for t in self.model.values():
            yield 1, t
        for t in self.guide.values():
            yield -1, t

    @property
    def plates(self) -> tuple[Plate, ...]:
        """The plates that every site shares: between their elements, weights are independent."""
        shared: dict[str, Plate] | None = None
        for _, t in self.terms():
            mine = {p.name: p for p in t.plates}
            shared = mine if shared is None else {k: v for k, v in shared.items() if k in mine}
        return tuple((shared or {}).values())

    @property
    def scale(self) -> float:
        """N/B of the shared plates."""
        return math.prod(p.scale for p in self.plates)

    def log_p(self) -> Tensor:
        """log p(x, z) per particle and element of the shared plates: (K, *shared), unscaled."""
        return self._sum(self.model)

    def log_q(self) -> Tensor:
        """log q(z | x) per particle and element of the shared plates: (K, *shared), unscaled."""
        return self._sum(self.guide)

    def log_weight(self) -> Tensor:
        """log p(x, z) - log q(z | x): (K, *shared), unscaled by N/B of the shared plates."""
        return self.log_p() - self.log_q()

    def total(self, per_datum: Tensor) -> Tensor:
        """Sum over the shared plates, times N/B: (K, *shared) -> (K,), (*shared) -> ()."""
        lead = per_datum.dim() - self.nesting
        return per_datum.flatten(lead).sum(-1) * self.scale if self.nesting else per_datum

    def elbo(self) -> Tensor:
        """log p - log q per particle, summed over data and scaled: (K,)."""
        return self.total(self.log_weight())

    def _sum(self, terms: Mapping[str, Term]) -> Tensor:
        shared = self.plates
        parts = [t.sum_to(shared, self.nesting) for t in terms.values()]
        shape = (self.particles, *(1,) * self.nesting)
        if not parts:
            return torch.zeros(shape)
        return functools.reduce(torch.add, parts).expand(
            torch.broadcast_shapes(*(p.shape for p in parts), shape)
        )

    def refuse_subsampled_joint(self, who: str) -> None:
        """Raise ValueError where a multi-sample bound would put N/B inside its logarithm."""
        shared = {p.name for p in self.plates}
        for _, t in self.terms():
            for p in t.plates:
                if p.scale != 1 and p.name not in shared:
                    outside = sorted(
                        s.name
                        for s in self.guide.values()
                        if p.name not in {q.name for q in s.plates}
                    )
                    raise ValueError(
                        f"{who}: latent {', '.join(outside)} lies outside the subsampled plate "
                        f"{p.name!r}, so the weights are joint over all data and the bound of a "
                        "mini-batch is biased. Use the full data (batch_size=None) or Trace()."
                    )

    def fixed(self) -> LogWeights:
        """The same weights with log q taken at the drawn values as constants.

        Its gradient is the score of the guide: subtracting it from the total derivative leaves
        the path derivative (Roeder et al. 2017, arXiv:1703.09194, eq. 5).
        """
        assert self.resample is not None
        return LogWeights(self.model, self.resample(), self.particles, self.nesting)


def log_weights(
    model: Callable,
    guide: Callable,
    *args: Any,
    particles: int = 1,
    nesting: int | None = None,
    full_sizes: Mapping[str, int] | None = None,
    vectorized: bool = True,
    model_values: Callable[[str, Tensor], Tensor] | None = None,
    **kwargs: Any,
) -> LogWeights:
    """Run guide and model once under a particle plate and return every site's log density.

    Discrete latents that the guide does not draw are summed out exactly; discrete guide sites
    marked `infer={"enumerate": "parallel"}` are averaged exactly under the guide.

    Args:
        model, guide: any Pyro pair.
        args, kwargs: their arguments.
        particles: K, how many draws of the latents.
        nesting: number of plate dimensions of the pair; found by a dry run when None.
        full_sizes: plate name -> N, for a plate that is only told the batch size.
        vectorized: one run under a plate (the pair must broadcast), or K runs one after another.
        model_values: maps (site, value) to the value that the model sees.

    Returns:
        LogWeights, all log densities shaped (K, *plates), in nats.

    Raises:
        ValueError: K < 1, or the pair's sites have shapes that do not fit its plates.
    """
    if particles < 1:
        raise ValueError(f"particles: expected K >= 1, got {particles}.")
    if nesting is None:
        nesting = plate_nesting(model, guide, *args, **kwargs)
    sizes = dict(full_sizes or {})
    if particles > 1 and not vectorized:
        draws = [
            log_weights(model, guide, *args, nesting=nesting, full_sizes=sizes,
                        model_values=model_values, **kwargs)
            for _ in range(particles)
        ]  # fmt: skip
        return stack(draws)

    dim = -nesting - 1
    plate = pyro.plate(PARTICLES, particles, dim=dim) if particles > 1 else None

    def wrap(fn: Callable) -> Callable:
        def run(*a: Any, **k: Any) -> Any:
            if plate is None:
                return fn(*a, **k)
            with pyro.plate(PARTICLES, particles, dim=dim):
                return fn(*a, **k)

        return run

    def trace_guide(given: Mapping[str, Tensor] | None = None) -> Any:
        run = wrap(guide)
        if given is not None:
            run = at(run, given)
        with poutine.enum(first_available_dim=dim - 1):
            return poutine.trace(run).get_trace(*args, **kwargs)

    guide_trace = trace_guide()
    seen = guide_trace
    if model_values is not None:
        seen = guide_trace.copy()
        for name, site in seen.nodes.items():
            if (
                _is_latent(site)
                and torch.is_tensor(site["value"])
                and site["value"].is_floating_point()
            ):
                seen.nodes[name] = {**site, "value": model_values(name, site["value"])}
    names = {n for n, s in guide_trace.nodes.items() if s["type"] == "sample"}
    marked = poutine.infer_config(wrap(model), functools.partial(_enumerate_unguided, names))
    with poutine.enum():
        model_trace = poutine.trace(poutine.replay(marked, trace=seen)).get_trace(*args, **kwargs)

    def resample() -> dict[str, Term]:
        values = {
            n: s["value"].detach()
            for n, s in guide_trace.nodes.items()
            if _is_latent(s) and _is_free(s) and torch.is_tensor(s["value"])
        }
        return _terms(trace_guide(values), particles, nesting, sizes)

    enumerated = [
        n for t in (model_trace, guide_trace) for n, s in t.nodes.items()
        if s["type"] == "sample" and s["infer"].get("_enumerate_dim") is not None
    ]  # fmt: skip
    if enumerated:
        p, q = _enumerated(model_trace, guide_trace, particles, nesting, sizes)
    else:
        p = _terms(model_trace, particles, nesting, sizes)
        q = _terms(guide_trace, particles, nesting, sizes)
    return LogWeights(p, q, particles, nesting, resample)


def simulate(
    model: Callable,
    *args: Any,
    values: Mapping[str, Tensor] | None = None,
    particles: int = 1,
    nesting: int = 0,
    **kwargs: Any,
) -> dict[str, Term]:
    """Run the model under a particle plate and draw its observed sites too.

    Args:
        model: any Pyro model; what it observes in `args` is replaced by draws.
        values: name -> value of a latent site, shaped as `Term.value`; the others are drawn.
        particles: K.
        nesting: number of plate dimensions of the model.

    Returns:
        name -> Term of every sample site: draws from the prior and from the prior predictive, or
        from the predictive distribution given `values`. Those with an `observation`, what the
        model had observed there, are the data.
    """
    run = at(model, values or {})

    def drawn(*a: Any, **k: Any) -> Any:
        with _Unobserved():
            return run(*a, **k)

    def plated(*a: Any, **k: Any) -> Any:
        if particles == 1:
            return drawn(*a, **k)
        with pyro.plate(PARTICLES, particles, dim=-nesting - 1):
            return drawn(*a, **k)

    return _terms(poutine.trace(plated).get_trace(*args, **kwargs), particles, nesting, {})


def by_plate(
    tensor: Tensor, event: int, plates: Iterable[Plate], particles: int, nesting: int
) -> tuple[Tensor, list[str | None]]:
    """A site's tensor with one axis for each plate that the site is in, and their names.

    Args:
        tensor: batch axes that broadcast to (K, *nesting), then `event` event axes.

    Returns:
        (K, *plates, *event), and a name or None for each axis after K, outermost plate first.
    """
    batch = tensor.dim() - event
    tensor = tensor.reshape((1,) * (nesting + 1 - batch) + tensor.shape)
    plate = {p.dim: p for p in plates}
    target = list(tensor.shape)
    target[0] = particles
    names: list[str | None] = []
    drop = []
    for dim in range(-nesting, 0):
        axis = nesting + 1 + dim
        if dim in plate:
            target[axis] = plate[dim].size
            names.append(plate[dim].name)
        elif target[axis] == 1:
            drop.append(axis)
        else:
            names.append(None)
    tensor = tensor.expand(target)
    return tensor.squeeze(drop) if drop else tensor, names + [None] * event


def plate_nesting(model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> int:
    """How many tensor dimensions the pair's plates use, by running it once on a forked seed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad(), no_validation():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        names = {n for n, s in guide_trace.nodes.items() if s["type"] == "sample"}
        marked = poutine.infer_config(model, functools.partial(_enumerate_unguided, names))
        with poutine.enum(first_available_dim=-20):
            model_trace = poutine.trace(poutine.replay(marked, trace=guide_trace)).get_trace(
                *args, **kwargs
            )
    return max(
        (-f.dim for t in (guide_trace, model_trace) for s in t.nodes.values()
         if s["type"] == "sample" for f in s["cond_indep_stack"] if f.vectorized),
        default=0,
    )  # fmt: skip


@contextmanager
def no_validation() -> Iterator[None]:
    """Distribution and trace checks off inside the block, as they were after it."""
    torch_flag = torch.distributions.Distribution._validate_args
    pyro_flag = pyro.infer.util.is_validation_enabled()
    poutine_flag = pyro.poutine.util.is_validation_enabled()
    try:
        pyro.enable_validation(False)
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(torch_flag)
        pyro.infer.util.enable_validation(pyro_flag)
        pyro.poutine.util.enable_validation(poutine_flag)


def stack(draws: list[LogWeights]) -> LogWeights:
    """Log weights of several runs as one, along the particle dimension."""
    first = draws[0]

    def join(half: str) -> dict[str, Term]:
        out = {}
        for name, term in getattr(first, half).items():
            parts = [getattr(d, half)[name] for d in draws]
            out[name] = Term(
                **{**term.__dict__, "log_prob": torch.cat([t.log_prob for t in parts])}
            )
        return out

    def resample() -> dict[str, Term]:
        halves = [d.fixed() for d in draws]
        return {
            n: Term(**{**t.__dict__, "log_prob": torch.cat([h.guide[n].log_prob for h in halves])})
            for n, t in halves[0].guide.items()
        }

    total = sum(d.particles for d in draws)
    return LogWeights(join("model"), join("guide"), total, first.nesting, resample)


# ---------------------------------------------------------------- Pyro's messages


def _is_latent(site: Mapping[str, Any]) -> bool:
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and isinstance(site["fn"], TorchDistributionMixin)
        and type(site["fn"]).__name__ != "_Subsample"
    )


def _is_free(site: Mapping[str, Any]) -> bool:
    """Whether a site's value is drawn, not computed from other sites as a Delta is."""
    fn = site["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__ != "Delta"


class _Unobserved(poutine.messenger.Messenger):
    """Observed sites are drawn, but for deterministic ones and factors."""

    def _pyro_sample(self, msg: Any) -> None:
        computed = msg["infer"].get("_deterministic") or type(msg["fn"]).__name__ == "Unit"
        if msg["is_observed"] and not computed:
            msg["infer"] = {**msg["infer"], "_observation": msg["value"]}
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def at(fn: Callable, values: Mapping[str, Tensor]) -> Callable:
    """`fn` with its latent sites fixed to `values`, shaped as `Term.value`; they stay latent.

    `log_weights(model, at(guide, values), ...)` has log p at those values.
    """

    class At(poutine.messenger.Messenger):
        def _pyro_sample(self, msg: Any) -> None:
            if msg["name"] in values and not msg["is_observed"]:
                msg["value"] = values[msg["name"]]
                msg["done"] = True

    def run(*a: Any, **k: Any) -> Any:
        with At():
            return fn(*a, **k)

    return run


def _enumerate_unguided(guided: set[str], site: Mapping[str, Any]) -> dict[str, Any]:
    if (
        site["type"] == "sample"
        and not site["is_observed"]
        and site["name"] not in guided
        and getattr(site["fn"], "has_enumerate_support", False)
    ):
        return {"enumerate": "parallel"}
    return {}


def _log_prob(site: Mapping[str, Any]) -> Tensor:
    """A site's log density, masked, not scaled."""
    lp = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    mask = site["mask"]
    if mask is None or mask is True:
        return lp
    if mask is False:
        return torch.zeros_like(lp)
    lp, mask = torch.broadcast_tensors(lp, mask)
    return torch.where(mask, lp, lp.new_zeros(()))


def _plates(site: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[Plate, ...]:
    out = []
    for f in site["cond_indep_stack"]:
        if not f.vectorized or f.name == PARTICLES:
            continue
        full = f.full_size if f.full_size is not None else f.size
        if full == f.size:
            full = sizes.get(f.name, full)
        out.append(Plate(f.name, f.dim, f.size, full / f.size))
    return tuple(out)


def _user_scale(site: Mapping[str, Any]) -> float | Tensor:
    """The site's scale without N/B of its plates."""
    scale = site["scale"]
    for f in site["cond_indep_stack"]:
        if f.full_size is not None and f.full_size != f.size:
            scale = scale / (f.full_size / f.size)
    return 1.0 if isinstance(scale, float) and abs(scale - 1) < 1e-12 else scale


def _terms(trace: Any, particles: int, nesting: int, sizes: Mapping[str, int]) -> dict[str, Term]:
    out = {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
            continue
        lp = _log_prob(site)
        out[name] = _term(name, site, _shaped(name, lp, particles, nesting), sizes)
    return out


def _term(name: str, site: Mapping[str, Any], lp: Tensor, sizes: Mapping[str, int]) -> Term:
    return Term(
        name, lp, _plates(site, sizes), _user_scale(site), site["is_observed"],
        bool(site["infer"].get("is_auxiliary")), site["fn"], site["value"], site["mask"],
        site["infer"].get("_enumerate_dim") is not None,
        bool(site["infer"].get("_deterministic")), site["infer"].get("_observation"),
    )  # fmt: skip


def _shaped(name: str, lp: Tensor, particles: int, nesting: int) -> Tensor:
    """(K, *plates), with ones for the plates that a site is not in."""
    if lp.dim() > nesting + 1 or (lp.dim() == nesting + 1 and lp.shape[0] not in (1, particles)):
        raise ValueError(
            f"site {name!r}: its log density has shape {tuple(lp.shape)}, but the pair has "
            f"{nesting} plate dimensions and {particles} particles. Declare event dimensions with "
            ".to_event(), or draw the particles one by one (vectorized=False)."
        )
    return lp.reshape((1,) * (nesting + 1 - lp.dim()) + lp.shape)


# ---------------------------------------------------------------- enumeration


def _enumerated(
    model_trace: Any, guide_trace: Any, particles: int, nesting: int, sizes: Mapping[str, int]
) -> tuple[dict[str, Term], dict[str, Term]]:
    """Terms of a pair with enumerated sites: model ones summed out, guide ones averaged."""
    for trace in (model_trace, guide_trace):
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and type(site["fn"]).__name__ == "_Subsample":
                trace.nodes[name] = {**site, "type": "subsample"}
        for site in trace.nodes.values():
            if site["type"] == "sample":
                site["unscaled_log_prob"] = site["log_prob"] = _log_prob(site)
    guide_trace.pack_tensors()
    model_trace.pack_tensors(guide_trace.plate_to_symbol)
    dims = {**guide_trace.symbol_to_dim, **model_trace.symbol_to_dim}

    def frames(site: Mapping[str, Any]) -> frozenset:
        return frozenset(f for f in site["cond_indep_stack"] if f.vectorized)

    def sites(trace: Any) -> dict[str, Any]:
        return {n: s for n, s in trace.nodes.items() if s["type"] == "sample"}

    plate_dims = set(range(-nesting - 1, 0))
    guided = {
        n: s for n, s in sites(guide_trace).items() if s["infer"].get("_enumerate_dim") is not None
    }
    summed = {
        n: s
        for n, s in sites(model_trace).items()
        if n not in guide_trace and s["infer"].get("_enumerate_dim") is not None
    }
    sum_symbols = {
        d for s in summed.values() for d in s["packed"]["log_prob"]._pyro_dims
        if dims[d] not in plate_dims
    } - {d for s in guided.values() for d in s["packed"]["log_prob"]._pyro_dims}  # fmt: skip

    def average(value: Tensor, ordinal: frozenset) -> Tensor:
        """E_q over the guide's enumerated sites of a packed term."""
        upstream = [s for s in guided.values() if frames(s) <= ordinal]
        q_dims = {d for s in upstream for d in s["packed"]["log_prob"]._pyro_dims}
        out = "".join(d for d in value._pyro_dims if dims[d] in plate_dims)
        if not any(d in q_dims and dims[d] not in plate_dims for d in value._pyro_dims):
            return value
        factors = [s["packed"]["log_prob"] for s in upstream]
        extra = {d for f in factors for d in f._pyro_dims if dims[d] in plate_dims} - set(out)
        out += "".join(sorted(extra))
        spec = ",".join([value._pyro_dims, *(f._pyro_dims for f in factors)]) + "->" + out
        mean = torch.einsum(spec, value, *(f.exp() for f in factors))
        mean._pyro_dims = out  # type: ignore[attr-defined]
        return mean

    def unpack(value: Tensor) -> Tensor:
        lp = packed.unpack(value, dims)
        return lp.reshape((1,) * (nesting + 1 - lp.dim()) + lp.shape)

    p: dict[str, Term] = {}
    factors: OrderedDict[frozenset, list[Tensor]] = OrderedDict()
    involved: list[tuple[str, Any]] = []
    for name, site in sites(model_trace).items():
        lp = site["packed"]["log_prob"]
        if sum_symbols.isdisjoint(lp._pyro_dims):
            p[name] = _term(name, site, unpack(average(lp, frames(site))), sizes)
        else:
            factors.setdefault(frames(site), []).append(lp)
            involved.append((name, site))
    if factors:
        scales = [_user_scale(s) for _, s in involved]
        scale = scales[0]
        if any(s is not scale and bool(s != scale) for s in scales):
            raise ValueError(
                f"sites {[n for n, _ in involved]}: those that share an enumerated latent must "
                f"have one poutine.scale, got {scales}."
            )
        known = {f.name: f for _, s in involved for f in s["cond_indep_stack"]}
        contracted = contract_tensor_tree(factors, sum_symbols)
        label = ",".join(n for n, _ in involved)
        for i, (ordinal, parts) in enumerate(contracted.items()):
            for j, part in enumerate(parts):
                name = f"marginal:{label}" + (f"[{i},{j}]" if i + j else "")
                at = {"cond_indep_stack": tuple(known[f.name] for f in ordinal)}
                lp = unpack(average(part, ordinal))
                p[name] = Term(name, lp, _plates(at, sizes), scale, observed=True, fn=None)
    q = {
        n: _term(n, s, unpack(average(s["packed"]["log_prob"], frames(s))), sizes)
        for n, s in sites(guide_trace).items()
    }
    return p, q
