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
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from ..estimate import Estimate
from ..optim import Adam
from ..pairs.options import device_of
from ..training.batches import Batches, arguments, batch_transform
from ..training.game import GameUpdate, PlayedPair, Players
from ..training.loop import Loop
from ..training.options import TrainingOptions, lasting, trainer
from ..training.run import own_pair
from ..training.update import schedule_of
from ..weights import LogWeights, log_weights, no_validation
from .adversarial import ADVICE, BATCH, critic_loss
from .critics import check_critic, network_critic, spread


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
        mean, sd = x.mean(0), spread(x)
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


@dataclass(kw_only=True, repr=False)
class ImplicitRun(PlayedPair):
    """A pair with an implicit guide, fitted, and the critic that stands for its density.

    `Training` says how it went. The history has `critic_loss`, `contrast_loss`, `pair_loss`, `elbo`
    and `kl`, means over an interval; the losses are the pair's.

    Attributes:
        critic: T(x, z̃) = log q/r at the whitened latent; its input is x and z̃ side by side.
        contrast: the Gaussian r(z | x).
        is_bound: False. The ELBO is estimated by a critic that need not be optimal.
        settle_from: the step from which the pair was held fixed, or None.
    """

    player: ClassVar[str] = "pair"
    further: ClassVar[tuple[str, ...]] = ("settle_from",)
    contrast: Contrast
    settle_from: int | None = None

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

        means = []
        for values in (parts.log_likelihood - kl, parts.log_likelihood, kl):
            se = (values.var(0).mean() / values.numel()).sqrt() if draws > 1 else float("nan")
            means.append(Estimate(float(values.mean()), float(se)))
        return ImplicitEvaluation(*means)


@trainer(steps=5_000, lr=1e-3, schedule="cosine")
def fit_implicit(
    model: Callable | nn.Module,
    guide: Any = None,
    data: Any = None,
    *,
    critic: nn.Module | None = None,
    settle: int | None = None,
    betas: tuple[float, float] = (0.9, 0.99),
    critic_steps: int = 2,
    **options: Unpack[TrainingOptions],
) -> ImplicitRun:
    """Fit a pair whose guide has no density.

    `fit_implicit(pair, data)` for a module with methods `model` and `guide`, or
    `fit_implicit(model, guide, data)`. All latents must be continuous and lie in the data plate.

    Args:
        data: a tensor, a tuple of arguments, or a data set with `train`; dynamic pixels are drawn
            at every step.
        critic: a module (..., D + L) -> (...), copied; None takes a network of three layers of 128.
        steps: moves of the pair, those of `resume` included.
        settle: moves of critic and contrast alone after that, with the pair held fixed, so that
            the estimates are those of the final guide; None takes a fifth of `steps`.
        lr, betas: of Adam, for all.
        batch_size: rows of a step; None takes 256, or all.
        critic_steps: moves of critic and contrast for one of the pair; more where the posterior is
            far from Gaussian.
        schedule: "constant", "linear" or "cosine" (both to zero), or a function of the step count,
            as in `fit`; for the moves of the pair, and again for the moves after.
        valid: held-out data, like `data`; what is kept, while the pair moves, is what has the
            highest ELBO on it, as the critic of the moment estimates it.
        options: those of all trainers, `inference.training.options.TrainingOptions`.

    Returns:
        An `ImplicitRun`. Ctrl-C ends the training early, between two steps.

    Raises:
        ValueError: the data holds NaN or is smaller than a batch; a latent is discrete, lies
            outside the data plate, or cannot be differentiated; a loss is no longer finite;
            `resume` is a run of another pair or of other data.
    """
    resume, steps, seed = options["resume"], options["steps"], options["seed"]
    settle = steps // 5 if settle is None else settle
    where = device_of(options["device"])
    model, guide, data, args, held_out = arguments(model, guide, data, options["valid"], where)
    if (rows := len(args[0])) < 2:
        raise ValueError(f"data: expected at least 2 rows, got {rows}.")
    drawn = batch_transform(data)
    batches = Batches(args, options["batch_size"] or min(BATCH, rows), seed, held_out)
    pair = own_pair(where, model, guide, batches.example(), {})
    some = drawn(batches.example(min(rows, 4_096)))
    with pair.bind(pair.params, pair.buffers):
        first = _parts(log_weights(pair.model, pair.guide, *some, nesting=pair.nesting))
    flat = _flat(some)
    contrast = Contrast(flat, first.z[0].detach())
    if critic is None:  # on the standardised datum and the latent, which is standard already
        still = torch.zeros_like(contrast.offset)
        mean, sd = torch.cat([contrast.mean, still]), torch.cat([contrast.sd, still + 1])
        critic = network_critic(mean, sd)
    else:
        critic = deepcopy(critic).to(where)
    check_critic(critic, beside(flat, first.z[0].detach())[:2])
    players = Players(critic=critic, contrast=contrast, pair=pair)

    def losses(params: dict, buffers: dict, batch: tuple) -> dict[str, Tensor]:
        batch = drawn(batch)
        with players.bind("pair", params, buffers):
            parts = _parts(log_weights(pair.model, pair.guide, *batch, nesting=pair.nesting))
        t = players.function("critic", params, buffers)
        x = _flat(batch)
        white, log_r = players.function("contrast", params, buffers)(x, parts.z)
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

    names = tuple(players.parts)
    update = GameUpdate(
        losses, names, names, Adam(options["lr"], (betas[0], betas[1])),
        schedule_of(options["schedule"], steps, where), clip=options["clip"],
    )  # fmt: skip
    run = ImplicitRun(
        critic=critic, contrast=contrast, pair_=pair, example=batches.example(), device=where,
        seed=seed, variables=update.start(players.params, players.buffers),
        settings=lasting(options) | {
            "settle": settle, "betas": betas, "critic_steps": critic_steps,
        },
    )  # fmt: skip
    run.go_on_from(resume, steps + settle)

    def validate() -> tuple[Tensor, dict[str, float]]:
        v = run.variables
        with torch.no_grad(), no_validation():
            assert held_out is not None
            found = losses(v.params, {k: b.clone() for k, b in v.buffers.items()}, held_out)
        return found["elbo"], {f"valid_{k}": float(found[k]) for k in ("elbo", "kl")}

    reported: dict[str, Any] = {"unit": "nats per datum", "advice": ADVICE}
    settling = run.settle_from is not None and steps <= resume.settings["steps"]
    if not settling and run.steps < steps and not run.held:
        run.settle_from = None
        held = None if options["valid"] is None else validate
        Loop(run, update.moves(critic_steps), batches, options, held, **reported).go()
    if (
        settle
        and not run.held
        and (settling or run.stopped is None or run.stopped.startswith("no better"))
    ):
        if run.settle_from is None:  # the pair stays as it is kept; all else begins anew
            run.settle_from = run.steps
            for name, p in (run.best_params or {}).items():
                run.variables.params[name].copy_(p)
            for slot in [s for slots in run.variables.optim.values() for s in slots]:
                slot.zero_()
        begin, factor = run.settle_from, schedule_of(options["schedule"], settle, where)
        alone = replace(
            update, movers=names[:-1], schedule=factor and (lambda count: factor(count - begin))
        )
        options |= {"steps": begin + settle, "patience": None}
        Loop(run, alone.moves(1), batches, options, **reported).go()
    players.write_back(run.variables.params, run.variables.buffers)
    run.write_back()
    return run


class _Parts(NamedTuple):
    """One run of the pair: latents and log densities of each particle and datum."""

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
