"""Calibration of a guide over data sets that the model makes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..draws.arrays import coordinate_names, is_same
from ..draws.sampler import sample, sample_each
from ..estimate import Estimate
from ..pairs.gate import CheckedPair, admit
from ..results.result import Result
from ..results.table import Table
from ..training.many import fit_many
from ..weights import LogWeights
from .uniformity import band, symmetry, uniformity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Calibration", "band", "calibrate", "symmetry", "uniformity"]

MOST = 10  # quantities that the text shows
ALPHA = 0.01  # level of every verdict, shared among the quantities
Sites = dict[str, Tensor]


@dataclass(repr=False)
class Calibration(Result):
    """Ranks of the truths among the draws of R posteriors, and what follows from them.

    Attributes:
        ranks: name -> (R,), how many of `draws` draws lie below the truth.
        tarp: (R,), how many lie nearer to a random point than the truth.
        draws: L, of each posterior.
        fitted: whether the guide was fitted to every data set.
        seconds: of everything.
    """

    ranks: dict[str, np.ndarray] = field(repr=False)
    tarp: np.ndarray = field(repr=False)
    draws: int
    fitted: bool
    seconds: float = 0.0

    file_name: ClassVar[str] = "calibration"

    def __len__(self) -> int:
        return len(self.tarp)

    def pit(self) -> np.ndarray:
        """Ranks as values in (0, 1), uniform for an exact posterior: (R, C).

        A rank stands for an interval of length 1 / (L + 1), and a random point of it is taken.
        """
        ranks = np.stack(list(self.ranks.values()), -1)
        return (ranks + np.random.default_rng(0).uniform(size=ranks.shape)) / (self.draws + 1)

    def uniform(self) -> dict[str, float]:
        """SBC: p-values of uniform ranks, by simultaneous ECDF bands.

        Source: Talts et al. 2018, arXiv:1804.06788; Säilynoja et al. 2022, arXiv:2103.10522.
        """
        ranks = np.stack(list(self.ranks.values()), -1)
        return dict(zip(self.ranks, uniformity(ranks, self.draws).tolist()))

    def symmetric(self) -> dict[str, float]:
        """VSBC: p-values of point estimates without bias, whatever the spread.

        Source: Yao et al. 2018, arXiv:1802.02538, section 4.
        """
        return dict(zip(self.ranks, symmetry(self.pit()).tolist()))

    def tarp_uniform(self) -> float:
        """TARP: the p-value of joint regions that cover as often as they say.

        Source: Lemos et al. 2023, arXiv:2302.03026, theorem 3.
        """
        return float(uniformity(self.tarp, self.draws))

    def coverage(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """Count how often central intervals of a nominal level hold the truth, with errors.

        Args:
            level: in (0, 1).

        Raises:
            ValueError: a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"level: expected a number between 0 and 1, got {level}.")
        inside = (np.abs(self.pit() - 0.5) < level / 2).mean(0)
        se = np.sqrt(inside * (1 - inside) / len(self))
        return {n: (float(a), float(b)) for n, a, b in zip(self.ranks, inside, se)}

    def expected_coverage(self, levels: np.ndarray) -> np.ndarray:
        """TARP's coverage of joint regions of nominal levels (J,): (J,)."""
        u = (self.tarp + 0.5) / (self.draws + 1)
        return (u[:, None] < np.asarray(levels)).mean(0)

    @property
    def passed(self) -> bool:
        """True where no quantity, nor TARP, fails at the 1 % level shared among them."""
        p = [*self.uniform().values(), self.tarp_uniform()]
        return min(p) > ALPHA / len(p)

    def lines_above(self) -> list[str]:
        """The verdict."""
        kind = "fitted to each" if self.fitted else "amortised"
        head = "Calibrated" if self.passed else "Not calibrated"
        return [f"{head}: {len(self)} data sets, guide {kind}, {self.draws} draws each."]

    def table(self) -> Table:
        """The quantities, the least calibrated first: coverage, p-value, what is wrong."""
        uniform, symmetric, coverage = self.uniform(), self.symmetric(), self.coverage()
        limit = ALPHA / (len(uniform) + 1)
        mean = dict(zip(self.ranks, self.pit().mean(0)))
        rows = []
        for n in sorted(uniform, key=lambda n: uniform[n])[:MOST]:
            (c, se), p = coverage[n], uniform[n]
            wrong = _wrong(c, se, mean[n], symmetric[n]) if p <= limit else ""
            rows.append([n, Estimate(100 * c, 100 * se).number(1), f"{p:.2g}", wrong])
        p = self.tarp_uniform()
        rows.append(["all, jointly (TARP)", "", f"{p:.2g}", "" if p > limit else "regions fail"])
        return Table(["", "in the 90 % interval, %", "p of SBC", ""], rows, left=(0, 3))

    def lines_below(self) -> list[str]:
        """The number of quantities that the table leaves out."""
        rest = len(self.ranks) - MOST
        return [f"and {rest} more, better calibrated"] if rest > 0 else []

    def to_dict(self) -> dict[str, Any]:
        """The verdict and every p-value and coverage as plain Python."""
        return {
            "passed": self.passed, "datasets": len(self), "draws": self.draws,
            "fitted": self.fitted, "seconds": self.seconds, "sbc": self.uniform(),
            "vsbc": self.symmetric(), "tarp": self.tarp_uniform(),
            "coverage_90": {n: {"mean": c, "se": se} for n, (c, se) in self.coverage().items()},
        }  # fmt: skip

    def picture(self) -> Figure | None:
        """Coverage at all levels."""
        from .pictures import coverage

        return coverage(self, 12)

    def figures(self, most: int = 12) -> dict[str, Figure]:
        """`ecdf`: ranks against the uniform law with their 99 % band; `coverage`: of all levels."""
        from .pictures import coverage, ecdf_of_ranks

        return {"ecdf": ecdf_of_ranks(self, most), "coverage": coverage(self, most)}


