"""Critics fitted to two samples, each judged on the points that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ..estimate import Estimate
from ..optim import Adam
from ..training.batches import Batches
from ..training.game import AVERAGE, GameUpdate, named, under
from ..training.loop import Loop
from ..training.options import LoopOptions, lasting, trainer
from ..training.update import schedule_of
from .critics import check_critic, logistic_critic, logistic_weights, samples
from .divergences import DIVERGENCES
from .result import CrossFitted, DensityRatio

PIECE = 2**22  # numbers that go through a critic at once


@trainer(least_steps=0, steps=2_000, lr=5e-3, schedule="cosine", progress=False)
def density_ratio(
    x_p: Tensor,
    x_q: Tensor,
    *,
    critic: nn.Module | None = None,
    held_out: float = 0.25,
    **options: Unpack[LoopOptions],
) -> DensityRatio:
    """Fit critics to two samples: ℓ(x) -> log p(x)/q(x).

        max_ℓ  ½ E_P[log 2 sigmoid(ℓ)] + ½ E_Q[log 2 sigmoid(−ℓ)] = JS(P, Q) <= log 2 nats

    Cross-fitting: the points are dealt into folds, and for each fold a critic is fitted to the
    others, all critics in one batched step. A default critic begins as a logistic regression on
    linear and quadratic terms, solved exactly; then the whole critic is trained by Adam, its
    weights averaged, and those kept that do best on a sixth of its points, which do not train it.
    Every point is then judged by the critic that has not seen its fold; how much of the start and
    of the network to believe, and with what slope, is a logistic regression on the other folds.

    Args:
        x_p, x_q: samples of P (N_p, D) and of Q (N_q, D).
        critic: a module (..., D) -> (...), copied; None takes `Critic` with as many quadratic terms
            as leave at least twenty training points of each sample a term.
        steps: Adam updates of the whole critics; 0 keeps the start.
        batch_size: points of each sample a step; None takes 512, or all where there are fewer.
        held_out: the share of each sample that a critic does not see: one over the folds' number.
        resume: go on from this result of the same samples and critic, with its options where none
            is given here.
        options: those of all trainers, `inference.training.options.LoopOptions`.

    Returns:
        A `DensityRatio`. Ctrl-C ends the training early, between two steps.

    Raises:
        ValueError: a sample is not (N, D), too small, not finite or of another dimension; an
            argument is out of range.

    Source: Sugiyama, Suzuki & Kanamori 2012, "Density ratio estimation in machine learning", ch. 4;
    the bound is Nowozin et al. 2016 (arXiv:1606.00709), eq. 4; cross-fitting is Chernozhukov et al.
    2018 (arXiv:1608.00060), definition 3.1.
    """
    x_p, x_q = samples(x_p, "x_p", 20), samples(x_q, "x_q", 20)
    if x_p.shape[1] != x_q.shape[1] or x_p.dtype != x_q.dtype or x_p.device != x_q.device:
        got = [f"D = {x.shape[1]}, {x.dtype}, {x.device}" for x in (x_p, x_q)]
        raise ValueError(
            f"x_p and x_q: expected one dimension, dtype and device, got {' and '.join(got)}."
        )
    resume, steps, seed = options["resume"], options["steps"], options["seed"]
    folds = max(2, round(1 / held_out))
    sides = [_Sides(x, folds) for x in (x_p, x_q)]
    batches = _Pairs(sides, options["batch_size"], seed)
    starts = [
        logistic_critic(x_p[p], x_q[q]) if critic is None else deepcopy(critic).to(x_p)
        for p, q in zip(sides[0].train, sides[1].train)
    ]
    network = starts[0]
    check_critic(network, x_p[:2])
    params, buffers = (named("critic", tensors) for tensors in stack_module_state(starts))

    def one(params: dict, buffers: dict, x: Tensor) -> Tensor:
        return functional_call(network, {**params, **buffers}, (x,))

    each = torch.vmap(one, randomness="different")

    def losses(params: dict, buffers: dict, batch: tuple) -> dict[str, Tensor]:
        mine, fixed = under("critic", params), under("critic", buffers)
        ell = [each(mine, fixed, x) for x in batch]  # (folds, B)
        return {"critic_loss": -folds * DIVERGENCES["js"].bound(*ell)}  # the folds' sum

    update = GameUpdate(
        losses, ("critic",), ("critic",), Adam(options["lr"]),
        schedule_of(options["schedule"], max(steps, 1), x_p.device), decay=0.99,
        clip=options["clip"],
    )  # fmt: skip
    ratio = DensityRatio(
        variables=update.start(params, buffers), device=x_p.device, seed=seed,
        settings=lasting(options) | {"held_out": held_out},
    )  # fmt: skip
    ratio.go_on_from(resume, steps)

    def of_fold(tensors: Mapping[str, Tensor], k: int) -> tuple[dict, dict]:
        """Averaged parameters and buffers of one fold's critic."""
        fixed = under("critic", ratio.variables.buffers)
        mine = under(f"{AVERAGE}.critic", tensors)
        return {n: t[k] for n, t in mine.items()}, {n: t[k] for n, t in fixed.items()}

    @torch.no_grad()
    def at(tensors: Mapping[str, Tensor], k: int, x: Tensor) -> Tensor:
        """One fold's critic at x (N, D): (N,)."""
        pieces = x.split(max(1, PIECE // max(128, x.shape[1])))
        return torch.cat([one(*of_fold(tensors, k), piece) for piece in pieces])

    def everywhere(tensors: Mapping[str, Tensor], s: _Sides) -> Tensor:
        """All folds' critics at all points of a sample: (folds, N)."""
        return torch.stack([at(tensors, k, s.x) for k in range(folds)])

    def validate() -> tuple[Tensor, dict[str, float]]:
        chosen = [[at(ratio.kept(), k, s.x[s.choose[k]]) for s in sides] for k in range(folds)]
        found = torch.stack([DIVERGENCES["js"].bound(*ell) for ell in chosen])
        return found, {"valid": -float(found.mean())}

    if resume is None:
        score, row = validate()
        ratio.history.add({"step": 0.0, **row})
        ratio.keep_best(score.double())
    options["valid_every"] = options["valid_every"] or max(1, steps // 20)
    Loop(ratio, [update], batches, options, validate).go()

    kept = [ratio.final]
    if critic is None and steps:  # what the start says, beside the trained critic
        kept.insert(0, named(AVERAGE, params))
    outside: list[Any] = [  # (N, critics), each point by the critic that has not seen its fold
        torch.stack([everywhere(tensors, s)[s.fold, s.all] for tensors in kept], -1) for s in sides
    ]
    ratio.weights = logistic_weights(outside[0], outside[1])
    without = torch.stack([
        logistic_weights(outside[0][sides[0].fold != k], outside[1][sides[1].fold != k])
        for k in range(folds)
    ])  # fmt: skip
    (ratio.log_p, ratio.fold_p), (ratio.log_q, ratio.fold_q) = (
        ((ell.to(w) * w[:, :-1]).sum(-1) + w[:, -1], s.fold)
        for ell, s in zip(outside, sides)
        for w in [without[s.fold]]  # a point's weights are those of the other folds' points
    )
    # the trained critics at points that they were trained on, whichever are kept
    ratio.seen_p, ratio.seen_q = (
        everywhere(ratio.kept(), s)[(s.fold + 1) % folds, s.all] for s in sides
    )
    ratio.critic = CrossFitted([
        [_module(network, *of_fold(tensors, k)) for tensors in kept] for k in range(folds)
    ], ratio.weights)  # fmt: skip
    return ratio


def _module(network: nn.Module, params: dict, buffers: dict) -> nn.Module:
    """A copy of the critic with these tensors."""
    module = deepcopy(network)
    module.load_state_dict({**params, **buffers})
    return module.eval().requires_grad_(False)


class _Sides:
    """One sample, dealt into folds: for each critic the rows that train, choose and judge it."""

    def __init__(self, x: Tensor, folds: int):
        self.x, n = x, len(x)
        order = torch.randperm(n).to(x.device)
        self.all = torch.arange(n, device=x.device)
        self.fold = torch.empty_like(self.all)
        self.fold[order] = self.all % folds
        rest = [order[self.fold[order] != k] for k in range(folds)]
        few = min(map(len, rest))  # folds differ by one point at most
        cut = max(2, round(few / 6))
        self.choose = torch.stack([r[:cut] for r in rest])  # (folds, n)
        self.train = torch.stack([r[cut:few] for r in rest])


class _Pairs(Batches):
    """Batches of both samples for every critic, (folds, B, D) each: rows drawn with replacement."""

    def __init__(self, sides: list[_Sides], batch_size: int | None, seed: int):
        super().__init__(tuple(s.x for s in sides), None, seed)
        fewest = min(s.train.shape[1] for s in sides)
        self.sides, self.whole = sides, False
        self.batch_size: int = batch_size or min(512, fewest)
        if self.batch_size > fewest:
            raise ValueError(
                f"batch_size: expected 1 to {fewest}, the training points of the smaller sample, "
                f"got {batch_size}. Give more samples or a smaller batch."
            )

    def next(self, repeats: int = 1) -> tuple[tuple, bool]:
        """As `Batches.next`."""
        lead = (repeats,) if repeats > 1 else ()
        out = []
        for s in self.sides:
            folds, n = s.train.shape
            pick = torch.randint(n, (*lead, folds, self.batch_size), generator=self._order)
            rows = s.train.expand(*lead, folds, n).gather(-1, pick.to(s.train.device))
            out.append(s.x[rows])
        return tuple(out), repeats == 1

    def example(self, rows: int | None = None) -> tuple:
        """A batch; the order stays as it is."""
        state = self.state()
        batch, _ = self.next()
        self.restore(state)
        return batch


def mutual_information(x: Tensor, y: Tensor, *, seed: int = 0, **options: Any) -> Estimate:
    """I(X; Y) = KL(p(x, y) || p(x) p(y)), nats: half the pairs against the rest, y shuffled.

    Args:
        x, y: N draws of the pair, (N, D_x) and (N, D_y).
        seed, options: as in `density_ratio`.

    Returns:
        E[ℓ(x, y)] over held-out joint samples and its standard error. Not a bound.

    Raises:
        ValueError: the two have different lengths, or `density_ratio` refuses them.
    """
    if len(x) != len(y):
        raise ValueError(f"x and y: expected pairs, got {len(x)} and {len(y)} rows.")
    half = len(x) // 2  # a shuffled pair must not share its points with a joint one held out
    shuffle = half + torch.randperm(len(y) - half, generator=torch.Generator().manual_seed(seed))
    joint = torch.cat([x[:half], y[:half]], -1)
    product = torch.cat([x[half:], y[shuffle.to(y.device)]], -1)
    return density_ratio(joint, product, seed=seed, **options).kl
