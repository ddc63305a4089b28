"""Generators without a density, fitted against a critic.

The critic estimates a divergence between data and generator (`inference.ratios`), the generator
lowers it. The two losses are pure functions of (critic, samples); `fit_adversarial` is the loop.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..optim import Adam
from ..pairs.pair import Pair, modules_of, own_copy
from ..randomness import forked
from ..training.fitting import Batches, batch_transform, pick_device
from ..training.game import AVERAGE, GameUpdate, Played, as_function, named, play, under
from .critics import Critic
from .divergences import DIVERGENCES, gradient_penalty

OBJECTIVES = ("non-saturating", "minimax", "wasserstein", *DIVERGENCES)


def critic_divergence(critic: Callable, x_real: Tensor, x_fake: Tensor, objective: str) -> Tensor:
    """What the critic says of the distance from data to generator, a lower bound: ().

    The Jensen-Shannon divergence for `"non-saturating"` and `"minimax"`, the f-divergence of that
    name (nats), or the Wasserstein distance if the critic is 1-Lipschitz (units of x).
    """
    v_real, v_fake = critic(x_real), critic(x_fake)
    if objective == "wasserstein":
        return v_real.mean() - v_fake.mean()
    row = DIVERGENCES.get(objective, DIVERGENCES["js"])
    return row.bound(row.link(v_real), row.link(v_fake))


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


def generator_loss(critic: Callable, x_fake: Tensor, objective: str) -> Tensor:
    """What the generator lowers: (), nats (for `"wasserstein"`, units of x).

    non-saturating: −E[log D]; minimax: E[log(1 − D)], D = sigmoid(v) (Goodfellow et al. 2014,
    arXiv:1406.2661, section 3); a divergence: −E[f*(T)], its share of the bound (Nowozin et al.
    2016, arXiv:1606.00709, eq. 4); wasserstein: −E[v].
    """
    v = critic(x_fake)
    if objective == "non-saturating":
        return softplus(-v).mean()
    if objective == "minimax":
        return -softplus(v).mean()
    if objective == "wasserstein":
        return -v.mean()
    row = DIVERGENCES[objective]
    return -row.penalty(row.link(v)).mean()


@dataclass
class AdversarialRun:
    """A fitted generator and its critic.

    Attributes:
        generator: the trained copy of the module given, or the function with its parameters.
        critic: the trained critic; its output is the log ratio of data to generator, nats
            (`"pearson"`: through its link; `"wasserstein"`: a potential).
        objective: one of `OBJECTIVES`.
        record: history, seconds, whether it was interrupted or compiled (`Played`).
        seed: of everything random in the run.
        is_bound: False. A critic's divergence says nothing of log p(x).
    """

    generator: Any
    critic: nn.Module
    objective: str
    record: Played
    seed: int
    _draw: Callable[[int], Tensor]
    is_bound: bool = False

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """`n` draws from the generator: (n, D)."""
        return self._draw(n)

    @property
    def history(self) -> Any:
        """Rows of `step`, `critic_loss`, `generator_loss`, `divergence`, `seconds`."""
        return self.record.history

    @property
    def seconds(self) -> float:
        """Of the loop, compiling included."""
        return self.record.seconds

    @property
    def stopped(self) -> str | None:
        """Why the run ended early, or None."""
        return self.record.stopped

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


def fit_adversarial(
    generator: Callable | nn.Module,
    data: Any,
    *,
    critic: nn.Module | None = None,
    objective: str = "non-saturating",
    steps: int = 5_000,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.5, 0.99),
    batch_size: int | None = None,
    critic_steps: int | None = None,
    penalty: float | None = None,
    schedule: str = "cosine",
    average: float = 0.999,
    compile: bool | str = "auto",
    device: str | torch.device = "auto",
    seed: int = 0,
    progress: bool = True,
) -> AdversarialRun:
    """Fit a generator by lowering the divergence that a critic raises.

        min_generator max_critic  E_data[T(x)] − E_generator[f*(T(x))] <= D_f(data || generator)

    Args:
        generator: a Pyro model `n -> x` (n, D), or a module with such a method `model`. Its sites
            may be anything whose draw is differentiable; it needs no density. It is copied.
        data: x (N, D), or a data set with `train`; dynamic pixels are drawn at every step.
        critic: a module (..., D) -> (...), copied; None takes a network of three layers of 128.
        objective: one of `OBJECTIVES`.
        steps: moves of the generator.
        lr, betas: of Adam, for both players.
        batch_size: rows of data and draws of the generator in a step; None takes 256, or all.
        critic_steps: moves of the critic for one of the generator; None: 5 for "wasserstein", 1
            for the others.
        penalty: weight of the critic's gradient penalty (`critic_loss`): λ in the units of x for
            "wasserstein" (None: 10), else γ in units in which the data's mean variance is 1
            (None: 0.5).
        schedule: "cosine" (to zero) or "constant".
        average: decay of the running mean of the generator's weights that is kept; 0 keeps the
            last weights.
        compile: True, False, or "auto": where the run is long enough to earn it.
        device: "auto" (CUDA where there is one), or a torch device.
        seed: of the batches, the noise and the default critic's weights.
        progress: show a progress bar with the generator's loss.

    Returns:
        An `AdversarialRun`. Ctrl-C ends the training early and still returns it.

    Raises:
        ValueError: no such objective (the nearest is named); the data is not (N, D), holds NaN,
            or is smaller than a batch; the generator returns no x, or one of another dimension.
    """
    check_name("objective", objective, OBJECTIVES)
    check_name("schedule", schedule, ("cosine", "constant"))
    x = check_rows(getattr(data, "train", data)).to(where := pick_device(device))
    drawn = batch_transform(data)
    batches = Batches((x,), min(256, len(x)) if batch_size is None else batch_size, seed)
    n, dim = len(batches.example()[0]), x.shape[1]
    wasserstein = objective == "wasserstein"
    critic_steps = (5 if wasserstein else 1) if critic_steps is None else critic_steps
    penalty = (10.0 if wasserstein else 0.5) if penalty is None else penalty
    for name, value, least in (
        ("steps", steps, 1), ("critic_steps", critic_steps, 1), ("penalty", penalty, 0)
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}.")
    if not wasserstein:
        penalty = penalty * float(x.var(0).mean())

    with forked(seed):
        model, _ = own_copy(getattr(generator, "model", generator), _no_guide)
        for module in modules_of(model):
            module.to(where)
        pair = Pair(model, _no_guide, (n,))
        with pair.bind({k: v.requires_grad_() for k, v in pair.params.items()}, pair.buffers):
            _check_generator(pair.model(n), n, dim)
        own = default_critic(x) if critic is None else deepcopy(critic)
        own = own.to(where)
        check_critic(own, x[:2])

        def losses(params: dict, buffers: dict, batch: tuple) -> dict[str, Tensor]:
            (x_real,) = drawn(batch)
            with pair.bind(under("generator.", params), under("generator.", buffers)):
                x_fake = pair.model(len(x_real))
            v = as_function(own, "critic.", params, buffers)
            still = x_fake.detach()
            return {
                "critic_loss": critic_loss(v, x_real, still, objective, penalty),
                "generator_loss": generator_loss(v, x_fake, objective),
                "divergence": critic_divergence(v, x_real, still, objective),
            }

        players = ("critic", "generator")
        update = GameUpdate(
            losses, players, players, Adam(lr, betas),
            steps=steps if schedule == "cosine" else None, decay=average,
        )  # fmt: skip
        params = {
            **named("critic.", dict(own.named_parameters())),
            **named("generator.", pair.params),
        }
        buffers = {
            **named("critic.", dict(own.named_buffers())),
            **named("generator.", pair.buffers),
        }
        if average:
            buffers |= named(AVERAGE, named("generator.", pair.params))
        variables = update.start(params, buffers)
        record = play(
            update, variables, batches, steps=steps, critic_steps=critic_steps, lr=lr,
            compile=compile, progress=progress,
        )  # fmt: skip

    kept = under(f"{AVERAGE}generator." if average else "generator.",
                  variables.buffers if average else variables.params)  # fmt: skip
    kept = {k: v.requires_grad_() for k, v in kept.items()}  # Pyro warns of frozen parameters
    state = under("generator.", variables.buffers)
    pair.write_back(kept, state)
    own.load_state_dict(
        {**under("critic.", variables.params), **under("critic.", variables.buffers)}
    )

    def draw(n: int) -> Tensor:
        with pair.bind(kept, state):
            return pair.model(n)

    modules = modules_of(pair.model)
    return AdversarialRun(modules[0] if modules else draw, own, objective, record, seed, draw)


def default_critic(x: Tensor) -> Critic:
    """A network of three layers of 128 on standardised data."""
    sd = x.std(0)
    sd = torch.where(sd > 0, sd, torch.ones_like(sd))
    return Critic(x.shape[1], quadratic="none", hidden=(128, 128, 128), mean=x.mean(0), sd=sd).to(x)


def check_name(argument: str, name: str, known: tuple[str, ...]) -> None:
    """Raise ValueError unless `name` is known; the nearest is suggested."""
    if name not in known:
        near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{argument}: expected one of {list(known)}, got {name!r}.{hint}")


def check_critic(critic: nn.Module, x: Tensor) -> None:
    """Raise ValueError unless the critic gives one number for each row of x (B, D)."""
    got = critic(x).shape
    if got != x.shape[:1]:
        raise ValueError(
            f"critic: expected one number a row, shape {tuple(x.shape[:1])}, got {tuple(got)}. "
            "Squeeze its last axis."
        )


def check_rows(x: Any) -> Tensor:
    """`x` as a float tensor (N, D) with N > 1, or ValueError."""
    x = torch.as_tensor(x)
    if x.dim() != 2 or not x.is_floating_point() or len(x) < 2:
        raise ValueError(
            "data: expected floats of shape (N, D), N > 1, got "
            f"{x.dtype} of shape {tuple(x.shape)}."
        )
    return x


def _check_generator(x: Any, n: int, dim: int) -> None:
    if not torch.is_tensor(x):
        raise ValueError(f"generator: expected it to return x ({n}, {dim}), got {x!r}.")
    if x.shape != (n, dim):
        raise ValueError(
            f"generator: called with n = {n}, expected x of shape ({n}, {dim}) as in the data, "
            f"got {tuple(x.shape)}."
        )
    if not x.requires_grad:
        raise ValueError(
            "generator: no gradient reaches its parameters from x. Draw every site with a "
            "reparameterised distribution, and register the parameters (pyro.param, nn.Module)."
        )


def _no_guide(*args: Any, **kwargs: Any) -> None:
    """A generator has nothing to infer."""
