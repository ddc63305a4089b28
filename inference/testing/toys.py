"""Small pairs whose log p(x) and posterior are known, for testing estimators. All in float64.

Each has `model`, `guide`, `data()`, and `log_px(x)` in nats over all rows. With `exact=True` the
guide starts at the posterior, else at a fixed distance from it.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

ROWS = 5


def _rows(*shape: int) -> Tensor:
    """Fixed numbers that look like draws, without touching the random state."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Toy(nn.Module):
    """Parameters of the model and of the guide under names that tell them apart."""

    distance = 0.4  # from the posterior, in the guide's parameters
    x: Tensor  # the data
    model: Any  # p(latents) p(data | latents)
    guide: Any  # q(latents | data)
    log_px: Any

    def __init__(self, model: dict[str, Tensor], guide: dict[str, Tensor], exact: bool):
        super().__init__()
        off = 0.0 if exact else self.distance
        self.p = nn.ParameterDict({k: nn.Parameter(v) for k, v in model.items()})
        self.guide_ = nn.ParameterDict(
            {k: nn.Parameter(v + off * _off(v)) for k, v in guide.items()}
        )

    def data(self) -> Tensor:
        """x, the same few rows at every call."""
        return self.x

    def rows(self, x: Tensor, size: int | None) -> pyro.plate:
        """The data plate; `size` rows in all, where x is a mini-batch. Tell Pyro the parameters."""
        pyro.module("toy", self)
        return pyro.plate("data", size or len(x), subsample=x)


def _numbers(value: float | list) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _off(value: Tensor) -> Tensor:
    return torch.cos(torch.arange(value.numel(), dtype=torch.float64)).reshape(value.shape)


class LinearGaussian(Toy):
    """z_i ~ N(0, I₂), x_i | z_i ~ N(W z_i + b, I₃); q(z_i | x_i) = N(A x_i + c, diag s²).

    The posterior has precision P = I + WᵀW, diagonal since the columns of W are orthogonal, and
    mean P⁻¹ Wᵀ (x - b). Sites z, x; plate data.
    """

    x = 1.2 * _rows(ROWS, 3)  # (5, 3)

    def __init__(self, exact: bool = False):
        w = _numbers([[1.0, 0.3], [-0.5, 0.8], [0.2, 0.5]])
        b = _numbers([0.5, -0.2, 0.1])
        covariance = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + w.T @ w)
        a = covariance @ w.T
        guide = {"a": a, "c": -a @ b, "log_scale": covariance.diagonal().log() / 2}
        super().__init__({"w": w, "b": b}, guide, exact)

    def log_px(self, x: Tensor) -> Tensor:
        """The sum over rows of log N(x; b, W Wᵀ + I)."""
        w, b = self.p["w"].detach(), self.p["b"].detach()
        marginal = dist.MultivariateNormal(b, w @ w.T + torch.eye(3, dtype=w.dtype))
        return marginal.log_prob(x).sum()

    def model(self, x: Any, size: int | None = None, keep: Any = True) -> None:
        """p(z) p(x | z); rows where `keep` is False are masked."""
        with self.rows(x, size), pyro.poutine.mask(mask=keep):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            mean = z @ self.p["w"].T + self.p["b"]
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    def guide(self, x: Any, size: int | None = None, keep: Any = True) -> None:
        """q(z | x)."""
        mean = x @ self.guide_["a"].T + self.guide_["c"]
        scale = self.guide_["log_scale"].exp()
        with self.rows(x, size), pyro.poutine.mask(mask=keep):
            pyro.sample("z", dist.Normal(mean, scale).to_event(1))


