"""Truths to test an estimator against: `check_estimator(MyEstimator(...))`.

An estimator of your own is one class; this one, the median of K log weights, is complete:

    import torch
    from inference import elbo
    from inference.testing import check_estimator

    class Median(elbo.Estimator):
        '''E[median_k log w_k], a bound for symmetric log weights. (Invented here.)'''

        is_bound = False

        def bound(self, weights):
            weights.refuse_subsampled_joint(repr(self))  # one median per datum
            return weights.total(weights.log_weight().median(0).values)

    print(check_estimator(Median(particles=5)))

`bound` is enough: the gradient follows, for sites that need the score function too. Override
`surrogate` for a gradient with less variance; it is then checked against the bound's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..draws.measures import Moments
from ..elbo import Estimator
from ..graph import TraceFailure, traced
from ..judging.comparison.gradients import Gradients
from ..pairs.pair import Pair
from ..randomness import forked
from .toys import GlobalLocal, LinearGaussian, Nested, Switch, SwitchedGaussian, Toy

SIGMA = 5.0  # standard errors; a right estimator fails one check in about 10^6 by chance


@dataclass(repr=False)
class Checked:
    """The findings of `check_estimator`, in words.

    Attributes:
        outcomes: check -> what was measured.
        refused: pair -> the estimator's reason not to take it.
    """

    estimator: str
    outcomes: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        width = max(map(len, self.outcomes), default=0)
        lines = [f"  {name:<{width}}  {text}" for name, text in self.outcomes.items()]
        lines += [f"  refused, {pair}: {reason}" for pair, reason in self.refused.items()]
        return "\n".join([f"{self.estimator}: {len(self.outcomes)} checks passed", *lines])

    __repr__ = __str__  # what a notebook shows


def check_estimator(estimator: Estimator, *, draws: int = 20_000, seed: int = 0) -> Checked:
    """Run an estimator against closed forms, and fail it when it is biased.

    Checked on small linear-Gaussian, global-and-local, discrete and mixed pairs: the value at the
    exact posterior is log p(x); elsewhere it does not exceed log p(x); the gradient has the mean
    of `estimator.reference`'s; mini-batches are unbiased for all data; masked rows count nothing;
    the step can be traced. An estimator with `is_bound = False` is spared the first two, one with
    `is_tight = False` the first, one with
    `follows_bound = False` must have no gradient at the exact posterior instead. A pair that the
    estimator refuses with a ValueError is reported as refused, as long as one is not.

    Args:
        estimator: of `inference.elbo`, or yours.
        draws: of value and gradient per check.
        seed: of the draws.

    Returns:
        What was checked, to print.

    Raises:
        AssertionError: a check failed; the message says which, by how much, in standard errors.
    """
    report = Checked(repr(estimator))
    with forked():
        for name, check in _checks(estimator).items():
            kind = name.split(", ")[-1]
            if kind in report.refused:
                continue
            try:
                report.outcomes[name] = check(estimator, draws, seed)
            except ValueError as refusal:
                report.refused[kind] = str(refusal)
    if not any(name.startswith(("gradient", "at rest")) for name in report.outcomes):
        raise AssertionError(
            f"{estimator!r} refuses every pair, so nothing could be checked:\n{report}"
        )
    return report


def gradient_bias(
    own: Gradients, other: Gradients | None, draws: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Measure the distance of two mean gradients: parameter -> (bias, its standard error).

    Half of the draws find the direction of the difference, the other half measure the difference
    along it, so that it is normal with mean zero where there is no bias. Both see the same noise.

    Args:
        own: gradients to judge.
        other: as many at once, with the right mean; None stands for zero.
        draws: in all.
        seed: of the noise.
    """
    direction = _difference(own, other, draws // 2, seed).mean
    unit = {k: direction[s] / direction[s].norm().clamp(min=1e-300) for k, s in own.slices.items()}

    def project(rows: Tensor) -> Tensor:
        return torch.stack([rows[:, own.slices[k]] @ u for k, u in unit.items()], 1)

    along = _difference(own, other, draws // 2, seed + 10_000, project)
    se = (along.variance / along.n).sqrt()
    return {k: (float(along.mean[i]), float(se[i])) for i, k in enumerate(unit)}


def _difference(
    own: Gradients, other: Gradients | None, draws: int, seed: int,
    project: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Moments:  # fmt: skip
    moments = Moments()
    while moments.n < draws:
        seed += 1
        rows = own(seed)[1].double()
        if other is not None:
            rows = rows - other(seed)[1].double()
        moments.add(project(rows))
    return moments


# ---------------------------------------------------------------- the checks

Check = Callable[[Estimator, int, int], str]


def _checks(estimator: Estimator) -> dict[str, Check]:
    pairs: dict[str, type] = {
        "linear-Gaussian": LinearGaussian,
        "global and local": GlobalLocal,
        "nested plates, masked and scaled": Nested,
        "discrete": Switch,
        "discrete and continuous": SwitchedGaussian,
    }
    out: dict[str, Check] = {"traceable": _traceable}  # first: what cannot be is slow to draw
    for name, kind in pairs.items():
        if estimator.is_bound and estimator.is_tight:
            out[f"tight, {name}"] = _on(kind, True, _tight)
        if estimator.is_bound:
            out[f"below log p(x), {name}"] = _on(kind, False, _below)
        if estimator.follows_bound:
            out[f"gradient, {name}"] = _on(kind, False, _gradient)
        else:
            out[f"at rest, {name}"] = _on(kind, True, _at_rest)
    if estimator.is_bound:
        out["mini-batches"] = _mini_batches
    if estimator.is_bound and estimator.is_tight:
        out["masks"] = _masks
    return out


def _on(kind: type, exact: bool, check: Callable) -> Check:
    def run(estimator: Estimator, draws: int, seed: int) -> str:
        toy = kind(exact=exact)
        return check(estimator, toy, toy.data(), draws, seed)

    return run


def _mean_value(
    estimator: Estimator, toy: Toy, args: tuple, draws: int, seed: int
) -> tuple[float, float]:
    pair = Pair(toy.model, toy.guide, args)
    values, sampler = Moments(), Gradients(pair, estimator, args, draws=draws)
    while values.n < draws:
        seed += 1
        values.add(sampler(seed)[0])
    return float(values.mean), float((values.variance / values.n).sqrt())


def _tight(
    estimator: Estimator, toy: Toy, x: Tensor, draws: int, seed: int, keep: Tensor | None = None
) -> str:
    args = (x,) if keep is None else (x, None, keep)
    value, se = _mean_value(estimator, toy, args, draws, seed)
    truth = float(toy.log_px(x if keep is None else x[keep]))
    hint = "" if keep is None else " Some rows are masked: use the terms' log_prob, which is too."
    assert abs(value - truth) <= SIGMA * se + 1e-9 * abs(truth), (
        f"{estimator!r}: where the guide is the exact posterior ({type(toy).__name__}) the bound "
        f"is log p(x) = {truth:.6f} nats, but its mean is {value:.6f} ± {se:.1g}.{hint}"
    )
    return f"{value:.6f} ± {se:.1g} against {truth:.6f} nats"


def _below(estimator: Estimator, toy: Toy, x: Tensor, draws: int, seed: int) -> str:
    value, se = _mean_value(estimator, toy, (x,), draws, seed)
    truth = float(toy.log_px(x))
    assert value <= truth + SIGMA * se, (
        f"{estimator!r} claims to be a lower bound (is_bound), but on {type(toy).__name__} its "
        f"mean is {value:.4f} ± {se:.1g} nats, above log p(x) = {truth:.4f}."
    )
    return f"{value:.4f} ± {se:.1g} below {truth:.4f} nats"


def _gradient(estimator: Estimator, toy: Toy, x: Tensor, draws: int, seed: int) -> str:
    pair = Pair(toy.model, toy.guide, (x,))
    own = Gradients(pair, estimator, (x,), draws=draws)
    right = Gradients(pair, estimator, (x,), replicates=own.replicates, reference=True)
    found = gradient_bias(own, right, draws, seed)
    rows = own(seed)[1]
    assert rows.abs().max() > 0, (
        f"{estimator!r}: on {type(toy).__name__} no gradient reaches any parameter."
    )
    name, (bias, se) = max(found.items(), key=lambda item: _ratio(*item[1]))
    size = float(right(seed)[1][:, own.slices[name]].mean(0).norm())
    assert _ratio(bias, se) < SIGMA, (
        f"{estimator!r} is biased: on {type(toy).__name__} its mean gradient of {name!r} differs "
        f"from the bound's (norm {size:.3g}) by {bias:.3g} ± {se:.1g}, that is "
        f"{_ratio(bias, se):.0f} standard errors over {draws} draws."
    )
    return f"largest difference {_ratio(bias, se):.1f} standard errors ({name})"


def _at_rest(estimator: Estimator, toy: Toy, x: Tensor, draws: int, seed: int) -> str:
    kind = type(toy).__name__
    name, (bias, se) = _largest_pull(estimator, toy, x, draws, seed)
    assert _ratio(bias, se) < SIGMA, (
        f"{estimator!r} moves the guide away from the exact posterior: on {kind} the mean gradient "
        f"of {name!r} is {bias:.3g} ± {se:.1g}, not zero."
    )
    away, (pull, pull_se) = _largest_pull(estimator, toy.away(), x, draws, seed)
    assert _ratio(pull, pull_se) > SIGMA, (
        f"{estimator!r} does not move the guide: on {kind}, away from the posterior, its largest "
        f"mean gradient is {pull:.3g} ± {pull_se:.1g} ({away!r})."
    )
    return (
        f"largest gradient {_ratio(bias, se):.1f} standard errors ({name}), away from it "
        f"{_ratio(pull, pull_se):.0f} ({away})"
    )


def _largest_pull(
    estimator: Estimator, toy: Toy, x: Tensor, draws: int, seed: int
) -> tuple[str, tuple[float, float]]:
    pair = Pair(toy.model, toy.guide, (x,))
    found = gradient_bias(Gradients(pair, estimator, (x,), draws=draws), None, draws, seed)
    guide = {k: v for k, v in found.items() if k.startswith("guide")}
    return max(guide.items(), key=lambda item: _ratio(*item[1]))


def _mini_batches(estimator: Estimator, draws: int, seed: int) -> str:
    toy = LinearGaussian(exact=False)
    x = toy.data()[:4]
    full, full_se = _mean_value(estimator, toy, (x,), draws, seed)
    parts = []
    for i, rows in enumerate(itertools.combinations(range(4), 2)):
        batch = x[list(rows)]
        half = Pair(toy.model, toy.guide, (batch,), {"size": 4})
        sampler, values = Gradients(half, estimator, (batch,), {"size": 4}, draws=draws), Moments()
        while values.n < draws:
            values.add(sampler(seed + 100 * (i + 1) + values.n)[0])
        parts.append((float(values.mean), float(values.variance / values.n)))
    mean = sum(m for m, _ in parts) / 6
    se = (sum(v for _, v in parts) / 36 + full_se**2) ** 0.5
    assert abs(mean - full) <= SIGMA * se + 1e-9 * abs(full), (
        f"{estimator!r}: over all mini-batches of 2 of 4 rows its mean is {mean:.5f} nats, but "
        f"{full:.5f} on all rows: a difference of {abs(mean - full) / se:.0f} standard errors. "
        "Take the logarithm per datum, and multiply by N/B after it (weights.total)."
    )
    return f"{mean:.5f} over batches, {full:.5f} on all rows, ± {se:.1g} nats"


def _masks(estimator: Estimator, draws: int, seed: int) -> str:
    toy = LinearGaussian(exact=True)
    keep = torch.tensor([True, False, True, True])
    return _tight(estimator, toy, toy.data()[:4], draws, seed, keep)


def _traceable(estimator: Estimator, draws: int, seed: int) -> str:
    for kind in (LinearGaussian, Switch):
        toy = kind(exact=False)
        x = toy.data()
        try:
            sampler = Gradients(Pair(toy.model, toy.guide, (x,)), estimator, (x,), replicates=2)
            if sampler.how == "one by one":
                raise TraceFailure(str(sampler.note))
            graph = traced(sampler._function, list(sampler.params.values()))
        except ValueError:
            continue
        except TraceFailure as failure:
            raise AssertionError(
                f"{estimator!r} cannot be traced, so a fit with it will not compile. {failure}"
            ) from failure
        return f"{len(graph.graph.nodes)} operations"
    raise ValueError("no pair was accepted.")


def _ratio(bias: float, se: float) -> float:
    """Standard errors from zero; rounding alone is none."""
    return abs(bias) / se if se > 0 and abs(bias) > 1e-10 else 0.0 if abs(bias) <= 1e-10 else 1e9
