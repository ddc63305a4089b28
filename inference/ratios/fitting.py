"""A critic fitted to two samples."""

from __future__ import annotations

import time
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..randomness import forked
from .critics import logistic_critic
from .divergences import DIVERGENCES
from .result import DensityRatio, Estimate


def density_ratio(
    x_p: Tensor,
    x_q: Tensor,
    *,
    critic: nn.Module | None = None,
    steps: int = 2_000,
    lr: float = 5e-3,
    batch_size: int | None = None,
    held_out: float = 0.25,
    seed: int = 0,
) -> DensityRatio:
    """Fit a critic to two samples: ℓ(x) -> log p(x)/q(x).

        max_ℓ  ½ E_P[log 2 sigmoid(ℓ)] + ½ E_Q[log 2 sigmoid(−ℓ)] = JS(P, Q) <= log 2 nats

    The default critic begins as a logistic regression on linear and quadratic terms, solved
    exactly; then the whole critic is trained by Adam. Weights are averaged, and the average that
    does best on one half of the held-out points is kept if it gains more than three standard errors
    on where it started; the other half is for the estimates of the result.

    Args:
        x_p, x_q: samples of P (N_p, D) and of Q (N_q, D).
        critic: a module (..., D) -> (...), copied; None takes `Critic` with as many quadratic terms
            as leave at least twenty training points of each sample a term.
        steps: Adam updates of the whole critic; 0 keeps the start.
        lr: the largest learning rate; it falls to zero along a cosine.
        batch_size: points of each sample a step; None takes 512, or all where there are fewer.
        held_out: the share of each sample that is kept from training.
        seed: of the split, the batches and the default critic's weights.

    Returns:
        A `DensityRatio`. Ctrl-C ends the training early and still returns it.

    Raises:
        ValueError: a sample is not (N, D), too small, not finite or of another dimension; an
            argument is out of range.

    Source: Sugiyama, Suzuki & Kanamori 2012, "Density ratio estimation in machine learning", ch. 4;
    the bound is Nowozin et al. 2016 (arXiv:1606.00709), eq. 4.
    """
    _check_samples(x_p, x_q)
    if not 0 < held_out < 1:
        raise ValueError(f"held_out: expected a share between 0 and 1, got {held_out}.")
    if steps < 0:
        raise ValueError(f"steps: expected 0 or more, got {steps}.")
    begun = time.perf_counter()
    with forked(seed):
        train_p, valid_p, test_p = _split(x_p, held_out)
        train_q, valid_q, test_q = _split(x_q, held_out)
        fewest = min(len(train_p), len(train_q))
        batch = min(512, fewest) if batch_size is None else batch_size
        if not 1 <= batch <= fewest:
            raise ValueError(
                f"batch_size: expected 1 to {fewest}, the training points of the smaller sample "
                f"({1 - held_out:.0%} of it), got {batch}. Give more samples or a smaller batch."
            )
        critic = logistic_critic(train_p, train_q) if critic is None else deepcopy(critic).to(x_p)
        _check_critic(critic, valid_p)

        average = AveragedModel(critic, multi_avg_fn=get_ema_multi_avg_fn(0.99))
        optimizer = torch.optim.Adam(critic.parameters(), lr=lr, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
        best, kept = deepcopy(critic), 0
        start = lowest = _losses(critic, valid_p, valid_q)
        history: dict[str, list[float]] = {"step": [0], "valid": [float(_mean(start))]}
        interrupted = False
        try:
            for step in range(1, steps + 1):
                real = train_p[torch.randint(len(train_p), (batch,), device=x_p.device)]
                fake = train_q[torch.randint(len(train_q), (batch,), device=x_p.device)]
                loss = -DIVERGENCES["js"].bound(critic(real), critic(fake))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                average.update_parameters(critic)
                if step % max(1, steps // 20) == 0 or step == steps:
                    now = _losses(average.module, valid_p, valid_q)
                    history["step"].append(step)
                    history["valid"].append(float(_mean(now)))
                    if _mean(now) < _mean(lowest) and _clearly_lower(now, start):
                        best, kept, lowest = deepcopy(average.module), step, now
        except KeyboardInterrupt:
            interrupted = True
    best.eval().requires_grad_(False)
    log_p, log_q = best(test_p), best(test_q)
    seconds = time.perf_counter() - begun
    return DensityRatio(best, log_p, log_q, history, kept, seed, seconds, interrupted)


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


def _check_critic(critic: nn.Module, x: Tensor) -> None:
    got = critic(x).shape
    if got != x.shape[:1]:
        raise ValueError(
            f"critic: expected one number a sample, shape {tuple(x.shape[:1])}, got {tuple(got)}. "
            "Squeeze its last axis."
        )


def _split(x: Tensor, held_out: float) -> list[Tensor]:
    """Training, choosing and reporting points, shuffled."""
    n = max(2, round(held_out * len(x) / 2))
    shuffled = x[torch.randperm(len(x), device=x.device)]
    return list(shuffled.split([len(x) - 2 * n, n, n]))


@torch.no_grad()
def _losses(critic: nn.Module, x_p: Tensor, x_q: Tensor) -> tuple[Tensor, Tensor]:
    """−JS split into what each sample adds."""
    js = DIVERGENCES["js"]
    return -js.activation(critic(x_p)), js.penalty(critic(x_q))


def _mean(losses: tuple[Tensor, Tensor]) -> Tensor:
    return losses[0].mean() + losses[1].mean()


def _clearly_lower(new: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor]) -> bool:
    """Whether the loss fell by more than three standard errors of the paired difference.

    Some twenty checkpoints are tried: at one error, chance alone would pass one of them often.
    """
    gain = [a - b for a, b in zip(old, new)]
    se = sum(g.var() / len(g) for g in gain) ** 0.5
    return bool(sum(g.mean() for g in gain) > 3 * se)
