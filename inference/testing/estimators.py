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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..draws.measures import Moments
from ..elbo import Estimator
from ..estimate import Estimate
from ..graph import TraceFailure, recorded
from ..judging.comparison.gradients import Gradients
from ..pairs.pair import Pair
from ..randomness import forked
from .toys import GlobalLocal, LinearGaussian, Nested, Switch, SwitchedGaussian, Toy

PAIRS: dict[str, Callable[..., Toy]] = {
    "linear-Gaussian": LinearGaussian,
    "global and local": GlobalLocal,
    "nested plates, masked and scaled": Nested,
    "discrete": Switch,
    "discrete and continuous": SwitchedGaussian,
}
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


def check_estimator(
    estimator: Estimator,
    *,
    expected: Callable[[Tensor], Tensor] | None = None,
    draws: int = 20_000,
    seed: int = 0,
) -> Checked:
    """Run an estimator against closed forms, and fail it when it is biased.

    Checked on small linear-Gaussian, global-and-local, discrete and mixed pairs: the value at the
    exact posterior is log p(x); elsewhere it does not exceed log p(x); the gradient has the mean
    of `estimator.reference`'s; mini-batches are unbiased for all data; masked rows count nothing;
    the step can be traced. An estimator with `is_bound = False` is spared the first two, one with
    `is_tight = False` the first, one with
    `follows_bound = False` must have no gradient at the exact posterior instead, of one with
    `is_unbiased = False` the gradient's bias is measured and told. A pair that the
    estimator refuses with a ValueError is reported as refused, as long as one is not.

    Args:
        estimator: of `inference.elbo`, or yours.
        expected: the value it claims: log weights (K, *plates) -> nats per datum (*plates), as
            `lambda log_w: log_w.mean(0)` of the ELBO. Its mean must be the estimator's, on every
            pair: a bound may pass all other checks and be another bound than it says.
        draws: of value and gradient per check.
        seed: of the draws.

    Returns:
        What was checked, to print.

    Raises:
        AssertionError: a check failed; the message says which, by how much, in standard errors.
    """
    report = Checked(repr(estimator))
    with forked():
        for name, check in _Checks(estimator, draws, seed, expected).by_name():
            kind = name.split(", ")[-1]
            if kind in report.refused:
                continue
            try:
                report.outcomes[name] = check()
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

    def difference(seed: int, along: Tensor | None = None) -> Moments:
        moments = Moments()
        while moments.n < draws // 2:
            seed += 1
            rows = own(seed)[1].double()
            if other is not None:
                rows = rows - other(seed)[1].double()
            moments.add(rows if along is None else rows @ along)
        return moments

    direction = difference(seed).mean
    along = direction.new_zeros(len(direction), len(own.slices))  # a unit vector per parameter
    for i, s in enumerate(own.slices.values()):
        along[s, i] = direction[s] / direction[s].norm().clamp(min=1e-300)
    found = difference(seed + 10_000, along)
    se = (found.variance / found.n).sqrt()
    return {k: (float(found.mean[i]), float(se[i])) for i, k in enumerate(own.slices)}


