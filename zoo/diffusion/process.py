"""The process of both diffusion pairs: the schedule, the denoiser, the bound's terms, sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from inference.networks import MLP
from zoo.networks import UNet, check_image_shape, check_rows, check_sizes

from . import samplers

PIECE = 2**22  # numbers of noise that are held at once


class Denoiser(nn.Module):
    """A guess of x from z_t, given the log signal-to-noise ratio λ: (..., D), (...) -> (..., D).

        x̂ = (α s² z + s σ √v network(z / √v, features of λ)) / v,   v = α² s² + σ²

    What the network adds has unit size at every λ (Karras et al. 2022, arXiv:2206.00364, table 1),
    and at s = 1 it predicts -v of Salimans & Ho 2022 (arXiv:2202.00512). Where the network is zero
    this is the best denoiser of N(0, s² I).

    Args:
        data_dim: D.
        hidden: widths of the hidden layers.
        data_scale: s, the standard deviation of the data.
        act: the activation's name.
        fourier: sines and cosines of each coordinate, so many octaves of them. A narrow shape in
            few dimensions needs them (Tancik et al. 2020, arXiv:2006.10739); images do not.
        frequencies: sines and cosines of λ, with wavelengths from 2 to 40 in λ.
        image_shape: (channels, height, width) makes the network a U-Net (`zoo.networks.UNet`) of
            `width` channels at first, halved `levels` times.
        told: numbers of a condition that the network sees too.
    """

    angular: Tensor  # 2π over the wavelengths of the features of λ
    octaves: Tensor  # the same for those of z, from a quarter of a wave per standard deviation

    def __init__(
        self,
        data_dim: int,
        hidden: Sequence[int] = (128, 128, 128),
        data_scale: float = 1.0,
        act: str = "silu",
        fourier: int = 0,
        frequencies: int = 8,
        image_shape: Sequence[int] | None = None,
        width: int = 32,
        levels: int = 2,
        told: int = 0,
    ):
        super().__init__()
        if fourier < 0:
            raise ValueError(f"fourier: expected 0 octaves or more, got {fourier}.")
        self.data_scale = data_scale
        self.register_buffer("octaves", math.pi / 2 * 2.0 ** torch.arange(fourier))
        wavelengths = torch.logspace(math.log10(2.0), math.log10(40.0), frequencies)
        self.register_buffer("angular", 2 * math.pi / wavelengths)
        features = 2 * frequencies + told
        self.images = image_shape is not None
        self.network: nn.Module
        if image_shape is not None:
            shape = check_image_shape("conv", image_shape, data_dim)
            self.network = UNet(shape, features, width, levels)
        else:
            self.network = MLP((1 + 2 * fourier) * data_dim + features, hidden, data_dim, act)

    def forward(self, z: Tensor, log_snr: Tensor, told: Tensor | None = None) -> Tensor:
        """E[x | z_t] as far as it is known, given `told` (..., width) of a condition: (..., D)."""
        alpha, sigma = signal_and_noise(log_snr)
        s = self.data_scale
        v = (alpha * s) ** 2 + sigma**2
        angle = log_snr[..., None] * self.angular
        features = torch.cat([angle.sin(), angle.cos()], -1)  # (..., 2 frequencies)
        features = features.expand(*z.shape[:-1], -1)
        if told is not None:
            features = torch.cat([features, told.expand(*z.shape[:-1], -1)], -1)
        unit = z / v.sqrt()[..., None]
        if self.images:
            h = self.network(unit, features)
        else:
            waves = (unit[..., None] * self.octaves).flatten(-2)  # (..., D fourier)
            h = self.network(torch.cat([unit, waves.sin(), waves.cos(), features], -1))
        return (alpha * s**2 / v)[..., None] * z + (s * sigma / v.sqrt())[..., None] * h


class Terms(NamedTuple):
    """The T-step bound term by term, in nats: `log_px` - `prior` - `steps` summed over T - 1."""

    log_px: Tensor  # log p(x | z_1), (..., B)
    steps: Tensor  # KL(q(z_{t-1} | z_t, x) || p(z_{t-1} | z_t)) for t = 2, ..., T: (T - 1, ..., B)
    prior: Tensor  # KL(q(z_T | x) || N(0, I)), (B,)

    def elbo(self) -> Tensor:
        """Return the bound on log p(x), (..., B)."""
        return self.log_px - self.prior - self.steps.sum(0)


class Process(nn.Module):
    """Encoder, decoder, bound and sampling, which both pairs share."""

    log_snr: Tensor  # log_snr[t - 1] is λ_t

    def __init__(
        self,
        data_dim: int,
        timesteps: int = 128,
        hidden: Sequence[int] = (128, 128, 128),
        schedule: str = "linear",
        log_snr_max: float = 10.0,
        log_snr_min: float = -10.0,
        data_scale: float = 1.0,
        act: str = "silu",
        fourier: int = 0,
        denoiser: nn.Module | None = None,
    ):
        super().__init__()
        check_sizes(data_dim=data_dim, hidden=hidden)
        if not data_scale > 0:
            raise ValueError(
                f"data_scale: expected the data's standard deviation, above 0, got {data_scale}."
            )
        self.data_dim, self.timesteps = data_dim, timesteps
        log_snr = log_snr_schedule(timesteps, schedule, log_snr_max, log_snr_min)
        self.register_buffer("log_snr", log_snr)
        own = Denoiser(data_dim, hidden, data_scale, act, fourier) if denoiser is None else denoiser
        self.denoiser = own

    def validate(self, x: Tensor) -> None:
        """Raise ValueError unless the rows of x (B, D) are finite and D wide. Reads the values."""
        check_rows(x, self.data_dim)
        if not torch.isfinite(x).all():
            raise ValueError("x: values are NaN or infinite. Drop or impute them first.")

    def terms(self, x: Tensor, noise: Tensor) -> Terms:
        """Every term of the bound at z_t = α_t x + σ_t noise_t.

        Args:
            x: data, (B, D).
            noise: one standard normal draw for each latent, (T, ..., B, D).

        Returns:
            Terms in nats; its `elbo()` is unbiased for the T-step bound.

        Raises:
            ValueError: x or noise has another shape.

        Source: Ho et al. 2020 (arXiv:2006.11239, eq. 5) with the divergences of Kingma et al. 2021
        (arXiv:2107.00630, eq. 13).
        """
        check_rows(x, self.data_dim)
        if noise.shape[0] != self.timesteps:
            raise ValueError(
                f"noise: expected {self.timesteps} draws along the first axis, one for each "
                f"latent, got shape {tuple(noise.shape)}."
            )
        lead = (-1, *(1,) * (noise.ndim - 2))
        t = torch.arange(self.timesteps - 1, device=x.device).reshape(lead)
        log_px = self._head(self._noised(x, self.log_snr[0], noise[0])).log_prob(x)
        return Terms(log_px, self._step_kl(x, t, noise[1:]), self._prior_kl(x))

    @torch.no_grad()
    def elbo(self, x: Tensor, draws: int = 1) -> Tensor:
        """Return the T-step bound on log p(x), averaged over `draws`: (B, D) -> (B,), nats.

        In pieces of T · B · D up to `PIECE` numbers, and one row at least: bounded memory.
        """
        check_rows(x, self.data_dim)
        rows = max(1, PIECE // (self.timesteps * self.data_dim))
        found = []
        for piece in x.split(rows):
            bounds = [
                self.terms(piece, torch.randn_like(piece.expand(self.timesteps, *piece.shape)))
                for _ in range(draws)
            ]
            found.append(torch.stack([b.elbo() for b in bounds]).mean(0))
        return torch.cat(found)

    @torch.no_grad()
    def reverse(self, n: int) -> Tensor:
        """Ancestral sampling, with every stop: z_T, ..., z_1, x as (T + 1, n, D)."""
        if n < 1:
            raise ValueError(f"n: expected at least one draw, got {n}.")
        path = [torch.randn_like(self.log_snr[0].expand(n, self.data_dim))]
        for t in range(self.timesteps - 1, 0, -1):
            path.append(self._decode(path[-1], t).sample())
        return torch.stack([*path, self._head(path[-1]).sample()])

    def sample(self, n: int, sampler: str = "ancestral", steps: int = 50) -> Tensor:
        """`n` draws of x: (n, D).

        Args:
            sampler: "ancestral", through all of z_T, ..., z_1; "ddim" or "flow", deterministic
                given z_T, in `steps` steps; "langevin" (`zoo.diffusion.samplers`).

        Raises:
            ValueError: there is no such sampler; fewer than two steps.
        """
        if sampler not in samplers.SAMPLERS or steps < 2:
            raise ValueError(
                f"sampler, steps: expected one of {', '.join(samplers.SAMPLERS)} and at least 2 "
                f"steps, got {sampler!r} and {steps}."
            )
        if sampler == "ancestral":
            return self.reverse(n)[-1]
        noise = torch.randn_like(self.log_snr[0].expand(n, self.data_dim))
        if sampler == "langevin":
            return samplers.langevin(self, noise)
        return (samplers.ddim if sampler == "ddim" else samplers.flow)(self, noise, steps)

    def score(self, z: Tensor, log_snr: Tensor) -> Tensor:
        """Return ∇ log q(z_λ), which the denoiser knows: (..., D), λ (...) -> (..., D)."""
        return samplers.score(self, z, log_snr)

    def log_prob(self, x: Tensor, steps: int = 32) -> Tensor:
        """log p(x) of what `sample(n, "flow")` draws, by the flow's ODE: (B, D) -> (B,), nats.

        Exact but for the steps; the density of another model than the one that `elbo` bounds,
        though of the same denoiser. Over 16 columns the trace is estimated by random signs.
        """
        check_rows(x, self.data_dim)
        return samplers.flow_log_prob(self, x, steps, probes=0 if self.data_dim <= 16 else 1)

    def _noised(self, x: Tensor, log_snr: Tensor, noise: Tensor) -> Tensor:
        alpha, sigma = signal_and_noise(log_snr)
        return alpha[..., None] * x + sigma[..., None] * noise

    def _head(self, z_1: Tensor) -> TorchDistribution:
        """p(x | z_1) = N(z_1 / α_1, (σ_1 / α_1)² I), proportional to q(z_1 | x): no network."""
        alpha, sigma = signal_and_noise(self.log_snr[0])
        return dist.Normal(z_1 / alpha, (sigma / alpha).expand_as(z_1)).to_event(1)

    def _decode(self, z: Tensor, t: int) -> TorchDistribution:
        """p(z_t | z_{t+1}) for t = 1, ..., T - 1."""
        above, here = self.log_snr[t], self.log_snr[t - 1]
        (alpha, _), (alpha_here, sigma_here) = signal_and_noise(above), signal_and_noise(here)
        c = -torch.expm1(above - here)
        guess = self.denoiser(z, above.expand(z.shape[:-1]))
        mean = (above - here).exp() * alpha_here / alpha * z + c * alpha_here * guess
        return dist.Normal(mean, (c.sqrt() * sigma_here).expand_as(mean)).to_event(1)

    def _step_kl(self, x: Tensor, t: Tensor, noise: Tensor, told: Tensor | None = None) -> Tensor:
        """KL(q(z_{t+1} | z_{t+2}, x) || p(z_{t+1} | z_{t+2})) for indices t = 0, ..., T - 2."""
        here, above = self.log_snr[t].expand(noise.shape[:-1]), self.log_snr[t + 1]
        above = above.expand_as(here)
        z = self._noised(x, above, noise)
        guess = self.denoiser(z, above) if told is None else self.denoiser(z, above, told)
        return 0.5 * (here.exp() - above.exp()) * ((x - guess) ** 2).sum(-1)

    def _prior_kl(self, x: Tensor) -> Tensor:
        """KL(q(z_T | x) || N(0, I))."""
        alpha, sigma = signal_and_noise(self.log_snr[-1])
        return 0.5 * ((alpha * x) ** 2 + sigma**2 - 1 - 2 * sigma.log()).sum(-1)


def log_snr_schedule(
    timesteps: int, schedule: str, log_snr_max: float, log_snr_min: float
) -> Tensor:
    """λ_1 > ... > λ_T, the log signal-to-noise ratios of T latents, from max to min: (T,).

    "linear": equal steps of λ (Kingma et al. 2021, arXiv:2107.00630, section 5, as it starts).
    "cosine": equal steps of u in λ = -2 log tan(π u / 2) (Nichol & Dhariwal 2021,
    arXiv:2102.09672, eq. 17, without its offset), between the u of both ends.

    Raises:
        ValueError: T < 2, max <= min, or another name.
    """
    if timesteps < 2:
        raise ValueError(
            f"timesteps: expected T >= 2, got {timesteps}. One latent leaves no step to learn; a "
            "VAE has one layer."
        )
    if not log_snr_max > log_snr_min:
        raise ValueError(
            f"log_snr_max, log_snr_min: noise must grow from z_1 to z_T, so expected max > min, "
            f"got {log_snr_max} and {log_snr_min}."
        )
    if schedule == "linear":
        return torch.linspace(log_snr_max, log_snr_min, timesteps)
    if schedule == "cosine":
        first, last = (math.atan(math.exp(-end / 2)) for end in (log_snr_max, log_snr_min))
        angle = torch.linspace(first, last, timesteps, dtype=torch.float64)  # π u / 2
        return (-2 * torch.tan(angle).log()).to(torch.get_default_dtype())
    raise ValueError(f"schedule: expected linear or cosine, got {schedule!r}.")


def signal_and_noise(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ, with α² + σ² = 1 and α² / σ² = e^λ."""
    return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