class GlobalLocal(Toy):
    """w ~ N(m, 1), z_i | w ~ N(w, 1), x_i | z_i ~ N(z_i, 1): one latent for all data, one for each.

    Marginally x_i | w ~ N(w, 2), so w | x ~ N((m + Σ x_i / 2) / P, 1/P), P = 1 + N/2, and
    z_i | w, x_i ~ N((w + x_i) / 2, 1/2), which is the guide's form. Sites w, z, x; plate data.
    """

    x = 1.5 * _rows(ROWS)  # (5,)

    def __init__(self, exact: bool = False):
        x = self.data()
        precision = 1 + len(x) / 2
        m = _numbers(0.3)
        guide = {
            "mean": (m + x.sum() / 2) / precision,
            "log_scale": -0.5 * _numbers(precision).log(),
            "slope": _numbers(0.5),
            "log_scale_z": _numbers(0.5).log() / 2,
        }
        super().__init__({"m": m}, guide, exact)

    def log_px(self, x: Tensor) -> Tensor:
        """log N(x; m 1, 2 I + 1 1ᵀ)."""
        covariance = 2 * torch.eye(len(x), dtype=x.dtype) + 1
        mean = self.p["m"].detach().expand(len(x))
        return dist.MultivariateNormal(mean, covariance).log_prob(x)

    def model(self, x: Any, size: int | None = None) -> None:
        """p(w) Π p(z_i | w) p(x_i | z_i)."""
        w = pyro.sample("w", dist.Normal(self.p["m"], 1.0))
        with self.rows(x, size):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Any, size: int | None = None) -> None:
        """q(w) Π q(z_i | w, x_i)."""
        g = self.guide_
        w = pyro.sample("w", dist.Normal(g["mean"], g["log_scale"].exp()))
        with self.rows(x, size):
            mean = g["slope"] * w + (1 - g["slope"]) * x
            pyro.sample("z", dist.Normal(mean, g["log_scale_z"].exp()))


class Nested(Toy):
    """A hierarchy with everything in it: nested plates, a mask, two observed sites, one scaled.

    w ~ N(m, 1), z_j | w ~ N(w, 1), y_j | z_j ~ N(z_j + b, 2²), x_ij | z_j ~ N(z_j, 1), where some
    x_ij are missing and y_j is counted twice (its likelihood is squared). With the precision
    τ_j = n_j + 1/2 of what is seen of group j, z_j | w, x, y is normal with precision 1 + τ_j and a
    mean linear in w, and w | x, y is normal. Sites w, z, y, x; plates groups and, inside, repeats.
    """

    x = 1.2 * _rows(3, 5)  # (3, 5), a row per group: y_j, then x_1j to x_4j
    twice = 2.0
    keep: Any  # which x_ij were seen, (repeats, groups)

    def __init__(self, exact: bool = False):
        rows = self.data()
        m, b = _numbers(0.3), _numbers(-0.5)
        keep = torch.tensor([[1, 1, 0], [1, 0, 1], [1, 1, 1], [0, 1, 1]]) > 0
        seen = keep.double().sum(0) + self.twice / 4  # τ
        total = (rows[:, 1:].T * keep).sum(0) + self.twice * (rows[:, 0] - b) / 4
        share = seen / (1 + seen)  # precision of group j's data about w
        precision = 1 + share.sum()
        guide = {
            "mean": (m + (total / (1 + seen)).sum()) / precision,
            "log_scale": -0.5 * precision.log(),
            "slope": 1 / (1 + seen),
            "start": total / (1 + seen),
            "log_scale_z": -0.5 * (1 + seen).log(),
        }
        super().__init__({"m": m, "b": b}, guide, exact)
        self.register_buffer("keep", keep)

    def log_px(self, x: Tensor) -> Tensor:
        """log N of all that was seen, y_j with variance 2, plus what squaring changes of its norm.

        N(y; μ, 4)² = N(y; μ, 2) / √(16 π).
        """
        groups, keep = len(x), self.keep
        at = torch.cat([torch.arange(groups), *(torch.arange(groups)[k] for k in keep)])
        values = torch.cat([x[:, 0], *(row[k] for row, k in zip(x[:, 1:].T, keep))])
        noise = torch.where(torch.arange(len(at)) < groups, 4 / self.twice, 1.0).to(x.dtype)
        covariance = 1 + (at[:, None] == at).to(x.dtype) + torch.diag(noise)
        b = self.p["b"].detach()
        mean = self.p["m"].detach() + torch.where(torch.arange(len(at)) < groups, b, 0.0)
        seen = dist.MultivariateNormal(mean, covariance).log_prob(values)
        return seen - groups * 0.5 * math.log(16 * math.pi)

    def model(self, x: Any, size: int | None = None) -> None:
        """p(w) Π p(z_j | w) p(y_j | z_j)² Π p(x_ij | z_j)."""
        pyro.module("toy", self)
        w = pyro.sample("w", dist.Normal(self.p["m"], 1.0))
        with pyro.plate("groups", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            with pyro.poutine.scale(scale=self.twice):
                pyro.sample("y", dist.Normal(z + self.p["b"], 2.0), obs=x[:, 0])
            with pyro.plate("repeats", 4, dim=-2), pyro.poutine.mask(mask=self.keep):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 1:].T)

    def guide(self, x: Any, size: int | None = None) -> None:
        """q(w) Π q(z_j | w)."""
        pyro.module("toy", self)
        g = self.guide_
        w = pyro.sample("w", dist.Normal(g["mean"], g["log_scale"].exp()))
        with pyro.plate("groups", len(x), dim=-1):
            pyro.sample("z", dist.Normal(g["slope"] * w + g["start"], g["log_scale_z"].exp()))