class _Checks:
    """The checks of one estimator: each says what it measured, or raises AssertionError."""

    def __init__(
        self,
        estimator: Estimator,
        draws: int,
        seed: int,
        expected: Callable[[Tensor], Tensor] | None = None,
    ):
        self.estimator, self.draws, self.seed = estimator, draws, seed
        self.expected = expected

    def by_name(self) -> Iterator[tuple[str, Callable[[], str]]]:
        """Those that apply; the name ends in the pair they are made on."""
        e = self.estimator
        yield "traceable", self.traceable  # first: what cannot be is slow to draw
        for name, kind in PAIRS.items():
            exact, apart = kind(exact=True), kind(exact=False)
            if e.is_bound and e.is_tight:
                yield f"tight, {name}", partial(self.tight, exact, exact.data())
            if e.is_bound:
                yield f"below log p(x), {name}", partial(self.below, apart)
            if self.expected is not None:
                yield f"value, {name}", partial(self.claim, apart)
            if e.follows_bound:
                yield f"gradient, {name}", partial(self.gradient, apart)
            else:
                yield f"at rest, {name}", partial(self.at_rest, exact, apart)
        if e.is_bound:
            yield "mini-batches", self.mini_batches
        if e.is_bound and e.is_tight:
            toy, keep = LinearGaussian(exact=True), torch.tensor([True, False, True, True])
            yield "masks", partial(self.tight, toy, toy.data()[:4], keep)

    def sampler(self, toy: Toy, args: tuple, size: int | None = None, **options: Any) -> Gradients:
        """Gradients on a toy; of `size` rows in all, where the arguments are a mini-batch."""
        kwargs = {} if size is None else {"size": size}
        pair = Pair(toy.model, toy.guide, args, kwargs)
        return Gradients(pair, self.estimator, args, kwargs, **{"draws": self.draws, **options})

    def value(
        self, toy: Toy, args: tuple, size: int | None = None, stream: int = 0
    ) -> tuple[float, float]:
        """The estimator's mean value and its standard error, nats; other noise in each stream."""
        values, sampler = Moments(), self.sampler(toy, args, size)
        while values.n < self.draws:
            values.add(sampler(self.seed + 100_000 * stream + values.n + 1)[0])
        return float(values.mean), float((values.variance / values.n).sqrt())

    def tight(self, toy: Toy, x: Tensor, keep: Tensor | None = None) -> str:
        """The mean at the exact posterior is log p(x)."""
        value, se = self.value(toy, (x,) if keep is None else (x, None, keep))
        truth = float(toy.log_px(x if keep is None else x[keep]))
        hint = " Some rows are masked: use the terms' log_prob, which is too."
        assert abs(value - truth) <= SIGMA * se + 1e-9 * abs(truth), (
            f"{self.estimator!r}: where the guide is the exact posterior ({type(toy).__name__}) "
            f"the bound is log p(x) = {truth:.6f} nats, but its mean is {value:.6f} ± {se:.1g}."
            f"{'' if keep is None else hint}"
        )
        return f"{value:.6f} ± {se:.1g} against {truth:.6f} nats"

    def below(self, toy: Toy) -> str:
        """The mean elsewhere is at most log p(x)."""
        (value, se), truth = self.value(toy, (toy.data(),)), float(toy.log_px(toy.data()))
        assert value <= truth + SIGMA * se, (
            f"{self.estimator!r} claims to be a lower bound (is_bound), but on "
            f"{type(toy).__name__} its mean is {value:.4f} ± {se:.1g} nats, above log p(x) = "
            f"{truth:.4f}."
        )
        return f"{value:.4f} ± {se:.1g} below {truth:.4f} nats"

    def claim(self, toy: Toy) -> str:
        """The mean is that of the value it claims, draw for draw less noisy than either."""
        assert self.expected is not None
        e, apart = self.estimator, []
        with torch.no_grad():
            for i in range(200):
                with forked(self.seed + i):
                    weights = e.draw(toy.model, toy.guide, toy.data())
                claimed = weights.total(self.expected(weights.log_weight()))
                apart.append(e.bound(weights) - claimed)
        gap = Estimate.of(torch.stack(apart).double())
        assert gap, f"{e!r}: on {type(toy).__name__} its value is not finite."
        assert _sigmas(*gap) < SIGMA, (
            f"{e!r}: on {type(toy).__name__} its mean is {gap.value:+.4g} ± {gap.se:.1g} nats from "
            "that of the value it claims (expected)."
        )
        return f"{gap.value:+.3g} ± {gap.se:.1g} nats from what it claims"

    def gradient(self, toy: Toy) -> str:
        """The mean gradient is the bound's."""
        own = self.sampler(toy, (toy.data(),))
        right = self.sampler(toy, (toy.data(),), replicates=own.replicates, reference=True)
        found = gradient_bias(own, right, self.draws, self.seed)
        on, draws = type(toy).__name__, self.draws
        assert own(self.seed)[1].abs().max() > 0, (
            f"{self.estimator!r}: on {on} no gradient reaches any parameter."
        )
        name, (bias, se) = max(found.items(), key=lambda item: _sigmas(*item[1]))
        if not self.estimator.is_unbiased:
            size = float(right(self.seed)[1][:, own.slices[name]].mean(0).norm())
            return f"biased by {bias:.3g} ± {se:.1g} of {size:.3g} ({name}), as it says"
        size = float(right(self.seed)[1][:, own.slices[name]].mean(0).norm())
        assert _sigmas(bias, se) < SIGMA, (
            f"{self.estimator!r} is biased: on {on} its mean gradient of {name!r} differs from the "
            f"bound's (norm {size:.3g}) by {bias:.3g} ± {se:.1g}, that is {_sigmas(bias, se):.0f} "
            f"standard errors over {draws} draws."
        )
        return f"largest difference {_sigmas(bias, se):.1f} standard errors ({name})"

    def at_rest(self, exact: Toy, apart: Toy) -> str:
        """The guide is pulled nowhere at the exact posterior, and somewhere apart from it."""

        def largest_pull(toy: Toy) -> tuple[str, tuple[float, float]]:
            found = gradient_bias(self.sampler(toy, (toy.data(),)), None, self.draws, self.seed)
            guide = {k: v for k, v in found.items() if k.startswith("guide")}
            return max(guide.items(), key=lambda item: _sigmas(*item[1]))

        on = type(exact).__name__
        name, (bias, se) = largest_pull(exact)
        assert _sigmas(bias, se) < SIGMA, (
            f"{self.estimator!r} moves the guide away from the exact posterior: on {on} the mean "
            f"gradient of {name!r} is {bias:.3g} ± {se:.1g}, not zero."
        )
        away, (pull, pull_se) = largest_pull(apart)
        assert _sigmas(pull, pull_se) > SIGMA, (
            f"{self.estimator!r} does not move the guide: on {on}, away from the posterior, its "
            f"largest mean gradient is {pull:.3g} ± {pull_se:.1g} ({away!r})."
        )
        return (
            f"largest gradient {_sigmas(bias, se):.1f} standard errors ({name}), away from it "
            f"{_sigmas(pull, pull_se):.0f} ({away})"
        )

    def mini_batches(self) -> str:
        """The mean over all batches of 2 of 4 rows is that of all rows."""
        toy = LinearGaussian(exact=False)
        x = toy.data()[:4]
        full, full_se = self.value(toy, (x,))
        batches = [x[list(rows)] for rows in itertools.combinations(range(4), 2)]
        parts = [self.value(toy, (b,), size=4, stream=i) for i, b in enumerate(batches, 1)]
        mean = sum(m for m, _ in parts) / 6
        se = (sum(s**2 for _, s in parts) / 36 + full_se**2) ** 0.5
        assert abs(mean - full) <= SIGMA * se + 1e-9 * abs(full), (
            f"{self.estimator!r}: over all mini-batches of 2 of 4 rows its mean is {mean:.5f} "
            f"nats, but {full:.5f} on all rows: a difference of {abs(mean - full) / se:.0f} "
            "standard errors. Take the logarithm per datum, and multiply by N/B after it "
            "(weights.total)."
        )
        return f"{mean:.5f} over batches, {full:.5f} on all rows, ± {se:.1g} nats"

    def traceable(self) -> str:
        """The first pair that is not refused can be traced."""
        for kind in (LinearGaussian, Switch):
            toy = kind(exact=False)
            try:
                sampler = self.sampler(toy, (toy.data(),), replicates=2)
                if sampler.how == "one by one":
                    raise TraceFailure(str(sampler.note))
                with forked():
                    tape = recorded(sampler._function, list(sampler.params.values()))
            except ValueError:
                continue
            except TraceFailure as failure:
                raise AssertionError(
                    f"{self.estimator!r} cannot be traced, so a fit with it will not compile. "
                    f"{failure}"
                ) from failure
            return f"{len(tape.operations)} operations"
        raise ValueError("no pair was accepted.")


def _sigmas(bias: float, se: float) -> float:
    """Standard errors from zero; rounding alone is none."""
    return abs(bias) / se if se > 0 and abs(bias) > 1e-10 else 0.0 if abs(bias) <= 1e-10 else 1e9
