"""The base of all estimators, and the pieces that bounds and their gradients are made of."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pyro.infer
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ..pairs.gate import known_of
from ..pairs.options import nearest, whole
from ..randomness import forked, is_transformed
from ..weights import LogWeights, Term, log_weights
from .baselines import baseline_of, same_baselines


class Estimator(pyro.infer.ELBO):
    """A bound on log p(x) and its gradient. To add one, write `bound`.

    Args:
        particles: K, draws of the latents per datum.
        vectorized: draw them together (under a plate where the pair broadcasts, else by
            `torch.vmap`), or one by one.

    Attributes:
        is_bound: whether the value is a lower bound on log p(x) in expectation.
        is_tight: whether it reaches log p(x) where the guide is the exact posterior.
        follows_bound: whether the surrogate's gradient is, in expectation, that of the bound.
        is_unbiased: whether its gradient is meant to be without bias; else the bias is measured.
        closed_form: whether divergences are taken site by site in closed form.
        step: number of updates made so far (an int, or a tensor inside a compiled step).
    """

    is_bound: bool = True
    is_tight: bool = True
    follows_bound: bool = True
    is_unbiased: bool = True
    closed_form: bool = False
    step: int | Tensor = 0

    def __init__(self, particles: int = 1, *, vectorized: bool = True):
        whole("particles", particles)
        super().__init__(num_particles=particles, vectorize_particles=vectorized)
        self.particles = particles
        self.vectorized = vectorized
        self._averages: dict[str, Tensor] = {}
        self._looked_at: set[str] = set()

    @property
    def draws(self) -> int:
        """The draws of a run: K, and more where some serve another purpose."""
        return self.particles

    def bound(self, weights: LogWeights) -> Tensor:
        """The bound in nats, summed over data and scaled by N/B: a scalar."""
        raise NotImplementedError

    def surrogate(self, weights: LogWeights) -> Tensor:
        """A scalar whose gradient estimates the bound's. Its value means nothing.

        Unless overridden, ∇ E_q[bound] = E_q[∇ bound] + E_q[bound · ∇ log q], the second part for
        guide sites that are not reparameterised. True of every bound; subclasses know which part
        of the bound a site can influence, and have less variance.
        """
        return self.bound(weights) + self.score(weights)

    def score(self, weights: LogWeights) -> Tensor | float:
        """The score-function part, for guide sites that are not reparameterised."""
        return score_function(weights, lambda term: self.bound(weights))

    def draw(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LogWeights:
        """The log weights that this estimator needs."""
        kwargs["vectorized"] = self.vectorized and kwargs.get("vectorized", True)
        weights = log_weights(model, guide, *args, particles=self.draws, **kwargs)
        weights.averages = self._averages
        self._refuse_own_draw(weights, partial(log_weights, model, guide, *args, **kwargs))
        return weights

    def _refuse_own_draw(self, weights: LogWeights, again: Callable[..., LogWeights]) -> None:
        """Raise ValueError where a site's baseline changes with the draw that it is meant for."""
        for name, term in weights.guide.items():
            if not term.infer.get("baseline") or name in self._looked_at or is_transformed():
                continue
            self._looked_at.add(name)
            drawn = {n: t.value for n, t in weights.guide.items() if t.free and not t.observed}
            other = term.fn.sample()
            drawn[name] = torch.where(other == term.value, 1 - term.value, other)
            with forked(), torch.no_grad():
                found = again(given=drawn, particles=weights.particles).guide[name]
            if not same_baselines(term.infer["baseline"], found.infer["baseline"]):
                raise ValueError(
                    f"site {name!r}: its baseline changes with the draw that it is meant for, "
                    "which makes the gradient biased. Compute it from the data and from what is "
                    "drawn before."
                )

    def value_and_surrogate(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The bound (detached) and the surrogate from one draw."""
        weights = self.draw(model, guide, *args, **kwargs)
        surrogate = self.surrogate(weights)
        with torch.no_grad():
            return self.bound(weights), surrogate

    def reference(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> Tensor:
        """A scalar whose gradient has the bound's expectation by definition, whatever the variance.

        ∇ E_q[bound] = E_q[∇ bound] + E_q[(bound - b) · ∇ log q], b the bound of another draw. What
        the surrogate of an estimator that `follows_bound` is tested against.
        """
        weights = Estimator.draw(self, model, guide, *args, **kwargs)
        bound = self.bound(weights)
        if not any(term.scored for term in weights.guide.values()):
            return bound
        with torch.no_grad():
            other = self.bound(Estimator.draw(self, model, guide, *args, **kwargs))
        return bound + score_function(weights, lambda site: bound - other)

    # Pyro's names

    def loss(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """-bound, as a float."""
        kwargs = self._gated(model, guide, args, kwargs)
        with torch.no_grad():
            return -float(self.bound(self.draw(model, guide, *args, **kwargs)))

    def differentiable_loss(
        self, model: Callable, guide: Callable, *args: Any, **kwargs: Any
    ) -> Tensor:
        """-bound, as a tensor whose gradient is the estimator's."""
        kwargs = self._gated(model, guide, args, kwargs)
        value, surrogate = self.value_and_surrogate(model, guide, *args, **kwargs)
        return -(surrogate + (value - surrogate).detach())

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        """-bound, as a float, after adding its gradient to the parameters' `.grad`."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        if not isinstance(self.step, Tensor):
            self.step += 1
        return float(loss.detach())

    def _gated(self, model: Callable, guide: Callable, args: tuple, kwargs: dict) -> dict:
        """The keywords with what is known of the pair, after a new one has passed the gate."""
        if "nesting" in kwargs:
            return kwargs
        many = self.particles > 1 and self.vectorized
        return {**kwargs, **known_of(model, guide, args, of_the_pair(kwargs), repr(self), many)}

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("these estimators work on log weights: see `draw`.")

    def __repr__(self) -> str:
        parts = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            if parameter.kind is not parameter.KEYWORD_ONLY:
                parts.append(f"{value!r}")
            elif value != parameter.default:
                parts.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


class AtConstants(Estimator):
    """An estimator that differentiates log p(x, z) and log q(z) at draws z that are constants."""

    def draw(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> LogWeights:
        """Latents as constants, in the model and in the guide's density."""
        kwargs["model_values"] = lambda name, value: value.detach()
        return super().draw(model, guide, *args, **kwargs).at_constants(repr(self))


def of_the_pair(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of the pair itself, without those of `log_weights`."""
    own = ("nesting", "full_sizes", "model_values", "vectorized")
    return {k: v for k, v in kwargs.items() if k not in own}


# Pyro's estimators by name, those of JitTrace_ELBO and its kin too, and what does the same here
OF_PYRO = {
    "Trace_ELBO": "Trace()", "TraceGraph_ELBO": "Trace(8)", "TraceMeanField_ELBO": "MeanField()",
    "TraceEnum_ELBO": "Enum()", "RenyiELBO": "IWAE(8) or elbo.Renyi(alpha, 8)",
    "ReweightedWakeSleep": "WakeSleep(8)", "Trace_MMD": "MMD()", "TraceTailAdaptive_ELBO": "CUBO()",
}  # fmt: skip


def estimator_of(given: Any, default: Callable[[], Estimator]) -> Estimator:
    """Return the estimator that is meant: one of them, its class, or the default for None.

    Raises:
        TypeError: anything else; what to write instead is said.
    """
    if given is None:
        return default()
    if isinstance(given, Estimator):
        return given
    if inspect.isclass(given) and issubclass(given, Estimator):
        return given()
    name, hint = getattr(given, "__name__", type(given).__name__), "IWAE(8)"
    if isinstance(given, str):
        known = {c.__name__ for c in _descendants(Estimator) if not c.__name__.startswith("_")}
        name, (stem, _, rest) = repr(given), given.partition("(")
        near = {k.lower(): k for k in known}.get(stem.lower()) or nearest(stem, known, bare=True)
        hint = f"{near}({rest or ')'}" if near else hint
    elif (of_pyro := name.removeprefix("Jit")) in OF_PYRO:
        name, hint = f"Pyro's {name}", OF_PYRO[of_pyro]
    raise TypeError(
        f"elbo: expected an estimator of inference.elbo, got {name}; write elbo.{hint}."
    )


def _descendants(kind: type) -> list[type]:
    children: list[type] = kind.__subclasses__()
    return [c for k in children for c in (k, *_descendants(k))]


def score_function(weights: LogWeights, signal: Callable[[Term], Tensor]) -> Tensor | float:
    """Σ log q(z) · signal over the guide sites that need the score function: a scalar.

    Its gradient is the score times the signal, which is taken as a constant, less the site's own
    baseline where it has one; that learns by the same gradient.

    Args:
        signal: guide site -> what its score is multiplied by, broadcastable to (K, *plates).

    Raises:
        ValueError: the site depends on an enumerated one; its score and its signal would have to
            be averaged together.

    Source: Ranganath et al. 2014, Black box variational inference, arXiv:1401.0118, section 2.
    """
    total: Tensor | float = 0.0
    for term in weights.guide.values():
        if not term.scored:
            continue
        if term.averaged:
            raise ValueError(
                f"guide site {term.name!r} is not reparameterised and depends on an enumerated "
                "guide site. Enumerate it too (infer={'enumerate': 'parallel'}), or draw both."
            )
        own = signal(term).detach()
        if term.infer.get("baseline"):
            own = own.expand(torch.broadcast_shapes(own.shape, term.log_prob.shape))
            value, loss = baseline_of(term, own, weights.averages)
            own, total = own - value, total - loss
        total = total + (term.log_prob * own).sum()
    return total


def reach(costs: Iterable[tuple[float | Tensor, Term]], site: Term) -> Tensor:
    """The part of a sum of (factor, term) that a guide site can influence: (K, *site's plates).

    Elements of a plate are independent, so only the costs of element i are summed for element i
    (Rao-Blackwellisation over plates); costs outside the site's plates count in full, N/B in.
    """
    mine = {p.name for p in site.plates}
    total: Tensor | float = 0.0
    for factor, term in costs:
        cost = (factor * term.scale * term.log_prob).detach()
        for p in term.plates:
            if p.name not in mine:
                cost = cost.sum(p.dim, keepdim=True)
        total = total + cost
    assert isinstance(total, Tensor)
    return total


def less_the_others(signal: Tensor, dims: tuple[int, ...] = (0,)) -> Tensor:
    """The signal minus its mean over the other elements along `dims` (left alone if there is one).

    The others do not depend on this element's draw, so the score's expectation stays.
    """
    n = math.prod(signal.shape[d] for d in dims)
    if n == 1:
        return signal
    total = signal.sum(dims, keepdim=True)
    return signal - (total - signal) / (n - 1)


def log_mean(log_w: Tensor, dim: int = 0) -> Tensor:
    """log of the mean of weights given by their logarithms."""
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])


def latent_of(guide_site: str, latents: Iterable[str]) -> str | None:
    """The latent that a guide site draws or, as an auxiliary site `<name>_...`, helps to make."""
    near = [n for n in latents if guide_site == n or guide_site.startswith(f"{n}_")]
    return max(near, key=len, default=None)


def kl_by_site(weights: LogWeights) -> dict[str, Tensor]:
    """E_q[log q - log p] per latent of the model, summed over data and scaled: scalars, nats.

    An auxiliary guide site `<name>_...` is counted with the latent that it makes. Latents whose
    prior was summed out together with others are left out: they have no divergence of their own.
    """
    out = {n: -p.total() for n, p in weights.model.items() if not (p.observed or p.deterministic)}
    for name, q in weights.guide.items():
        target = latent_of(name, out)
        if target is None and not any(name in p.sites for p in weights.model.values()):
            target = name
        if target is not None:
            out[target] = out.get(target, 0.0) + q.total()
    return out


def analytic_kl(q: Term, p: Term) -> Tensor | None:
    """KL(q || p) of two sites, (K, *plates); None where there is no closed form for the pair.

    Where only one of the two is masked, the sampled log q - log p stands in.
    """
    a, b = q.user_scale, p.user_scale
    same = a is b or (not (torch.is_tensor(a) or torch.is_tensor(b)) and a == b)
    if not (q.free and same) or q.enumerated or q.mask is False or p.mask is False:
        return None
    try:
        kl = kl_divergence(q.fn, p.fn)
    except NotImplementedError:
        return None
    if kl.dim() > q.log_prob.dim():  # varies with an enumerated site
        return None
    kl = kl.reshape((1,) * (q.log_prob.dim() - kl.dim()) + kl.shape)
    for mask in (q.mask, p.mask):
        if torch.is_tensor(mask):
            kl = torch.where(mask, kl, q.log_prob - p.log_prob)
    return kl


class OverBase(Estimator):
    """An estimator over another, `base`, whose count of updates is its own."""

    base: Estimator

    @property
    def step(self) -> int | Tensor:  # type: ignore[override]
        """Number of updates made so far: the base's, whose schedule it drives."""
        return self.base.step

    @step.setter
    def step(self, count: int | Tensor) -> None:
        self.base.step = count