class Switch(Toy):
    """k_i ~ Bernoulli(σ(a)), x_i | k_i ~ N(m k_i, 1); q(k_i | x_i) = Bernoulli(σ(s x_i + t)).

    The posterior's log odds are a + m x - m²/2. Sites k, x; plate data.
    """

    x = 1.3 * _rows(ROWS) + 0.6  # (5,)
    distance = 1.0

    def __init__(self, exact: bool = False):
        model = {"log_odds": _numbers(-0.4), "m": _numbers(1.5)}
        guide = {"s": model["m"], "t": model["log_odds"] - model["m"] ** 2 / 2}
        super().__init__(model, guide, exact)

    def log_px(self, x: Tensor) -> Tensor:
        """Both values of k summed out."""
        k = torch.tensor([[0.0], [1.0]], dtype=x.dtype)
        prior = dist.Bernoulli(logits=self.p["log_odds"].detach()).log_prob(k)
        return (prior + dist.Normal(self.p["m"].detach() * k, 1.0).log_prob(x)).logsumexp(0).sum()

    def model(self, x: Any, size: int | None = None) -> None:
        """p(k) p(x | k)."""
        with self.rows(x, size):
            k = pyro.sample("k", dist.Bernoulli(logits=self.p["log_odds"]))
            pyro.sample("x", dist.Normal(self.p["m"] * k, 1.0), obs=x)

    def guide(self, x: Any, size: int | None = None) -> None:
        """q(k | x)."""
        with self.rows(x, size):
            pyro.sample("k", dist.Bernoulli(logits=self.guide_["s"] * x + self.guide_["t"]))


class SwitchedGaussian(Toy):
    """k_i ~ Bernoulli(1/2), z_i | k_i ~ N(m_k, 1), x_i | z_i ~ N(z_i, 1); the guide draws k and z.

    Marginally x_i | k_i ~ N(m_k, 2), so the log odds of k are linear in x, and
    z_i | k_i, x_i ~ N((m_k + x_i) / 2, 1/2). Sites k, z, x; plate data.
    """

    x = 1.6 * _rows(ROWS)  # (5,)

    def __init__(self, exact: bool = False):
        m = _numbers([-1.0, 1.5])
        guide = {
            "s": (m[1] - m[0]) / 2,
            "t": (m[0] ** 2 - m[1] ** 2) / 4,
            "start": m / 2,
            "log_scale": _numbers([-0.5 * math.log(2)] * 2),
        }
        super().__init__({"m": m}, guide, exact)

    def log_px(self, x: Tensor) -> Tensor:
        """Both values of k summed out, z integrated out."""
        m = self.p["m"].detach()
        parts = dist.Normal(m[:, None], math.sqrt(2)).log_prob(x) - math.log(2)
        return parts.logsumexp(0).sum()

    def model(self, x: Any, size: int | None = None) -> None:
        """p(k) p(z | k) p(x | z)."""
        m = self.p["m"]
        with self.rows(x, size):
            k = pyro.sample("k", dist.Bernoulli(x.new_tensor(0.5)))
            z = pyro.sample("z", dist.Normal(m[0] + (m[1] - m[0]) * k, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Any, size: int | None = None) -> None:
        """q(k | x) q(z | k, x)."""
        g = self.guide_
        with self.rows(x, size):
            k = pyro.sample("k", dist.Bernoulli(logits=g["s"] * x + g["t"]))
            half = g["start"][0] + (g["start"][1] - g["start"][0]) * k
            log_scale = g["log_scale"][0] + (g["log_scale"][1] - g["log_scale"][0]) * k
            pyro.sample("z", dist.Normal(half + x / 2, log_scale.exp()))
