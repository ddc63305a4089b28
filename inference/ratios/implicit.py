"""Guides that can be drawn from and have no density: adversarial variational Bayes.

    ELBO = E_q[log p(x | z)] − KL(q(z | x) || p(z)),
    KL(q || p) = E_q[log q/r] + E_q[log r/p]

r(z | x) is a Gaussian fitted to the guide's draws by maximum likelihood, whose density is known;
a critic T(x, z) tells draws of q from draws of r and so estimates log q/r, which is small. The
guide is moved by the gradient through z with T and r held fixed: at their optimum the gradient
through them is zero.

Source: Mescheder, Nowozin & Geiger 2017, "Adversarial variational Bayes" (arXiv:1701.04722):
eq. 3.3 and proposition 2; r is the adaptive contrast of their section 4, learned instead of
matched to moments of a network of a special form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..estimate import Estimate
from ..optim import Adam
from ..pairs.pair import Pair, modules_of, own_copy
from ..randomness import forked
from ..training.fitting import Batches, arguments, batch_transform, halves, pick_device
from ..training.game import GameUpdate, Played, as_function, named, play, under
from ..weights import LogWeights, log_weights
from .adversarial import check_critic, critic_loss
from .critics import Critic


class Contrast(nn.Module):
    """r(z | x) = N(mean(x), C(x) C(x)ᵀ), C lower triangular: the Gaussian nearest to the guide.

    It begins as the regression of z on x, r(z | x) = N(A x + b, S), and learns by maximum
    likelihood how mean and covariance bend with x.

    Args:
        x: what the guide was given, (N, width).
        z: a draw of the latents for each row, (N, L).
    """

    mean: Tensor
    sd: Tensor
    slope: Tensor
    offset: Tensor
    factor: Tensor

    def __init__(self, x: Tensor, z: Tensor):
        super().__init__()
        width, self.latent_dim = x.shape[1], z.shape[1]
        mean, sd = x.mean(0), x.std(0)
        sd = torch.where(sd > 0, sd, torch.ones_like(sd))
        s = (x - mean) / sd
        unit = torch.eye(width).to(s)  # a standard normal prior on the slopes
        slope = torch.linalg.solve(s.T @ s + unit, s.T @ (z - z.mean(0)))
        rest = z - z.mean(0) - s @ slope
        covariance = rest.T @ rest / len(z)
        floor = 1e-6 * covariance.diagonal().mean().clamp(min=1e-6)
        factor = torch.linalg.cholesky(covariance + floor * torch.eye(self.latent_dim).to(z))
        for name, tensor in (
            ("mean", mean), ("sd", sd), ("slope", slope), ("offset", z.mean(0)), ("factor", factor)
        ):  # fmt: skip
            self.register_buffer(name, tensor)
        self.trunk = nn.Sequential(nn.Linear(width, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.out = nn.Linear(128, self.latent_dim + self.latent_dim * (self.latent_dim + 1) // 2)
        self.skip = nn.Linear(width, self.latent_dim, bias=False)
        for weight in (self.out.weight, self.out.bias, self.skip.weight):
            nn.init.zeros_(weight)
        self.to(x)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """C⁻¹ (z − mean) (..., L), and log r(z | x) (...), nats; z may have more leading axes."""
        s = (x - self.mean) / self.sd
        # in the units of the regression's residual, a network says what it left
        u = _solve(self.factor, z - s @ self.slope - self.offset)
        h = self.out(self.trunk(s))
        loc, entries = h.split([self.latent_dim, h.shape[-1] - self.latent_dim], -1)
        i, j = torch.tril_indices(self.latent_dim, self.latent_dim, device=x.device)
        lower = entries.new_zeros(*entries.shape[:-1], self.latent_dim, self.latent_dim)
        lower[..., i, j] = entries
        log_diagonal = lower.diagonal(dim1=-2, dim2=-1).clamp(-10.0, 10.0)
        white = _solve(
            lower.tril(-1) + torch.diag_embed(log_diagonal.exp()), u - loc - self.skip(s)
        )
        log_volume = log_diagonal.sum(-1) + self.factor.diagonal().log().sum()
        log_r = -0.5 * white.square().sum(-1) - log_volume
        return white, log_r - 0.5 * self.latent_dim * math.log(2 * math.pi)


def _solve(factor: Tensor, v: Tensor) -> Tensor:
    """factor⁻¹ v, factor lower triangular (..., L, L), v (..., L)."""
    factor = factor.expand(*v.shape[:-1], -1, -1)
    return torch.linalg.solve_triangular(factor, v[..., None], upper=False).squeeze(-1)


class ImplicitEvaluation(NamedTuple):
    """Means over data and draws with their standard errors, nats per datum. `elbo` is no bound."""

    elbo: Estimate
    log_likelihood: Estimate
    kl: Estimate


@dataclass
class ImplicitRun:
    """A pair with an implicit guide, fitted, and the critic that stands for its density.

    Attributes:
        model, guide: with the run's parameters.
        pair: the trained module, where model and guide are methods of one; else None.
        critic: T(x, z̃) = log q/r at the whitened latent; its input is x and z̃ side by side.
        contrast: the Gaussian r(z | x).
        record: history, seconds, whether it was interrupted or compiled (`Played`).
        seed: of everything random in the run.
        is_bound: False. The ELBO is estimated by a critic that need not be optimal.
    """

    model: Callable
    guide: Callable
    pair: nn.Module | None
    critic: nn.Module
    contrast: Contrast
    record: Played
    seed: int
    is_bound: bool = False

    @property
    def history(self) -> Any:
        """Rows of `step`, `critic_loss`, `contrast_loss`, `pair_loss`, `elbo`, `kl`, `seconds`."""
        return self.record.history

    @property
    def seconds(self) -> float:
        """Of the loop, compiling included."""
        return self.record.seconds

    @property
    def stopped(self) -> str | None:
        """Why the run ended early, or None."""
        return self.record.stopped

    @torch.no_grad()
    def evaluate(self, *args: Any, draws: int = 100) -> ImplicitEvaluation:
        """Estimates of the ELBO and its two parts, nats per datum.

        Args:
            args: the pair's arguments.
            draws: of the latents for each datum.

        Returns:
            Means over data; the standard errors are those of the draws, over data held fixed, and
            do not know how far the critic is from log q/r.
        """
        parts = _parts(log_weights(self.model, self.guide, *args, particles=draws))
        flat = _flat(args)
        white, log_r = self.contrast(flat, parts.z)
        kl = self.critic(beside(flat, white)) + log_r - parts.log_prior  # (K, B)

        def estimate(values: Tensor) -> Estimate:
            se = (values.var(0).mean() / values.numel()).sqrt() if draws > 1 else float("nan")
            return Estimate(float(values.mean()), float(se))

        return ImplicitEvaluation(
            estimate(parts.log_likelihood - kl), estimate(parts.log_likelihood), estimate(kl)
        )


def fit_implicit(
    model: Callable | nn.Module,
    guide: Any = None,
    data: Any = None,
    *,
    critic: nn.Module | None = None,
    steps: int = 5_000,
    settle: int | None = None,
    lr: float = 1e-3,
    batch_size: int | None = None,
    critic_steps: int = 2,
    compile: bool | str = "auto",
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: bool = True,
) -> ImplicitRun:
    """Fit a pair whose guide has no density.

    `fit_implicit(pair, data)` for a module with methods `model` and `guide`, or
    `fit_implicit(model, guide, data)`. All latents must be continuous and lie in the data plate.

    Args:
        data: a tensor, a tuple of arguments, or a data set with `train`; dynamic pixels are drawn
            at every step.
        critic: a module (..., D + L) -> (...), copied; None takes a network of three layers of 128.
        steps: moves of the pair.
        settle: moves of critic and contrast alone after that, with the pair held fixed, so that
            the estimates are those of the final guide; None takes a fifth of `steps`.
        lr: of Adam, for all; it falls to zero along a cosine, for the moves of the pair and again
            for the moves after.
        batch_size: rows of a step; None takes 256, or all.
        critic_steps: moves of critic and contrast for one of the pair; more where the posterior
            is far from Gaussian.
        compile: True, False, or "auto": where the run is long enough to earn it.
        device: "auto" (CUDA where there is one), or a torch device.
        seed: of everything random in the run.
        progress: show a progress bar.

    Returns:
        An `ImplicitRun`. Ctrl-C ends the training early and still returns it.

    Raises:
        ValueError: the data holds NaN or is smaller than a batch; a latent is discrete, lies
            outside the data plate, or cannot be differentiated; a loss is no longer finite.
    """
    if data is None:
        model, guide, data = halves(model, guide)
    for name, value in (("steps", steps), ("critic_steps", critic_steps)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}.")
    where = pick_device(device)
    args = tuple(a.to(where) if torch.is_tensor(a) else a for a in arguments(model, data, None)[0])
    rows = len(args[0])
    if rows < 2:
        raise ValueError(f"data: expected at least 2 rows, got {rows}.")
    drawn = batch_transform(data)
    batches = Batches(args, min(256, rows) if batch_size is None else batch_size, seed)
    example = batches.example()

    with forked(seed):
        model, guide = own_copy(model, guide)
        for module in (*modules_of(model), *modules_of(guide)):
            module.to(where)
        pair = Pair(model, guide, example)
        leaves = {k: v.requires_grad_() for k, v in pair.params.items()}
        some = tuple(a[:4096] if torch.is_tensor(a) and len(a) == rows else a for a in args)
        some = drawn(some)
        with pair.bind(leaves, pair.buffers):
            first = _parts(log_weights(pair.model, pair.guide, *some, nesting=pair.nesting))
        flat = _flat(some)
        contrast = Contrast(flat, first.z[0].detach())
        critic = _critic(contrast) if critic is None else deepcopy(critic).to(where)
        check_critic(critic, beside(flat, first.z[0].detach())[:2])

        def losses(params: dict, buffers: dict, batch: tuple) -> dict[str, Tensor]:
            batch = drawn(batch)
            with pair.bind(under("pair.", params), under("pair.", buffers)):
                parts = _parts(log_weights(pair.model, pair.guide, *batch, nesting=pair.nesting))
            t = as_function(critic, "critic.", params, buffers)
            x = _flat(batch)
            white, log_r = as_function(contrast, "contrast.", params, buffers)(x, parts.z)
            noise = torch.randn_like(white)
            kl = t(beside(x, white)) + log_r - parts.log_prior
            elbo = (parts.log_likelihood - kl).mean()
            return {
                "critic_loss": critic_loss(t, beside(x, white.detach()), beside(x, noise), "js"),
                "contrast_loss": -log_r.mean(),
                "pair_loss": -elbo,
                "elbo": elbo,
                "kl": kl.mean(),
            }

        params = {
            **named("critic.", dict(critic.named_parameters())),
            **named("contrast.", dict(contrast.named_parameters())),
            **named("pair.", pair.params),
        }
        buffers = {
            **named("critic.", dict(critic.named_buffers())),
            **named("contrast.", dict(contrast.named_buffers())),
            **named("pair.", pair.buffers),
        }
        both, all_three = ("critic", "contrast"), ("critic", "contrast", "pair")
        update = GameUpdate(losses, all_three, all_three, Adam(lr, (0.9, 0.99)), steps)
        variables = update.start(params, buffers)
        options: dict[str, Any] = {"lr": lr, "compile": compile, "progress": progress}
        record = play(update, variables, batches, steps=steps, critic_steps=critic_steps, **options)
        more = steps // 5 if settle is None else settle
        if more and record.stopped is None:
            update = GameUpdate(losses, both, both, Adam(lr, (0.9, 0.99)), more)
            variables = update.start(variables.params, variables.buffers)
            record = record.then(
                play(update, variables, batches, steps=more, critic_steps=1, **options)
            )

    for module, prefix in ((critic, "critic."), (contrast, "contrast.")):
        module.load_state_dict(
            {**under(prefix, variables.params), **under(prefix, variables.buffers)}
        )
    kept = {k: v.requires_grad_() for k, v in under("pair.", variables.params).items()}
    state = under("pair.", variables.buffers)
    pair.write_back(kept, state)

    def bound(function: Callable) -> Callable:
        def run(*a: Any, **k: Any) -> Any:
            with pair.bind(kept, state):
                return function(*a, **k)

        return run

    whole = next(iter(modules_of(pair.model) or modules_of(pair.guide)), None)
    return ImplicitRun(bound(pair.model), bound(pair.guide), whole, critic, contrast, record, seed)


class _Parts(NamedTuple):
    """What one run of the pair says of each particle and datum."""

    z: Tensor  # (K, B, L), all latents side by side
    log_prior: Tensor  # (K, B)
    log_likelihood: Tensor  # (K, B)


def _parts(weights: LogWeights) -> _Parts:
    latents = [t for n, t in weights.model.items() if not t.observed and n in weights.guide]
    observed = [t for t in weights.model.values() if t.observed]
    if not latents or not observed:
        raise ValueError(
            "the pair needs a latent that model and guide share, and an observed site."
        )
    shape = observed[0].log_prob.shape
    for t in latents:
        if not weights.guide[t.name].reparameterized:
            raise ValueError(
                f"site {t.name!r}: no gradient passes through a draw of the guide's "
                f"{type(weights.guide[t.name].fn).__name__}. An implicit guide computes its "
                "latents from noise: pyro.sample(name, dist.Delta(f(x, eps), event_dim=1))."
            )
        if t.log_prob.shape != shape or weights.nesting != 1:
            raise ValueError(
                f"site {t.name!r}: its log density has shape {tuple(t.log_prob.shape)} and that of "
                f"{observed[0].name!r} {tuple(shape)}. All sites must lie in the one data plate: "
                "a critic compares latents datum by datum."
            )
    return _Parts(
        torch.cat([t.value.reshape(*shape, -1) for t in latents], -1),
        torch.stack([t.log_prob for t in latents]).sum(0),
        torch.stack([t.log_prob for t in observed]).sum(0),
    )


def _flat(args: Iterable[Any]) -> Tensor:
    """All tensors of a batch side by side: (B, width)."""
    tensors = [a for a in args if torch.is_tensor(a)]
    return torch.cat([a.reshape(len(tensors[0]), -1).to(tensors[0]) for a in tensors], -1)


def beside(x: Tensor, white: Tensor) -> Tensor:
    """The critic's input: (B, width) and (K, B, L) -> (K, B, width + L)."""
    return torch.cat([x.expand(*white.shape[:-1], -1), white], -1)


def _critic(contrast: Contrast) -> Critic:
    """A network on the standardised datum and the whitened latent, which is standard already."""
    still = contrast.offset.new_zeros(contrast.latent_dim)
    mean, sd = torch.cat([contrast.mean, still]), torch.cat([contrast.sd, still + 1])
    return Critic(len(mean), quadratic="none", hidden=(128, 128, 128), mean=mean, sd=sd).to(mean)