def _wrong(coverage: float, se: float, mean: float, symmetric: float) -> str:
    if symmetric < ALPHA:
        return "posteriors too high" if mean < 0.5 else "posteriors too low"
    if abs(coverage - 0.9) < 3 * se:
        return "wrong shape"
    return "too narrow" if coverage < 0.9 else "too wide"


def calibrate(
    run: Any,
    *data: Any,
    datasets: int = 500,
    draws: int = 199,
    steps: int | None = None,
    seed: int = 0,
    **fitting: Any,
) -> Calibration:
    """Simulation-based calibration: does the truth look like a draw from the posterior?

    R times, latents are drawn from the prior and data from the model given them; the guide's
    posterior of each data set is drawn from, and the rank of the truth among the draws is uniform
    if the posterior is exact. A pair whose sites all lie in the data plate (a VAE) takes each datum
    for a data set.

    Args:
        run: a `Run`, a pair, or a model followed by its guide.
        data: the pair's arguments; those that are observed give only the shape.
        datasets: R.
        draws: L; 199 makes intervals of 90, 95 and 99 % exact.
        steps: fit the guide to every data set with so many updates of `fit_many`; None asks the
            guide as it is (an amortised one).
        seed: of everything.
        fitting: other keywords of `fit_many` (lr, elbo, schedule, ...).

    Returns:
        A `Calibration`: `str()` is the verdict.

    Raises:
        ValueError: fewer than ten data sets or draws; a model that observes something which is not
            one of its arguments; the guide draws no site of the model.

    Source: Talts et al. 2018, arXiv:1804.06788 (SBC); Yao et al. 2018, arXiv:1802.02538 (VSBC);
    Lemos et al. 2023, arXiv:2302.03026 (TARP).
    """
    begin = time.perf_counter()
    if fitting and steps is None:
        raise ValueError(f"{', '.join(fitting)}: only with steps=, which fits every data set.")
    chain = admit(
        run, *data, who="calibrate", least={"datasets": 10, "draws": 10}, datasets=datasets,
        draws=draws, steps=1 if steps is None else steps, seed=seed,
    )  # fmt: skip
    with chain.ready(seed):
        sets = simulated(chain, datasets)
        scale = simulated(chain, datasets).truths  # independent of the truths that are ranked
    options = None if steps is None else {"steps": steps, **fitting}
    found = posteriors(sets, datasets, draws, options, seed + 1)
    if not found:
        raise ValueError("the guide draws no site of the model: there is nothing to rank.")
    rng = np.random.default_rng(seed)
    ranks: dict[str, np.ndarray] = {}
    for name, drawn in found.items():
        below = ranked(drawn, sets.truths[name], rng)  # (R, ...)
        labels = coordinate_names(name, below.shape[1:])
        ranks |= dict(zip(labels, below.reshape(datasets, -1).T))
    tarp = nearer(found, sets.truths, scale, rng)
    return Calibration(ranks, tarp, draws, steps is not None, time.perf_counter() - begin)


@dataclass
class DataSets:
    """R data sets from a model.

    Attributes:
        pair: the pair on them: those of its arguments in `stacked` have a leading axis of R.
        truths: site -> (R, ...), the latents that made them.
        local: whether a data set is one row of the data plate, so that one run has them all.
    """

    pair: CheckedPair
    truths: Sites
    stacked: tuple[int, ...]
    local: bool


