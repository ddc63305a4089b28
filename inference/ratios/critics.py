"""The default critic: linear and quadratic terms, and a network for what they leave."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..pairs.arguments import as_arguments, check_values

LIMIT = 10.0  # standard deviations


class Critic(nn.Module):
    """A log density ratio: ℓ(x) = b + w · φ(s) + MLP(s), s = (x − mean) / sd.

    φ holds the linear and the quadratic terms, so that two Gaussians are told apart exactly; the
    network starts at zero and learns what is left.

    Args:
        data_dim: D.
        quadratic: `"full"` (all s_i s_j), `"diagonal"` (s_i²) or `"none"`.
        hidden: widths of the network's layers; `()` leaves it out.
        mean, sd: what x is standardised with, (D,).
        limit: s is cut to ±limit, so that a rare value of an all but constant column stays finite.
    """

    mean: Tensor
    sd: Tensor

    def __init__(
        self,
        data_dim: int,
        *,
        quadratic: str = "full",
        hidden: Sequence[int] = (64, 64, 64),
        mean: Tensor | None = None,
        sd: Tensor | None = None,
        limit: float = math.inf,
    ):
        super().__init__()
        if quadratic not in ("full", "diagonal", "none"):
            raise ValueError(f"quadratic: expected full, diagonal or none, got {quadratic!r}.")
        self.quadratic, self.limit = quadratic, limit
        self.register_buffer("mean", torch.zeros(data_dim) if mean is None else mean)
        self.register_buffer("sd", torch.ones(data_dim) if sd is None else sd)
        self.linear = nn.Linear(n_features(data_dim, quadratic), 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        layers: list[nn.Module] = []
        for a, b in zip([data_dim, *hidden], hidden):
            layers += [linear := nn.Linear(a, b), nn.SiLU()]
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        if layers:
            layers.append(last := nn.Linear(hidden[-1], 1, bias=False))
            nn.init.zeros_(last.weight)
        self.network = nn.Sequential(*layers)

    def standardised(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        s = (x - self.mean) / self.sd
        return s.clamp(-self.limit, self.limit) if self.limit < math.inf else s

    def features(self, s: Tensor) -> Tensor:
        """φ(s): (..., D) -> (..., features)."""
        if self.quadratic == "none":
            return s
        if self.quadratic == "diagonal":
            return torch.cat([s, s**2], -1)
        i, j = torch.triu_indices(s.shape[-1], s.shape[-1], device=s.device)
        return torch.cat([s, s[..., i] * s[..., j]], -1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (...)."""
        s = self.standardised(x)
        ell = self.linear(self.features(s))
        return (ell + self.network(s) if len(self.network) else ell).squeeze(-1)


def spread(x: Tensor) -> Tensor:
    """The scale of each column, (D,): its standard deviation; 1 where it is constant.

    Never less than 1e-4 of the median column's: a smaller one is rounding, which would be blown up.
    """
    sd = x.std(0)
    varying = sd > 0
    floor = 1e-4 * float(sd[varying].median()) if bool(varying.any()) else 1.0
    return torch.where(varying, sd.clamp(min=floor), torch.ones_like(sd))


def n_features(data_dim: int, quadratic: str) -> int:
    """Number of linear and quadratic terms of a critic."""
    extra = {"full": data_dim * (data_dim + 1) // 2, "diagonal": data_dim, "none": 0}
    return data_dim + extra[quadratic]


def network_critic(mean: Tensor, sd: Tensor) -> Critic:
    """A network of three layers of 128 on standardised data."""
    return Critic(len(mean), quadratic="none", hidden=(128,) * 3, mean=mean, sd=sd).to(mean)


def logistic_critic(x_p: Tensor, x_q: Tensor) -> Critic:
    """The default critic, its linear and quadratic terms a logistic regression."""
    both = torch.cat([x_p, x_q])
    fewest, dim = min(len(x_p), len(x_q)), x_p.shape[1]
    terms = [t for t in ("full", "diagonal") if 20 * n_features(dim, t) <= fewest]
    critic = Critic(
        dim, quadratic=(*terms, "none")[0], mean=both.mean(0), sd=spread(both), limit=LIMIT
    ).to(both)
    w = logistic_weights(x_p, x_q, lambda x: critic.features(critic.standardised(x)))
    with torch.no_grad():
        critic.linear.weight.copy_(w[:-1])
        critic.linear.bias.copy_(w[-1])
    return critic


@torch.no_grad()
def logistic_weights(
    x_p: Tensor, x_q: Tensor, features: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """Logistic regression by Newton's method: weights of the features φ(x), and last of 1.

    min_w  mean_P softplus(−w · φ) + mean_Q softplus(w · φ) + |w|² / 2n,    convex; the last term, a
    standard normal prior, keeps w finite where the samples can be separated.
    """
    fewest = min(len(x_p), len(x_q))

    def derivatives(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        loss, ridge = 0.5 * w @ w / fewest, torch.eye(len(w)).to(w) / fewest
        gradient, curvature = w / fewest, ridge
        for x, sign in ((x_p, 1.0), (x_q, -1.0)):
            for piece in x.split(65_536):  # bounds the memory
                phi = features(piece).to(w)
                phi = torch.cat([phi, torch.ones_like(phi[:, :1])], 1)
                ell = sign * (phi @ w)
                wrong = (-ell).sigmoid()
                loss = loss + softplus(-ell).sum() / len(x)
                gradient = gradient - sign * (wrong @ phi) / len(x)
                curvature = curvature + (phi.T * (wrong * (1 - wrong))) @ phi / len(x)
        return loss, gradient, curvature

    w = x_p.new_zeros(features(x_p[:1]).shape[1] + 1, dtype=torch.float64)
    loss, gradient, curvature = derivatives(w)
    for _ in range(50):
        step = torch.linalg.solve(curvature, gradient)
        if gradient @ step < 1e-10:  # twice what is left to gain, nats
            break
        while (new := derivatives(w - step))[0] > loss:
            step = step / 2
        w, (loss, gradient, curvature) = w - step, new
    return w


def samples(x: Any, name: str, least: int = 2) -> Tensor:
    """`x` as a float tensor (N, D) of at least so many rows, all finite, or ValueError."""
    (x,) = as_arguments(x, name)
    if x.dim() != 2 or not x.is_floating_point() or len(x) < least or not x.shape[1]:
        raise ValueError(
            f"{name}: expected floats of shape (N, D), N >= {least}, got {x.dtype} of shape "
            f"{tuple(x.shape)}. Reshape it (x[:, None] for one dimension), or draw more."
        )
    return check_values((x,), name)[0]


def check_critic(critic: nn.Module, x: Tensor) -> None:
    """Raise ValueError unless the critic gives one number for each row of x (B, D)."""
    try:
        got = critic(x).shape
    except RuntimeError as error:
        raise ValueError(
            f"critic: expected a module that takes rows of {x.shape[1]} values, x and its latents "
            f"side by side where there are any, and got: {str(error).splitlines()[0]}."
        ) from error
    if got != x.shape[:1]:
        raise ValueError(
            f"critic: expected one number a row, shape {tuple(x.shape[:1])}, got {tuple(got)}. "
            "Squeeze its last axis."
        )
