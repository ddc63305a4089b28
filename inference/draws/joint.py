"""log p(x, u) of a model's continuous latents on the real line, at many points at once."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.infer.autoguide import AutoContinuous
from torch import Tensor, nn

from ..graph import TraceFailure, traced
from ..pairs.pair import Pair, modules_of, own_copy
from ..randomness import ALONE, DrawnAnew, forked
from ..weights import LogWeights, log_weights, no_validation
from ..weights.sites import at_zero, is_discrete
from ..weights.supports import Following
from .arrays import coordinate_names
from .sampler import NUMBERS

RADIUS = 2.0  # starts are uniform in (-2, 2) on the real line, as Stan's are


def continuous(model: Callable) -> Callable:
    """The model, its discrete latents hidden: they are summed out.

    Raises:
        ValueError: (when called) a latent is discrete and has no finite support.
    """

    def hidden(msg: Any) -> bool:
        if is_discrete(msg):
            return True
        if msg["type"] == "sample" and not msg["is_observed"] and msg["name"]:
            support = getattr(msg["fn"], "support", None)
            if getattr(support, "is_discrete", False):
                raise ValueError(
                    f"site {msg['name']!r}: a {type(msg['fn']).__name__} takes infinitely many "
                    "values, so it cannot be summed out, and it has no place on the real line. Sum "
                    "it out by hand, or write a guide for it and use fit(model, guide, data)."
                )
        return False

    return poutine.block(model, hide_fn=hidden)


class PackedPoint(AutoContinuous, Following):
    """A point u on the real line: its log weight is log p(x, u)."""

    def __init__(self, model: Callable):
        super().__init__(continuous(model), init_loc_fn=at_zero)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.loc = nn.Parameter(self._init_loc())

    def get_posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """The point mass."""
        return dist.Delta(self.loc).to_event(1)


class LogJoint:
    """log p(x, z(u)) + log |dz/du|: (K, D) -> (K,), in float64 where the model allows it.

    Args:
        model: its discrete latents are summed out.
        args, kwargs: its arguments.

    Attributes:
        dim: D.
        names: of the coordinates: `tau`, `theta[3]`.
        note: what was given up, and why; empty where nothing was.

    Raises:
        ValueError: a discrete latent that cannot be summed out; no continuous latent; parameters
            that the model learns.
    """

    def __init__(self, model: Callable, args: tuple, kwargs: dict | None = None):
        self.note, self.kwargs = "", dict(kwargs or {})
        self._set_up(model, args, torch.float64)
        try:
            self.weights(torch.zeros(1, self.dim, dtype=self.dtype))
        except RuntimeError as error:  # tensors of its own that do not mix with float64
            self._set_up(model, args, torch.get_default_dtype())
            self.note = f"the log joint is taken in {self.dtype}: {str(error).splitlines()[0]}"
        ways = self._under_plate, self._under_vmap, self._one_by_one
        self._rows = next(way for way in ways if self._agrees(way))

    def _set_up(self, model: Callable, args: tuple, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.args = tuple(
            a.to(dtype) if torch.is_tensor(a) and a.is_floating_point() else a for a in args
        )
        (own, _) = own_copy(model, _nothing)
        for module in modules_of(own):
            module.to(dtype)
        guide = PackedPoint(own)
        with self._ready(), forked():
            try:
                self.pair = Pair(own, guide, self.args, self.kwargs)
            except RuntimeError as error:
                if "found no latent variables" not in str(error):
                    raise
                raise ValueError(
                    "the model has no continuous latent: there is no posterior to be looked for."
                ) from None
        (self._place,) = (n for n in self.pair.params if n in ("PackedPoint.loc", "loc"))
        self._others = {n: p for n, p in self.pair.params.items() if n != self._place}
        if self._others:
            raise ValueError(
                f"the model learns {', '.join(self._others)}, beside its latents: expected latents "
                "alone. Give each a prior, or fit(model, make_guide(...), data)."
            )
        self.dim = len(self.pair.params[self._place])
        self.names = [
            name
            for site in guide.prototype_trace.iter_stochastic_nodes()
            for name in coordinate_names(site[0], guide._unconstrained_shapes[site[0]])
        ]

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The dtype of numbers that the model makes, without distributions' own checks."""
        with ALONE, no_validation():
            before = torch.get_default_dtype()
            torch.set_default_dtype(self.dtype)
            try:
                yield
            finally:
                torch.set_default_dtype(before)

    def weights(self, u: Tensor) -> LogWeights:
        """The log densities of all sites at points (K, D), together."""
        where = u.reshape(len(u), *(1,) * self.pair.nesting, -1) if len(u) > 1 else u[0]
        with self._ready(), self.pair.bind({self._place: where}, self.pair.buffers):
            return log_weights(
                self.pair.model, self.pair.guide, *self.args, particles=len(u),
                nesting=self.pair.nesting, **self.kwargs,
            )  # fmt: skip

    def __call__(self, u: Tensor) -> Tensor:
        """(K, D) -> (K,), nats; -inf where the model gives no number."""
        value = torch.cat([self._tried(rows) for rows in u.to(self.dtype).split(self.most)])
        return torch.where(value.isnan(), -math.inf, value)

    def with_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(K, D) -> (K,) and its gradient (K, D); zero where either is not finite."""
        parts = []
        for rows in u.detach().to(self.dtype).split(self.most):
            with torch.enable_grad():
                rows = rows.requires_grad_()
                value = self(rows)
                # a log joint may depend on nothing
                (gradient,) = torch.autograd.grad(value.sum() + 0.0 * rows.sum(), rows)
            value = torch.where(gradient.isfinite().all(-1), value.detach(), -math.inf)
            parts.append((value, torch.where(value[:, None] > -math.inf, gradient, 0.0)))
        values, gradients = zip(*parts)
        return torch.cat(values), torch.cat(gradients)

    def traced(self, rows: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """`with_gradient` at so many points, its Python gone: one graph of tensor operations.

        Where the model cannot be traced, or the graph has other values, `with_gradient` itself.
        """
        own = torch.linspace(-0.5, 0.5, rows * self.dim, dtype=self.dtype).reshape(rows, -1)

        def both(u: Tensor) -> Tensor:
            with torch.enable_grad():
                u = u.detach().requires_grad_()
                value = self._rows(u)
                (gradient,) = torch.autograd.grad(value.sum() + 0.0 * u.sum(), u)
            return torch.cat([value.detach()[:, None], gradient], -1)

        def run(u: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                out = graph(u)
            finite = out.isfinite().all(-1)
            gradient = torch.where(finite[:, None], out[:, 1:], 0.0)
            return torch.where(finite, out[:, 0], -math.inf), gradient

        if rows > self.most or self._rows == self._one_by_one:
            return self.with_gradient
        try:
            with forked():
                graph = traced(both, [own])
            same = all(
                torch.allclose(a, b, rtol=1e-6, equal_nan=True)
                for a, b in zip(run(own), self.with_gradient(own))
            )
        except (TraceFailure, ValueError, RuntimeError):
            return self.with_gradient
        return run if same else self.with_gradient

    @functools.cached_property
    def most(self) -> int:
        """Points in one run of the model, so that memory is bounded."""
        w = self.weights(torch.zeros(1, self.dim, dtype=self.dtype))
        return max(2, NUMBERS // max(1, sum(t.log_prob.numel() for _, t in w.terms())))

    def _tried(self, u: Tensor) -> Tensor:
        """The log joint of rows, -inf where a matrix cannot be factorised."""
        try:
            return self._rows(u)
        except torch.linalg.LinAlgError:
            if len(u) > 1:
                return torch.cat([self._tried(half) for half in u.tensor_split(2)])
            return 0 * u.sum(-1) - math.inf

    def _under_plate(self, u: Tensor) -> Tensor:
        return self.weights(u).elbo()

    def _under_vmap(self, u: Tensor) -> Tensor:
        def one(row: Tensor) -> Tensor:
            return self.weights(row[None]).elbo()[0]

        with DrawnAnew(), warnings.catch_warnings():
            # no tensor requires a gradient under `vmap`, which Pyro takes for a frozen parameter
            warnings.filterwarnings("ignore", ".*was not registered in the param store")
            return torch.vmap(one, randomness="different")(u)

    def _one_by_one(self, u: Tensor) -> Tensor:
        return torch.cat([self.weights(row[None]).elbo() for row in u])

    def _agrees(self, way: Callable[[Tensor], Tensor]) -> bool:
        """Tell whether points together have the log joints that they have one by one."""
        u = torch.linspace(-0.5, 0.5, 3 * self.dim, dtype=self.dtype).reshape(3, -1)
        try:
            with torch.no_grad():
                same = torch.allclose(way(u), self._one_by_one(u), rtol=1e-4, equal_nan=True)
        except (RuntimeError, ValueError, IndexError):
            return False
        return same or way == self._one_by_one

    def starts(self, paths: int) -> Tensor:
        """Points with a finite log joint, (paths, D), uniform in (-2, 2)^D.

        Raises:
            ValueError: there are none; the site whose log density is infinite is named.
        """
        found: list[Tensor] = []
        for radius in (RADIUS, RADIUS, RADIUS, RADIUS / 10, RADIUS / 10):
            u = radius * (2 * torch.rand(2 * paths, self.dim, dtype=self.dtype) - 1)
            value, _ = self.with_gradient(u)
            found += u[value > -math.inf]
            if len(found) >= paths:
                break
        if found:
            return torch.stack([found[i % len(found)] for i in range(paths)])
        weights = self.weights(u[:1])
        bad = [n for n, t in weights.model.items() if not t.log_prob.isfinite().all()]
        raise ValueError(
            f"the log joint is not finite at any of {10 * paths} starts: site "
            f"{', '.join(map(repr, bad)) or 'unknown'} gives -inf or no number there. Check its "
            "support against the data, and the transformations before it."
        )


def _nothing() -> None:
    """No guide."""
