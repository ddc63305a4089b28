"""The two pairs: single terms of the bound, which trains, and all T latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from zoo.networks import check_image_shape, check_rows

from .process import Denoiser, Process, signal_and_noise


class Diffusion(Process):
    """Diffusion trained on single terms of its bound (Ho et al. 2020, arXiv:2006.11239, alg. 1).

        noise_1 ~ N(0, I), z_1 = α_1 x + σ_1 noise_1                              (B, D)
        noise   ~ N(0, I), t ~ uniform over 2, ..., T, z_t = α_t x + σ_t noise    (M, B, D)
        x       ~ N(z_1 / α_1, (σ_1 / α_1)² I)                                    (B, D)
        factors: prior = -KL(q(z_T | x) || N(0, I)), step = -KL_t for the drawn t

    Noise and time are sites of model and guide with one density, which cancels. The T - 1 steps
    are a subsampled plate, of which M are drawn for each datum: its scale (T - 1) / M makes the
    ELBO unbiased for the T-step bound, all terms with their own weights.

    It is unbiased for the bound, not for p(x): the logarithm of a mean of such weights (IWAE) is
    no bound. Use `hierarchy()` for that.

    Sites: noise_1, time, noise, prior, step, x. Plates: data (dim -1), steps (dim -2). Truth: with
    the best denoiser of Gaussian data, the bound rises to log p(x) as 1 / T.

    Args:
        data_dim: D, the number of values in a row of data.
        timesteps: T, the number of latents, at least 2.
        hidden: widths of the denoiser's hidden layers.
        schedule: "linear" (λ falls linearly) or "cosine" (`zoo.diffusion.log_snr_schedule`).
        log_snr_max, log_snr_min: λ_1 and λ_T.
        data_scale: the standard deviation of the data, in its units.
        act: the activation's name.
        fourier: octaves of sines and cosines of each coordinate that the denoiser sees; narrow
            shapes in few dimensions need some.
        draws: M, terms drawn for each datum at every step, 1 to T - 1.
        denoiser: a module (z (..., D), λ (...)) -> (..., D) in place of `Denoiser`.
        networks: "mlp", or "unet", which needs `image_shape` (`zoo.networks.UNet`).
        image_shape: (channels, height, width) of a row.
        width, levels: channels of the U-Net, and how often it halves an image.

    Raises:
        ValueError: an image whose sides the U-Net cannot halve; T < 2, fourier < 0, draws outside
            1 .. T - 1, λ_1 <= λ_T, an unknown schedule, a size below 1; when called, rows of x that
            are not D wide.
    """

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
        draws: int = 1,
        denoiser: nn.Module | None = None,
        networks: str = "mlp",
        image_shape: Sequence[int] | None = None,
        width: int = 32,
        levels: int = 2,
    ):
        if networks not in ("mlp", "unet"):
            raise ValueError(f"networks: expected mlp or unet, got {networks!r}.")
        if networks == "unet" and denoiser is None:
            shape = check_image_shape("conv", image_shape, data_dim)
            denoiser = Denoiser(
                data_dim, hidden, data_scale, act, image_shape=shape, width=width, levels=levels,
                told=self.told,
            )  # fmt: skip
        elif denoiser is None and self.told:
            denoiser = Denoiser(data_dim, hidden, data_scale, act, fourier, told=self.told)
        super().__init__(
            data_dim,
            timesteps,
            hidden,
            schedule,
            log_snr_max,
            log_snr_min,
            data_scale,
            act,
            fourier,
            denoiser,
        )
        if not 1 <= draws < timesteps:
            raise ValueError(
                f"draws: expected 1 to {timesteps - 1}, the steps between {timesteps} latents, "
                f"got {draws}."
            )
        self.draws = draws

    def model(self, x: Tensor, size: int | None = None) -> None:
        """p(x | z_1) and the factors, for a mini-batch x (B, D) of `size` data."""
        self._terms(x, size)

    def _terms(
        self, x: Tensor, size: int | None, told: Callable[[], Tensor | None] = lambda: None
    ) -> None:
        """The model, given the numbers of a condition, which may be drawn for each datum."""
        pyro.module("diffusion", self)
        check_rows(x, self.data_dim)
        data, steps = self._plates(x, size)
        with data:
            z_1 = self._noised(x, self.log_snr[0], _noise("noise_1", x))
            pyro.factor("prior", -self._prior_kl(x))
            condition = told()
            with steps:
                t, noise = self._time(x), _noise("noise", x)  # (K, M, B), (K, M, B, D)
                pyro.factor("step", -self._step_kl(x, t, noise, condition))
            pyro.sample("x", self._head(z_1), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """Draw the noise and the times."""
        self._draws(x, size)

    def _draws(
        self, x: Tensor, size: int | None, told: Callable[[], Tensor | None] = lambda: None
    ) -> None:
        """The guide, with whatever is drawn for the condition."""
        pyro.module("diffusion", self)
        check_rows(x, self.data_dim)
        data, steps = self._plates(x, size)
        with data:
            _noise("noise_1", x)
            told()
            with steps:
                self._time(x), _noise("noise", x)

    @property
    def told(self) -> int:
        """Numbers of a condition that the denoiser sees."""
        return 0

    def _plates(self, x: Tensor, size: int | None) -> tuple[pyro.plate, pyro.plate]:
        """Return the plates of the data and of the T - 1 steps, of which M are drawn.

        The second one is here for its scale: which steps are drawn is up to the site `time`, for
        each datum by itself, where a plate's own indices would be the same for all.
        """
        drawn = torch.arange(self.draws, device=x.device)
        data = pyro.plate("data", size or x.shape[-2], subsample=x, dim=-1)
        return data, pyro.plate("steps", self.timesteps - 1, subsample=drawn, dim=-2)

    def _time(self, x: Tensor) -> Tensor:
        u = pyro.sample("time", dist.Uniform(x.new_zeros(()), 1.0))
        steps = self.timesteps - 1
        return (u * steps).long().clamp(max=steps - 1)  # the product may round up to T - 1

    def hierarchy(self) -> DiffusionHierarchy:
        """Return the pair with all T latents as sites; it shares this denoiser and schedule."""
        pair = DiffusionHierarchy(self.data_dim, self.timesteps, denoiser=self.denoiser)
        pair.log_snr = self.log_snr
        return pair


class DiffusionHierarchy(Process):
    """The same diffusion with every latent drawn (Sohl-Dickstein et al. 2015, arXiv:1503.03585).

        z_T           ~ N(0, I)                                                   (B, D)
        z_{t-1} | z_t ~ N(mean(z_t, x̂(z_t)), c_t σ_{t-1}² I)                      (B, D)
        x | z_1       ~ N(z_1 / α_1, (σ_1 / α_1)² I)                              (B, D)
        q(z | x)      = q(z_1 | x) ∏_t q(z_t | z_{t-1}), which only adds noise

    For few latents: each costs a run of the denoiser, and the log weight adds up the noise of all.
    Its mean is the bound whose terms `Diffusion` draws, and its exponential is unbiased for p(x),
    so that every estimator applies.

    Sites: z_1, ..., z_T, x. Plates: data. Arguments and errors as for `Diffusion`.
    """

    def model(self, x: Tensor, size: int | None = None) -> None:
        """p(z_T) ∏ p(z_{t-1} | z_t) p(x | z_1) for a mini-batch x (B, D) of `size` data."""
        pyro.module("diffusion", self)
        check_rows(x, self.data_dim)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            z = _noise(f"z_{self.timesteps}", x)
            for t in range(self.timesteps - 1, 0, -1):
                z = pyro.sample(f"z_{t}", self._decode(z, t))  # (K, B, D)
            pyro.sample("x", self._head(z), obs=x)

    def guide(self, x: Tensor, size: int | None = None) -> None:
        """q(z_1 | x) ∏ q(z_t | z_{t-1}), with α and σ the ratios of neighbours."""
        pyro.module("diffusion", self)
        check_rows(x, self.data_dim)
        alpha, sigma = signal_and_noise(self.log_snr)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            z = pyro.sample("z_1", dist.Normal(alpha[0] * x, sigma[0]).to_event(1))
            for t in range(1, self.timesteps):
                c = -torch.expm1(self.log_snr[t] - self.log_snr[t - 1])
                scale = c.sqrt() * sigma[t]
                step = dist.Normal(alpha[t] / alpha[t - 1] * z, scale).to_event(1)
                z = pyro.sample(f"z_{t + 1}", step)


def _noise(name: str, x: Tensor) -> Tensor:
    return pyro.sample(name, dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
