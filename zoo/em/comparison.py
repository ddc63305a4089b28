"""EM, coordinate-ascent variational Bayes and SVI with exact enumeration, on the same data."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from matplotlib.figure import Figure
from torch import Tensor

from inference.draws.measures import elbo as elbo_of
from inference.draws.sampler import joint_log_weights
from inference.elbo import Trace
from inference.estimate import Estimate
from inference.pairs.gate import admit
from inference.results.result import Result
from inference.results.table import Table
from inference.training.fitting import fit

from .ascent import check_mixture_data, kmeans_plus_plus
from .figure import draw_mixtures
from .gauss_wishart import GaussWishart
from .maximum_likelihood import MixtureDensity, expectation_maximization
from .variational import variational_bayes


@dataclass
class MixtureMethod:
    """The mixture that one method fitted, with its figures of merit.

    Attributes:
        name: of the method.
        mixture: the point estimate, or the mixture at the posterior mean.
        log_likelihood: nats, of the training data under `mixture`.
        elbo: of the training data; none for EM, which bounds no evidence.
        held_out: mean predictive log density of a held-out datum; none where nothing was held out.
        responsibilities: p(k | x) of the training data, (N, C).
        floored: components held up by EM's floor.
        seconds: of the fit, compiling included.
        result: the method's own result (`MaximumLikelihoodFit`, `VariationalFit`, `Run`).
    """

    name: str
    mixture: MixtureDensity
    log_likelihood: float
    elbo: Estimate
    held_out: Estimate
    responsibilities: Tensor
    floored: int
    seconds: float
    result: Any

    @property
    def components_used(self) -> int:
        """Components whose responsibilities sum to one datum or more."""
        return int((self.responsibilities.sum(0) >= 1).sum())


@dataclass(repr=False)
class MixtureComparison(Result):
    """Three fits side by side: `str()` is a table, `plot()` a figure.

    Attributes:
        x: the training data, (N, D).
        held_out: the held-out data, (M, D).
        methods: EM, VB and SVI by name.
    """

    x: Tensor
    held_out: Tensor
    methods: dict[str, MixtureMethod]

    file_name: ClassVar[str] = "mixtures"

    def table(self) -> Table:
        """A method to a line."""
        head = (
            "", "log-likelihood", "ELBO", "held-out nats per point", "components used", "seconds"
        )  # fmt: skip
        rows = []
        for m in self.methods.values():
            floored = f" ({m.floored} floored)" if m.floored else ""
            rows.append([
                m.name, f"{m.log_likelihood:.2f}", _written(m.elbo, 2), _written(m.held_out, 3),
                f"{m.components_used} of {len(m.mixture.weights)}{floored}", f"{m.seconds:.2f}",
            ])  # fmt: skip
        return Table(head, rows)

    def lines_below(self) -> list[str]:
        """Sizes and units behind the numbers."""
        return [
            f"{len(self.x)} data fitted, {len(self.held_out)} held out; log-likelihood and ELBO "
            "in nats, with standard errors where they are estimates"
        ]

    def to_dict(self) -> dict[str, Any]:
        """Method -> its numbers."""
        return {
            m.name: {
                "log_likelihood": m.log_likelihood, "elbo": m.elbo, "held_out": m.held_out,
                "components_used": m.components_used, "floored": m.floored, "seconds": m.seconds,
            }
            for m in self.methods.values()
        }  # fmt: skip

    def figures(self) -> dict[str, Figure]:
        """The figure of `plot`."""
        return {"mixtures": self.plot()}

    def plot(  # type: ignore[override]
        self, columns: Sequence[str] = ("column 1", "column 2")
    ) -> Figure:
        """Return a column for each method: data and components; responsibilities.

        Args:
            columns: labels of the first two columns of x.
        """
        panels = {
            f"{m.name}: {m.components_used} components": (m.mixture, m.responsibilities)
            for m in self.methods.values()
        }
        return draw_mixtures(self.x, panels, columns)


def compare_mixtures(
    x: Tensor,
    pair: Any,
    *,
    held_out: float = 0.2,
    restarts: int = 20,
    steps: int = 1_500,
    lr: float = 0.05,
    particles: int = 4,
    draws: int = 1_000,
    seed: int = 0,
    compile: bool | str = "auto",
    progress: bool = False,
) -> MixtureComparison:
    """Fit one Gaussian mixture by EM, by variational Bayes and by SVI, and put them side by side.

    All start from k-means++; EM and VB from `restarts` seeds each, SVI from the best of them.
    VB and SVI have the prior of the pair, so their ELBOs bound the same evidence, and the same
    family for weights, means and precisions; SVI sums k out where VB factorises it.

    Args:
        x: (N, D), in any units.
        pair: a Bayesian mixture with `components`, `covariance`, `initialise(x, means)`, `prior()`
            and `posterior()`, such as `zoo.mixture.GaussianMixture`. It is not changed.
        held_out: share of the data kept for the held-out density; 0 keeps none.
        restarts: R.
        steps, lr, particles, compile: of the SVI fit; the learning rate falls to 0 as a cosine.
        draws: of the guide, to estimate the ELBO that SVI ended with.
        seed: of the split, the starts, and SVI.
        progress: show SVI's progress.

    Returns:
        MixtureComparison.

    Raises:
        TypeError: the pair is not a Bayesian mixture.
        ValueError: data that no mixture can be fitted to, or options out of range.
    """
    needed = ("components", "covariance", "initialise", "prior", "posterior", "model", "guide")
    if missing := [name for name in needed if not hasattr(pair, name)]:
        raise TypeError(
            f"pair: expected a Bayesian mixture, such as zoo.mixture.GaussianMixture; "
            f"{type(pair).__name__} has no {', '.join(missing)}."
        )
    x = check_mixture_data(x, pair.components, pair.covariance)
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out: expected a share of at least 0 and below 1, got {held_out}.")
    if draws < 2:
        raise ValueError(f"draws: expected at least 2, got {draws}.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator).to(x.device)
    kept = math.ceil((1 - held_out) * len(x))
    train, test = x[order[:kept]], x[order[kept:]]
    if kept < pair.components:
        raise ValueError(
            f"components: expected at most one per fitted datum, got {pair.components} for {kept} "
            "rows. Ask for fewer components or hold out less."
        )
    options: dict[str, Any] = {"covariance": pair.covariance, "restarts": restarts, "seed": seed}
    c = pair.components
    em, em_seconds = _timed(lambda: expectation_maximization(train, c, **options))

    start = copy.deepcopy(pair).to(x)
    start.initialise(train, _best_seeds(train, c, restarts, seed))
    vb, vb_seconds = _timed(lambda: variational_bayes(train, c, **options, **start.prior()))
    run, svi_seconds = _timed(
        lambda: fit(
            start, train, elbo=Trace(particles), steps=steps, lr=lr, schedule="cosine",
            seed=seed, compile=compile, progress=progress, device=train.device,
        )
    )  # fmt: skip
    q = GaussWishart(**run.pair.posterior())
    svi = q.mixture()
    elbo = elbo_of(joint_log_weights(admit(run, train), draws, seed)[:, None])

    def method(name: str, mixture: MixtureDensity, predictive: Any, r: Tensor, **more: Any):
        outside = Estimate.none("nothing was held out")
        if len(test):
            outside = Estimate.of(predictive.log_prob(test))
        log_likelihood = float(mixture.log_prob(train).sum())
        return MixtureMethod(
            name, mixture, log_likelihood, held_out=outside,
            responsibilities=r, **{"floored": 0, **more},
        )  # fmt: skip

    rows = [
        method("EM", em, em, em.responsibilities, elbo=Estimate.none("EM bounds no evidence"),
               floored=int(em.floored.sum()), seconds=em_seconds, result=em),
        method("VB", vb.posterior.mixture(), vb, vb.responsibilities, elbo=Estimate(vb.elbo, 0.0),
               seconds=vb_seconds, result=vb),
        method("SVI", svi, q, q.expected_log_joint(train).softmax(-2).mT, elbo=elbo,
               seconds=svi_seconds, result=run),
    ]  # fmt: skip
    return MixtureComparison(train, test, {m.name: m for m in rows})


def _best_seeds(x: Tensor, components: int, restarts: int, seed: int) -> Tensor:
    """Of R sets of k-means++ seeds, those nearest to the data: (C, D)."""
    unit = x.std(0)
    seeds = kmeans_plus_plus(x / unit, components, restarts, seed)  # (R, C, D)
    nearest = torch.cdist(x / unit, seeds).amin(-1).square().sum(-1)  # (R,)
    return seeds[nearest.argmin()] * unit


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = function()
    return result, time.perf_counter() - begin


def _written(estimate: Estimate, digits: int) -> str:
    """An estimate in a cell: a dash where there is none, no error where it is exact."""
    if estimate.value is None:
        return "–"
    return f"{estimate.value:.{digits}f}" if not estimate.se else estimate.number(digits)