def simulated(chain: CheckedPair, datasets: int) -> DataSets:
    """Latents from the prior, and data given them. Call it inside `chain.ready(seed)`.

    Where all sites lie in the data plate a data set is one datum, and other arguments (labels)
    take the rows of those given, over and over.

    Raises:
        ValueError: the model observes something that is not one of its arguments as it stands.
    """
    local = any(p.dim == -1 and p.size == chain.rows for p in chain.weights(1).plates)
    if local:
        chain = chain.take(torch.arange(datasets) % chain.rows)
    k = 1 if local else datasets
    terms, observed = chain.simulate(k)
    drawn = {n: t.values(k, chain.nesting)[0] for n, t in terms.items()}
    drawn = {n: v[0] if local else v for n, v in drawn.items()}
    args_, stacked = list(chain.args), []
    for name, seen in observed.items():
        i = next((i for i, a in enumerate(chain.args) if is_same(a, seen)), None)
        if i is None or drawn[name].shape[not local :] != chain.args[i].shape:
            raise ValueError(
                f"site {name!r}: what the model observes there is not one of its arguments as it "
                "stands, so simulated data cannot take its place. Observe the argument itself."
            )
        args_[i] = drawn[name].to(chain.args[i].dtype)
        stacked.append(i)
    truths = {
        n: drawn[n]
        for n, t in terms.items()
        if n not in observed and (t.is_latent or t.is_computed)
    }
    return DataSets(replace(chain, args=tuple(args_)), truths, tuple(stacked), local)


def posteriors(
    sets: DataSets, datasets: int, draws: int, fitting: Mapping[str, Any] | None, seed: int
) -> Sites:
    """The guide's draws for every data set: site -> (R, draws, ...).

    Args:
        fitting: keywords of `fit_many`, which fits the guide to every data set; None asks the
            guide as it is.
    """
    pair, own = sets.pair, None
    if sets.local:
        parts = list(sample(pair, draws, lambda chunk: _sites(chunk.weights), seed=seed))
        return {n: torch.cat([p[n] for p in parts]).transpose(0, 1) for n in parts[0]}
    if fitting is None:  # under vmap nothing can be made to require a gradient
        params = {k: p.detach().requires_grad_() for k, p in pair.params.items()}
        pair = replace(pair, params=params)
    else:
        many = fit_many(
            pair.model, pair.guide, pair.args, stacked=sets.stacked, jitter=0.0, seed=seed,
            check=False, **fitting,
        )  # fmt: skip
        if many.stopped == "interrupted":
            raise KeyboardInterrupt
        fitted, buffers, own = many.first.pair_, many.variables.buffers, 0
        pair = replace(pair, pair=fitted, params=many.params, buffers=buffers)
    vary = tuple(0 if i in sets.stacked else None for i in range(len(pair.args)))
    return sample_each(pair, datasets, draws, _sites, axes=(own, own, vary), seed=seed)


def _sites(weights: LogWeights) -> Sites:
    """Draws of the guide, and what the model computes from them: site -> (K, *plates, *event)."""
    return {
        n: t.values(weights.particles, weights.nesting)[0]
        for n, t in weights.model.items()
        if t.is_computed or (t.is_latent and n in weights.guide)
    }


def ranked(drawn: Tensor, truth: Tensor, rng: np.random.Generator) -> np.ndarray:
    """Count the (R, L, ...) draws that lie below (R, ...) truths, ties broken at random."""
    less = (drawn < truth[:, None]).sum(1).cpu().numpy()
    same = (drawn == truth[:, None]).sum(1).cpu().numpy()
    return less + rng.integers(0, same + 1)


def nearer(found: Sites, truths: Sites, scale: Sites, rng: np.random.Generator) -> np.ndarray:
    """Count the draws that lie nearer to a random point than the truth does: (R,).

    Distances are Euclidean, of coordinates put through the ECDF of prior draws, so that each has
    the unit interval for its range.

    Source: Lemos et al. 2023, arXiv:2302.03026, algorithm 2.
    """
    scaled = []
    for name, drawn in found.items():
        every = torch.cat([truths[name][:, None], drawn], 1)  # the truth first
        flat = every.reshape(*every.shape[:2], -1).double().movedim(-1, 0).contiguous()
        grid = scale[name].double().reshape(len(scale[name]), -1).T.sort(-1)[0].contiguous()
        rank = torch.searchsorted(grid, flat.flatten(1)).reshape(flat.shape)
        scaled.append(rank.double() / grid.shape[1])
    x = torch.cat(scaled)  # (C, R, 1 + L)
    point = torch.as_tensor(rng.uniform(size=(len(x), x.shape[1], 1)))
    apart = ((x - point) ** 2).sum(0)
    return ranked(apart[:, 1:], apart[:, 0], rng)
