"""Heads p(x | z): what a decoder's output means. An argument of a model, never a copy of one."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from zoo.networks.logistic import ColourMixture, LogisticMixture


class Likelihood(nn.Module):
    """A family p(x | h) over x (..., D), given a decoder's output h (..., outputs·D).

    Subclasses say how many numbers the decoder gives per data dimension (`outputs`), which
    distribution they make (`forward`, event dimension 1), what a picture of it is (`mean`), and
    which data it can explain (`validate`).
    """

    outputs: int = 1

    def forward(self, h: Tensor) -> TorchDistribution:
        """Return the distribution of x given the decoder's output: event shape (D,)."""
        raise NotImplementedError

    def mean(self, h: Tensor) -> Tensor:
        """E[x | h], (..., D)."""
        return self(h).mean

    def validate(self, x: Tensor) -> None:
        """Raise ValueError when `x` lies outside the support."""
        if not torch.isfinite(x).all():
            n = int((~torch.isfinite(x)).sum())
            raise ValueError(f"x: {n} values are NaN or infinite. Drop or impute them first.")


class BernoulliLikelihood(Likelihood):
    """x_d ~ Bernoulli(sigmoid(h_d)), for values in [0, 1].

    Values strictly between 0 and 1 are read as x log p + (1 - x) log(1 - p), which is a loss and
    not a density: binarise (`pixels="dynamic"`, `"static"` or `"threshold"`) for nats.
    """

    def forward(self, h: Tensor) -> TorchDistribution:
        """Independent Bernoulli distributions with logits h."""
        return dist.Bernoulli(logits=h, validate_args=False).to_event(1)

    def validate(self, x: Tensor) -> None:
        """Raise ValueError unless 0 <= x <= 1."""
        super().validate(x)
        if x.min() < 0 or x.max() > 1:
            raise ValueError(
                f"x: a Bernoulli likelihood needs values in [0, 1], got [{x.min():.3g}, "
                f"{x.max():.3g}]. Rescale the data or choose likelihood='gaussian'."
            )


class GaussianLikelihood(Likelihood):
    """x_d ~ N(h_d, s²).

    Args:
        scale: `"unit"` fixes s = 1; `"learned"` learns one s for all dimensions and data;
            `"diagonal"` takes s_d from the decoder (outputs = 2).
    """

    def __init__(self, scale: str = "learned"):
        super().__init__()
        if scale not in ("unit", "learned", "diagonal"):
            raise ValueError(f"scale: expected unit, learned or diagonal, got {scale!r}.")
        self.scale = scale
        self.outputs = 2 if scale == "diagonal" else 1
        self.log_scale = nn.Parameter(torch.zeros(())) if scale == "learned" else None

    def forward(self, h: Tensor) -> TorchDistribution:
        """Independent normal distributions around h."""
        if self.scale == "diagonal":
            h, log_scale = h.chunk(2, dim=-1)
            return dist.Normal(h, log_scale.clamp(-10.0, 10.0).exp()).to_event(1)
        scale = torch.ones_like(h) if self.log_scale is None else self.log_scale.exp().expand_as(h)
        return dist.Normal(h, scale).to_event(1)


