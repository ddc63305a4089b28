"""Diffusion under a condition, trained to do without it too, so that draws can be guided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zoo.networks import Condition

from .pairs import Diffusion
from .process import Process


class ConditionalDiffusion(Diffusion):
    """Diffusion that is told a label or attributes, with classifier-free guidance.

        x̂(z, λ, y) is trained with y unknown for a share `hide` of the draws;
        x̂_w(z, λ, y) = x̂(z, λ) + w (x̂(z, λ, y) − x̂(z, λ))                     draws are guided

    w = 1 draws from p(x | y), w = 0 from p(x), and a larger w follows the condition more than the
    data do: its draws have no density that is bounded here.

    Sites: as in `Diffusion`, and drop, noise that hides y. Plates: data, steps. Truth: for data
    that are Gaussian given a label the best denoiser is known; w = 0 does without the condition.

    Args:
        classes: the number of labels, where there are no attributes.
        binary, real: how many attributes are 0 or 1, and how many are real numbers.
        hide: the share of draws whose condition is hidden, 0 to 1.

    All others as for `Diffusion`.

    Raises:
        ValueError: as for `Diffusion`; a share out of range; conditions of another shape or range.

    Source: Ho & Salimans 2022, "Classifier-free diffusion guidance" (arXiv:2207.12598, eq. 6 with
    w + 1 in place of w).
    """

    def __init__(
        self,
        data_dim: int,
        classes: int = 10,
        timesteps: int = 128,
        hidden: Sequence[int] = (128, 128, 128),
        schedule: str = "linear",
        log_snr_max: float = 10.0,
        log_snr_min: float = -10.0,
        data_scale: float = 1.0,
        act: str = "silu",
        fourier: int = 0,
        draws: int = 1,
        networks: str = "mlp",
        image_shape: Sequence[int] | None = None,
        width: int = 32,
        levels: int = 2,
        binary: int = 0,
        real: int = 0,
        hide: float = 0.1,
    ):
        if not 0 <= hide < 1:
            raise ValueError(f"hide: expected a share from 0 to below 1, got {hide}.")
        self._width = (condition := Condition(classes, binary, real)).width
        super().__init__(
            data_dim, timesteps, hidden, schedule, log_snr_max, log_snr_min, data_scale, act,
            fourier, draws, None, networks, image_shape, width, levels,
        )  # fmt: skip
        self.condition, self.classes, self.hide = condition, condition.classes, hide

    @property
    def told(self) -> int:
        """Numbers of a condition that the denoiser sees."""
        return self._width

    def model(self, x: Tensor, y: Tensor, size: int | None = None) -> None:  # type: ignore[override]
        """p(x | z_1) and the factors, for a mini-batch x (B, D), y (B,) or (B, A) of `size`."""
        self.condition.check(y, x.shape[:-1])
        self._terms(x, size, lambda: self._shown(x, y))

    def guide(self, x: Tensor, y: Tensor, size: int | None = None) -> None:  # type: ignore[override]
        """Draw the noise, the times, and whose condition is hidden."""
        self._draws(x, size, lambda: self._shown(x, y))

    def _shown(self, x: Tensor, y: Tensor) -> Tensor:
        """The condition's numbers, those of some draws hidden: (K, 1, B, width)."""
        u = pyro.sample("drop", dist.Uniform(x.new_zeros(()), 1.0))
        return self.condition.features(self.condition.hidden(y, u < self.hide), x)

    def validate(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
        """Raise ValueError unless x (B, D) is finite and y holds conditions of its rows."""
        super().validate(x)
        self.condition.check(y, x.shape[:-1])
        self.condition.validate(y)

    def under(self, y: Tensor | int | None, guidance: float = 1.0) -> Process:
        """Return the diffusion under a condition: it draws and bounds log p(x | y), or p(x).

        Args:
            y: labels (B,) or attributes (B, A), which later calls follow row by row; one condition
                for all; or None, unknown.
            guidance: w.

        Raises:
            ValueError: a condition out of range.
        """
        if y is None:
            y = self.condition.unknown(1, self.log_snr.device)[0]
        y = torch.as_tensor(y, device=self.log_snr.device)
        self.condition.validate(y)
        guided = GuidedDenoiser(self.denoiser, self.condition, y, guidance)
        process = Process(self.data_dim, self.timesteps, denoiser=guided)
        process.log_snr = self.log_snr
        return process

    @torch.no_grad()
    def elbo(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        """Return the T-step bound on log p(x | y): (B, D), (B,) or (B, A) -> (B,), nats."""
        return torch.cat([
            self.under(b).elbo(a) for a, b in zip(x.split(1_000), y.split(1_000))
        ])  # fmt: skip

    def log_prob(self, x: Tensor, y: Tensor, steps: int = 32) -> Tensor:  # type: ignore[override]
        """log p(x | y) of the flow's draws: (B, D), (B,) or (B, A) -> (B,), nats."""
        return self.under(y).log_prob(x, steps)

    def reverse(self, n: int, y: Tensor | int | None = None, guidance: float = 1.0) -> Tensor:
        """Ancestral sampling under a condition, with every stop: (T + 1, n, D)."""
        return self.under(y, guidance).reverse(n)

    def sample(  # type: ignore[override]
        self, n: int, y: Tensor | int | None = None, guidance: float = 1.0,
        sampler: str = "ancestral", steps: int = 50,
    ) -> Tensor:  # fmt: skip
        """`n` draws of x given y: (n, D).

        Args:
            y: one condition for all, or `n` of them; by default the labels 0, 1, ..., in turn, and
                unknown attributes.
            guidance: w; sampler, steps: as in `Diffusion`.
        """
        if y is None and self.classes:
            y = torch.arange(n) % self.classes
        return self.under(y, guidance).sample(n, sampler, steps)


class GuidedDenoiser(nn.Module):
    """x̂_w(z, λ) under a condition (arXiv:2207.12598, eq. 6): (..., D), (...) -> (..., D)."""

    def __init__(self, denoiser: Any, condition: Condition, y: Tensor, guidance: float):
        super().__init__()
        self.denoiser, self.condition, self.y, self.w = denoiser, condition, y, guidance

    def forward(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """The guess of x."""
        given = self.denoiser(z, log_snr, self.condition.features(self.y, z))
        if self.w == 1:
            return given
        nothing = self.condition.features(self.condition.unknown(1, z.device)[0], z)
        without = self.denoiser(z, log_snr, nothing)
        return without + self.w * (given - without)
