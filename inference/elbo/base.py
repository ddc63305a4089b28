"""The base of all estimators: a bound, and a scalar whose gradient is followed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pyro.infer
import torch
from torch import Tensor

from ..pairs.gate import nesting_of
from ..pairs.options import nearest, whole
from ..weights import LogWeights, log_weights
from .pieces import score_function


class Estimator(pyro.infer.ELBO):
    """A bound on log p(x) and its gradient. To add one, write `bound`.

    Args:
        particles: K, draws of the latents per datum.
        vectorized: draw them in one run of the pair (which must broadcast), or one by one.

    Attributes:
        is_bound: whether the value is a lower bound on log p(x) in expectation.
        is_tight: whether it reaches log p(x) where the guide is the exact posterior.
        follows_bound: whether the surrogate's gradient is, in expectation, that of the bound.
        closed_form: whether divergences are taken site by site in closed form.
        step: number of updates made so far (an int, or a tensor inside a compiled step).
    """

    is_bound: bool = True
    is_tight: bool = True
    follows_bound: bool = True
    closed_form: bool = False
    step: int | Tensor = 0

    def __init__(self, particles: int = 1, *, vectorized: bool = True):
        whole("particles", particles)
        super().__init__(num_particles=particles, vectorize_particles=vectorized)
        self.particles = particles
        self.vectorized = vectorized

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
        return log_weights(
            model, guide, *args, particles=self.particles, vectorized=self.vectorized, **kwargs
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
        """The keywords with the pair's nesting, after a pair that is new has passed the gate."""
        if "nesting" in kwargs:
            return kwargs
        own = ("full_sizes", "model_values")
        theirs = {k: v for k, v in kwargs.items() if k not in own}
        return {**kwargs, "nesting": nesting_of(model, guide, args, theirs, repr(self))}

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


# Pyro's estimators by name, and what does the same here
OF_PYRO = {
    "Trace_ELBO": "Trace()", "JitTrace_ELBO": "Trace()", "TraceGraph_ELBO": "Trace(8)",
    "JitTraceGraph_ELBO": "Trace(8)", "TraceMeanField_ELBO": "MeanField()",
    "JitTraceMeanField_ELBO": "MeanField()", "TraceEnum_ELBO": "Enum()",
    "JitTraceEnum_ELBO": "Enum()", "RenyiELBO": "IWAE(8) or elbo.Renyi(alpha, 8)",
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
    known = {c.__name__ for c in _descendants(Estimator) if not c.__name__.startswith("_")}
    name = getattr(given, "__name__", type(given).__name__)
    hint = "elbo.IWAE(8)"
    if isinstance(given, str):
        name = repr(given)
        stem, _, rest = given.partition("(")
        near = {k.lower(): k for k in known}.get(stem.lower()) or nearest(stem, known, bare=True)
        hint = f"elbo.{near}({rest or ')'}" if near else hint
    elif name in OF_PYRO:
        name, hint = f"Pyro's {name}", f"elbo.{OF_PYRO[name]}"
    raise TypeError(f"elbo: expected an estimator of inference.elbo, got {name}; write {hint}.")


def _descendants(kind: type) -> list[type]:
    return [c for k in kind.__subclasses__() for c in (k, *_descendants(k))]