class LaplaceLikelihood(Likelihood):
    """x_d ~ Laplace(h_d, b) with one learned scale b."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor) -> TorchDistribution:
        """Independent Laplace distributions around h."""
        return dist.Laplace(h, self.log_scale.exp().expand_as(h)).to_event(1)


class CategoricalLikelihood(Likelihood):
    """x_d in {0, ..., levels - 1}, with logits from the decoder, level-major: (..., levels·D)."""

    def __init__(self, levels: int = 256):
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels: expected at least 2, got {levels}.")
        self.outputs = levels

    def _logits(self, h: Tensor) -> Tensor:
        return h.reshape(*h.shape[:-1], self.outputs, -1).transpose(-1, -2)  # (..., D, levels)

    def forward(self, h: Tensor) -> TorchDistribution:
        """Independent categorical distributions."""
        return dist.Categorical(logits=self._logits(h)).to_event(1)

    def mean(self, h: Tensor) -> Tensor:
        """Return the mean level, (..., D)."""
        levels = torch.arange(self.outputs, dtype=h.dtype, device=h.device)
        return self._logits(h).softmax(-1) @ levels

    def validate(self, x: Tensor) -> None:
        """Raise ValueError unless x holds whole numbers 0 .. levels - 1."""
        super().validate(x)
        if x.min() < 0 or x.max() > self.outputs - 1 or not torch.equal(x, x.round()):
            raise ValueError(
                f"x: a categorical likelihood with {self.outputs} levels needs whole numbers in "
                f"[0, {self.outputs - 1}], got [{x.min():.3g}, {x.max():.3g}]."
            )


class LogisticMixtureLikelihood(Likelihood):
    """x_d in {0, ..., levels − 1} / (levels − 1) from a mixture of C logistic distributions.

        p(x_d = v) = Σ_c π_c [σ((v + δ − μ_c) / s_c) − σ((v − δ − μ_c) / s_c)]

    with δ = ½ / (levels − 1), the first term 1 at the last level and the second 0 at the first: all
    levels sum to one.
    Values stand in [0, 1], as images do. One draw is one of the levels. The decoder gives, for each
    value, C weights, means and log scales: (..., 3 C D), plane after plane; means begin at ½.

    Args:
        components: C.
        levels: 256 for images of 8 bits.
        channels: 3 lets green depend on red, and blue on both, by coefficients tanh(h) that the
            decoder gives too (the paper's, section 2.2); 1 for grey.

    Source: Salimans et al. 2017, "PixelCNN++" (arXiv:1701.05517, eqs. 1 to 3).
    """

    def __init__(self, components: int = 5, levels: int = 256, channels: int = 1):
        super().__init__()
        if components < 1 or levels < 2 or channels not in (1, 3):
            raise ValueError(
                "components, levels, channels: expected at least 1, at least 2, and 1 or 3, got "
                f"{components}, {levels} and {channels}."
            )
        self.components, self.levels, self.channels = components, levels, channels
        self.outputs = components * (3 if channels == 1 else 4)  # a coefficient for each value

    def forward(self, h: Tensor) -> TorchDistribution:
        """Independent mixtures, of each value or, in colour, of each pixel's three."""
        parts = h.unflatten(-1, (self.outputs // self.components, self.components, -1))
        logits, mean, log_scale = (p.movedim(-2, -1) for p in parts.unbind(-3)[:3])  # (..., D, C)
        mean = mean + 0.5
        log_scale = (log_scale - 3.0).clamp(min=-7.0)
        if self.channels == 1:
            return LogisticMixture(logits, mean, log_scale, self.levels).to_event(1)
        coefficients = parts.unbind(-3)[3].movedim(-2, -1).tanh()
        return ColourMixture(logits, mean, log_scale, coefficients, self.levels)

    def validate(self, x: Tensor) -> None:
        """Raise ValueError unless x holds levels v / (levels − 1) in [0, 1]."""
        super().validate(x)
        v = x * (self.levels - 1)
        if x.min() < 0 or x.max() > 1 or (v - v.round()).abs().max() > 1e-2:
            raise ValueError(
                f"x: a likelihood of {self.levels} levels needs multiples of 1 / {self.levels - 1} "
                f"in [0, 1], got [{x.min():.3g}, {x.max():.3g}]. Divide 8-bit images by 255."
            )


LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "bernoulli": BernoulliLikelihood,
    "gaussian": GaussianLikelihood,
    "gaussian-unit": lambda: GaussianLikelihood("unit"),
    "gaussian-diagonal": lambda: GaussianLikelihood("diagonal"),
    "laplace": LaplaceLikelihood,
    "categorical": CategoricalLikelihood,
    "logistic-mixture": LogisticMixtureLikelihood,
    "colour-mixture": lambda: LogisticMixtureLikelihood(channels=3),
}


def likelihood(spec: str | Likelihood) -> Likelihood:
    """Return the likelihood called `spec`, or `spec` itself when it is one already.

    Raises:
        ValueError: there is no such likelihood; the nearest name is suggested.
    """
    if isinstance(spec, Likelihood):
        return spec
    if spec not in LIKELIHOODS:
        near = difflib.get_close_matches(str(spec), LIKELIHOODS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"likelihood: expected one of {list(LIKELIHOODS)}, got {spec!r}.{hint}")
    return LIKELIHOODS[spec]()
