"""Critics fitted to two samples, each judged on the points that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from ..estimate import Estimate
from ..optim import Adam
from ..randomness import forked
from ..training.game import AVERAGE, GameUpdate, named, under
from ..training.loop import Loop
from ..training.options import LoopOptions, lasting, trainer
from ..training.update import even_parts, schedule_of
from .adversarial import check_critic
from .critics import logistic_critic, logistic_weights
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
    _check_samples(x_p, x_q)
    resume, steps, seed = options["resume"], options["steps"], options["seed"]
    folds = max(2, round(1 / held_out))
    with forked(seed):
        sides = [_Sides(x, folds) for x in (x_p, x_q)]
        fewest = min(s.train.shape[1] for s in sides)
        batch = options["batch_size"] or min(512, fewest)
        if batch > fewest:
            raise ValueError(
                f"batch_size: expected 1 to {fewest}, the training points of the smaller sample, "
                f"got {batch}. Give more samples or a smaller batch."
            )
        starts = [
            logistic_critic(x_p[p], x_q[q]) if critic is None else deepcopy(critic).to(x_p)
            for p, q in zip(sides[0].train, sides[1].train)
        ]
        check_critic(starts[0], x_p[:2])
        network = starts[0]
        params, buffers = ({k: t.detach().clone() for k, t in tensors.items()}
                           for tensors in stack_module_state(starts))  # fmt: skip

        def one(params: dict, buffers: dict, x: Tensor) -> Tensor:
            return functional_call(network, {**params, **buffers}, (x,))

        each = torch.vmap(one, randomness="different")

        def losses(params: dict, buffers: dict, batch: tuple) -> dict[str, Tensor]:
            mine, fixed = under("critic.", params), under("critic.", buffers)
            ell = [each(mine, fixed, x) for x in batch]  # (folds, B)
            return {"critic_loss": -folds * DIVERGENCES["js"].bound(*ell)}  # the folds' sum

        update = GameUpdate(
            losses, ("critic",), ("critic",), Adam(options["lr"]),
            schedule_of(options["schedule"], max(steps, 1)), decay=0.99, clip=options["clip"],
        )  # fmt: skip
        params, buffers = named("critic.", params), named("critic.", buffers)
        means = named(AVERAGE, params)
        variables = update.start(params, {**buffers, **means})
        settings = lasting(options) | {"held_out": held_out}
        ratio = DensityRatio(variables=variables, device=x_p.device, seed=seed, settings=settings)
        ratio.go_on_from(resume, steps)

        @torch.no_grad()
        def at(tensors: Mapping[str, Tensor], fold: int, x: Tensor) -> Tensor:
            """One fold's critic at x (N, D): (N,)."""
            params = {k: t[fold] for k, t in under(f"{AVERAGE}critic.", tensors).items()}
            fixed = {k: t[fold] for k, t in under("critic.", variables.buffers).items()}
            pieces = even_parts(len(x), max(1, PIECE // max(128, x.shape[1])))
            return torch.cat([one(params, fixed, x[piece]) for piece in pieces])

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
        Loop(ratio, [update], _Pairs(sides, batch, seed), options, validate).go()

        kept = [ratio.final]
        if critic is None and steps:  # what the start says, beside the trained critic
            kept.insert(0, means)
        # (folds, N, critics), each
        values = [torch.stack([everywhere(tensors, s) for tensors in kept], -1) for s in sides]
        _judge(ratio, values, sides)
        # the trained critics at points that they were trained on, whichever are kept
        ratio.seen_p, ratio.seen_q = (
            everywhere(ratio.kept(), s)[(s.fold + 1) % folds, torch.arange(len(s.x))] for s in sides
        )
        fixed = under("critic.", variables.buffers)
        ratio.critic = CrossFitted([
            [_module(network, under(f"{AVERAGE}critic.", tensors), fixed, k) for tensors in kept]
            for k in range(folds)
        ], ratio.weights)  # fmt: skip
    return ratio


def _judge(ratio: DensityRatio, values: list[Tensor], sides: list[_Sides]) -> None:
    """Weigh the critics by logistic regression, and write down every point's log ratio.

    A point's weights are those of the other folds' points, each judged by its own fold's critic.
    """
    folds = len(values[0])
    outside = [v[s.fold, torch.arange(len(s.x))] for v, s in zip(values, sides)]  # (N, critics)
    ratio.weights = logistic_weights(*outside)
    without = torch.stack([
        logistic_weights(*(o[s.fold != k] for o, s in zip(outside, sides))) for k in range(folds)
    ])  # fmt: skip
    found = []
    for ell, s in zip(outside, sides):
        w = without[s.fold]
        found += [(ell.to(w) * w[:, :-1]).sum(-1) + w[:, -1], s.fold]
    ratio.log_p, ratio.fold_p, ratio.log_q, ratio.fold_q = found


def _module(network: nn.Module, params: dict, buffers: dict, fold: int) -> nn.Module:
    """One fold's critic as a module of its own."""
    module = deepcopy(network)
    module.load_state_dict({k: t[fold] for k, t in {**params, **buffers}.items()})
    return module.eval().requires_grad_(False)


class _Sides:
    """One sample, dealt into folds: for each critic the rows that train, choose and judge it."""

    def __init__(self, x: Tensor, folds: int):
        self.x, n = x, len(x)
        order = torch.randperm(n).to(x.device)
        self.fold = torch.empty(n, dtype=torch.long, device=x.device)
        self.fold[order] = torch.arange(n, device=x.device) % folds
        rest = [order[self.fold[order] != k] for k in range(folds)]
        few = min(map(len, rest))  # folds differ by one point at most
        cut = max(2, round(few / 6))
        self.choose = torch.stack([r[:cut] for r in rest])  # (folds, n)
        self.train = torch.stack([r[cut:few] for r in rest])


class _Pairs:
    """Batches of both samples for every critic, (folds, B, D) each: rows drawn with replacement."""

    whole = False

    def __init__(self, sides: Sequence[_Sides], batch_size: int, seed: int):
        self.sides, self.batch_size = sides, batch_size
        self._order = torch.Generator().manual_seed(seed)

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

    def example(self) -> tuple:
        """A batch; the order stays as it is."""
        state = self.state()
        batch, _ = self.next()
        self.restore(state)
        return batch

    def state(self) -> dict[str, Tensor]:
        """Return the state of the order, from which `restore` goes on."""
        return {"order": self._order.get_state().clone()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        self._order.set_state(state["order"])


def mutual_information(x: Tensor, y: Tensor, *, seed: int = 0, **options: object) -> Estimate:
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
    return density_ratio(joint, product, seed=seed, **options).kl  # type: ignore[arg-type]


def _check_samples(x_p: Tensor, x_q: Tensor) -> None:
    for name, x in (("x_p", x_p), ("x_q", x_q)):
        if not torch.is_tensor(x):
            raise ValueError(
                f"{name}: expected a tensor of shape (N, D), got {type(x).__name__}. "
                "Wrap it in torch.tensor."
            )
        if x.dim() != 2 or not x.is_floating_point():
            raise ValueError(
                f"{name}: expected floats of shape (N, D), got {x.dtype} of shape {tuple(x.shape)}."
                " Reshape it, x[:, None] for one dimension."
            )
        if len(x) < 20 or x.shape[1] == 0:
            raise ValueError(
                f"{name}: expected at least 20 samples, got shape {tuple(x.shape)}. Draw more."
            )
        if not torch.isfinite(x).all():
            n = int((~torch.isfinite(x)).sum())
            raise ValueError(f"{name}: {n} values are NaN or infinite. Drop those rows first.")
    if x_p.shape[1] != x_q.shape[1] or x_p.dtype != x_q.dtype or x_p.device != x_q.device:
        raise ValueError(
            "x_p and x_q: expected one dimension, dtype and device, got "
            f"D = {x_p.shape[1]}, {x_p.dtype}, {x_p.device} and "
            f"D = {x_q.shape[1]}, {x_q.dtype}, {x_q.device}."
        )
