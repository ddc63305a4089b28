"""Generators without a density, fitted against a critic.

The critic estimates a divergence between data and generator (`inference.ratios`), the generator
lowers it. The two losses are pure functions of (critic, samples); `fit_adversarial` is the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..optim import Adam
from ..pairs.options import device_of, one_of
from ..pairs.pair import modules_of
from ..training.batches import Batches, batch_transform
from ..training.game import GameUpdate, PlayedPair, Players
from ..training.loop import Loop
from ..training.options import TrainingOptions, lasting, trainer
from ..training.run import own_pair
from ..training.update import schedule_of
from .critics import check_critic, network_critic, samples, spread
from .divergences import DIVERGENCES, FDivergence, gradient_penalty

BATCH = 256  # rows of a step, when no batch size is given
HELD_OUT = 2_000  # rows, at most, of which all pairs are compared
ADVICE = "Lower lr, raise the penalty, or choose another objective."
ROWS = {
    "non-saturating": DIVERGENCES["js"],
    "minimax": DIVERGENCES["js"],
    "wasserstein": FDivergence("wasserstein", lambda v: v, lambda v: v),  # no ℓ, but a potential
    **DIVERGENCES,
}
OBJECTIVES = tuple(ROWS)


def critic_divergence(critic: Callable, x_real: Tensor, x_fake: Tensor, objective: str) -> Tensor:
    """The critic's lower bound on the distance from data to generator: ().

    The Jensen-Shannon divergence for `"non-saturating"` and `"minimax"`, the f-divergence of that
    name (nats), or the Wasserstein distance if the critic is 1-Lipschitz (units of x).
    """
    row = ROWS[objective]
    return row.bound(row.link(critic(x_real)), row.link(critic(x_fake)))


def critic_loss(
    critic: Callable, x_real: Tensor, x_fake: Tensor, objective: str, penalty: float = 0.0
) -> Tensor:
    """−(the critic's divergence) + its gradient penalty: ().

    The penalty is λ E[(|∇v| − 1)²] between data and generator for `"wasserstein"` (Gulrajani et
    al. 2017, arXiv:1704.00028, eq. 3), and γ/2 E_data[|∇v|²] for all others (Mescheder, Geiger &
    Nowozin 2018, arXiv:1801.04406, eq. 9), without which these games need not converge.
    """
    loss = -critic_divergence(critic, x_real, x_fake, objective)
    if not penalty:
        return loss
    if objective == "wasserstein":
        return loss + penalty * gradient_penalty(critic, x_real, x_fake)
    x = x_real.detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return loss + 0.5 * penalty * slope.square().sum(-1).mean()


def generator_loss(
    critic: Callable, x_fake: Tensor, objective: str, x_real: Tensor | None = None
) -> Tensor:
    """The generator's loss: (), nats (for `"wasserstein"`, units of x).

    Given `x_real`, data with latents that an encoder inferred, the other term too, which the
    encoder lowers (Dumoulin et al. 2017, arXiv:1606.00704, eq. 2 and algorithm 1).

    non-saturating: −E[log D]; minimax: E[log(1 − D)], D = sigmoid(v) (Goodfellow et al. 2014,
    arXiv:1406.2661, section 3); a divergence: −E[f*(T)], its share of the bound (Nowozin et al.
    2016, arXiv:1606.00709, eq. 4); wasserstein: −E[v].
    """
    v, row = critic(x_fake), ROWS[objective]
    u = None if x_real is None else critic(x_real)
    if objective == "non-saturating":
        return softplus(-v).mean() + (0.0 if u is None else softplus(u).mean())
    if objective == "minimax":
        return -softplus(v).mean() - (0.0 if u is None else softplus(-u).mean())
    loss = -row.penalty(row.link(v)).mean()
    return loss if u is None else loss + row.activation(row.link(u)).mean()


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 E|x − y| − E|x − x'| − E|y − y'| of two samples: (), units of x; 0 for one distribution.

    Source: Székely & Rizzo 2013, "Energy statistics", eq. 5, without the pairs of a point with
    itself, so that it is unbiased.
    """
    n, m = len(x), len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return 2 * torch.cdist(x, y).mean() - within


@dataclass(kw_only=True, repr=False)
class AdversarialRun(PlayedPair):
    """A fitted generator and its critic; `Training` says how it went.

    The history has `critic_loss`, `generator_loss` and `divergence`, means over an interval; the
    losses are the generator's.

    Attributes:
        generator: the trained copy of the module given, or the function with its parameters.
        critic: the trained critic; its output is the log ratio of data to generator, nats
            (`"pearson"`: through its link; `"wasserstein"`: a potential).
        objective: one of `OBJECTIVES`.
        is_bound: False. A critic's divergence says nothing of log p(x).
    """

    player: ClassVar[str] = "generator"
    objective: str
    generator: Any = None

    @torch.no_grad()
    def sample(self, n: int, best: bool = True) -> Tensor:
        """`n` draws from the generator: (n, D); with `best` false, from its latest parameters."""
        state = self.state if best else self.own(self.kept())
        with self.pair_.bind(state, self.buffers):
            drawn = self.pair_.model(n)
        return (drawn[0] if isinstance(drawn, tuple) else drawn).detach()

    def plot(self) -> Figure:
        """Both losses and the critic's divergence against the step."""
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        step = self.history["step"]
        for player in ("critic", "generator"):
            left.plot(step, self.history[f"{player}_loss"], label=player)
        unit = "units of x" if self.objective == "wasserstein" else "nats"
        left.set(xlabel="step", ylabel=f"loss ({unit})", title=self.objective)
        left.legend()
        right.plot(step, self.history["divergence"])
        right.set(xlabel="step", ylabel=f"the critic's divergence ({unit})")
        return figure


@trainer(steps=5_000, lr=1e-3, schedule="cosine")
def fit_adversarial(
    generator: Callable | nn.Module,
    data: Any,
    *,
    critic: nn.Module | None = None,
    objective: str = "non-saturating",
    betas: tuple[float, float] = (0.5, 0.99),
    critic_steps: int | None = None,
    penalty: float | None = None,
    average: float = 0.999,
    **options: Unpack[TrainingOptions],
) -> AdversarialRun:
    """Fit a generator by lowering the divergence that a critic raises.

        min_generator max_critic  E_data[T(x)] − E_generator[f*(T(x))] <= D_f(data || generator)

    Args:
        generator: a Pyro model `n -> x` (n, D), or a module with such a method `model`. Its sites
            may be anything whose draw is differentiable; it needs no density. It is copied. Where
            the model returns (x, z) and the module has a method `infer`, x -> z, the critic judges
            both together: (data, inferred latents) against (draws, their latents), and lowering
            the divergence makes the encoder the generator's inverse (ALI, BiGAN).
        data: x (N, D), or a data set with `train`; dynamic pixels are drawn at every step.
        critic: a module (..., D) -> (...), or (..., D + L) -> (...) of x and z side by side;
            copied; None takes a network of three layers of 128.
        objective: one of `OBJECTIVES`.
        steps: moves of the generator, those of `resume` included.
        lr, betas: of Adam, for both players.
        batch_size: rows of data and draws of the generator in a step; None takes 256, or all.
        critic_steps: moves of the critic for one of the generator; None: 5 for "wasserstein", 1
            for the others.
        penalty: weight of the critic's gradient penalty (`critic_loss`): λ in the units of x for
            "wasserstein" (None: 10), else γ in units in which the data's mean variance is 1
            (None: 0.5).
        average: decay of the running mean of the generator's weights that is kept; 0 keeps the
            last weights.
        valid: held-out rows; the generator kept is then the one whose draws have the smallest
            energy distance to them, which needs no critic.
        options: those of all trainers, `inference.training.options.TrainingOptions`.

    Returns:
        An `AdversarialRun`. Ctrl-C ends the training early, between two steps.

    Raises:
        ValueError: no such objective (the nearest is named); the data is not (N, D), holds NaN,
            or is smaller than a batch; the generator returns no x, or one of another dimension;
            `resume` is a run of another generator or of other data.
    """
    one_of("objective", objective, OBJECTIVES)
    wasserstein = objective == "wasserstein"
    if critic_steps is None:
        critic_steps = 5 if wasserstein else 1
    if penalty is None:
        penalty = 10.0 if wasserstein else 0.5
    steps, seed, valid = options["steps"], options["seed"], options["valid"]
    where = device_of(options["device"])
    x = samples(getattr(data, "train", data), "data").to(where)
    held_out = None if valid is None else samples(valid, "valid").to(x)[:HELD_OUT]
    drawn = batch_transform(data)
    batches = Batches((x,), options["batch_size"] or min(BATCH, len(x)), seed, held_out)
    n, dim = len(batches.example()[0]), x.shape[1]
    weight = penalty * (1.0 if wasserstein else float(x.var(0).mean()))

    pair = own_pair(where, getattr(generator, "model", generator), _no_guide, (n,), {})
    infer = getattr(next(iter(modules_of(pair.model)), None), "infer", None)

    def joined(x: Tensor) -> Tensor:
        """Data, with the latents that the encoder infers beside them."""
        return x if infer is None else torch.cat([x, infer(x)], -1)

    def generated(n: int) -> Tensor:
        drawn_ = pair.model(n)
        return torch.cat(drawn_, -1) if isinstance(drawn_, tuple) else drawn_

    with pair.bind(pair.params, pair.buffers), torch.no_grad():
        example = joined(x[:2])
    width = example.shape[1]
    with pair.bind(pair.params, pair.buffers):
        _check_generator(generated(n), n, width)
    if critic is None:
        mean, sd = x.new_zeros(width), x.new_ones(width)  # latents have those of the prior
        mean[:dim], sd[:dim] = x.mean(0), spread(x)
        own: nn.Module = network_critic(mean, sd)
    else:
        own = deepcopy(critic).to(where)
    check_critic(own, example)
    players = Players(critic=own, generator=pair)

    def losses(params: dict, buffers: dict, batch: tuple) -> dict[str, Tensor]:
        (x_real,) = drawn(batch)
        with players.bind("generator", params, buffers):
            x_fake, x_real = generated(len(x_real)), joined(x_real)
        v = players.function("critic", params, buffers)
        still, seen = x_fake.detach(), x_real.detach()
        return {
            "critic_loss": critic_loss(v, seen, still, objective, weight),
            "generator_loss": generator_loss(v, x_fake, objective, x_real if infer else None),
            "divergence": critic_divergence(v, seen, still, objective),
        }

    names, adam = tuple(players.parts), Adam(options["lr"], (betas[0], betas[1]))
    update = GameUpdate(
        losses, names, names, adam, schedule_of(options["schedule"], steps, where), average,
        options["clip"],
    )  # fmt: skip
    run = AdversarialRun(
        critic=own, objective=objective, pair_=pair, example=(n,), device=where, seed=seed,
        variables=update.start(players.params, players.buffers),
        settings=lasting(options) | {
            "objective": objective, "betas": betas, "critic_steps": critic_steps,
            "penalty": penalty, "average": average,
        },
    )  # fmt: skip
    run.go_on_from(options["resume"], steps)

    def validate() -> tuple[Tensor, dict[str, float]]:
        assert held_out is not None
        with torch.no_grad(), pair.bind(run.own(run.kept()), run.buffers):
            fake = generated(len(held_out))[:, :dim]
        distance = energy_distance(held_out, fake)
        return -distance, {"valid_energy_distance": float(distance)}

    Loop(
        run, update.moves(critic_steps), batches, options, None if held_out is None else validate,
        unit="units of x" if wasserstein else "nats", advice=ADVICE,
    ).go()  # fmt: skip
    players.write_back(run.final, run.variables.buffers)
    run.write_back()
    run.generator = next(iter(modules_of(pair.model)), run.sample)
    return run


def _check_generator(x: Any, n: int, dim: int) -> None:
    if not torch.is_tensor(x) or x.shape != (n, dim):
        got = tuple(x.shape) if torch.is_tensor(x) else repr(x)
        raise ValueError(
            f"generator: called with n = {n}, expected it to return x of shape ({n}, {dim}) as in "
            f"the data, got {got}."
        )
    if not x.requires_grad:
        raise ValueError(
            "generator: no gradient reaches its parameters from x. Draw every site with a "
            "reparameterised distribution, and register the parameters (pyro.param, nn.Module)."
        )


def _no_guide(*args: Any, **kwargs: Any) -> None:
    """A generator has nothing to infer."""
