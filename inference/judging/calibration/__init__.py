"""Calibration of a guide over data sets that the model makes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...draws.arrays import coordinate_names
from ...estimate import Estimate
from ...pairs.gate import admit, refuse_unbroadcast
from ...pairs.options import check_options
from ...results.result import Result
from ...results.table import Table
from ..uniformity import band, symmetry, uniformity
from .simulation import Sites, posteriors, simulated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Calibration", "band", "calibrate", "symmetry", "uniformity"]

MOST = 10  # quantities that the text shows
ALPHA = 0.01  # level of every verdict, shared among the quantities


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

    def _table(self) -> np.ndarray:
        return np.stack(list(self.ranks.values()), -1)  # (R, C)

    def pit(self) -> np.ndarray:
        """Ranks as values in (0, 1), uniform for an exact posterior: (R, C).

        A rank stands for an interval of length 1 / (L + 1), and a random point of it is taken.
        """
        u = np.random.default_rng(0).uniform(size=self._table().shape)
        return (self._table() + u) / (self.draws + 1)

    def uniform(self) -> dict[str, float]:
        """SBC: p-values of uniform ranks, by simultaneous ECDF bands.

        Source: Talts et al. 2018, arXiv:1804.06788; Säilynoja et al. 2022, arXiv:2103.10522.
        """
        return dict(zip(self.ranks, uniformity(self._table(), self.draws).tolist()))

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

    def figures(self, most: int = 12) -> dict[str, Figure]:
        """`ecdf`: ranks against the uniform law with their 99 % band; `coverage`: of all levels."""
        from .pictures import coverage, ecdf

        return {"ecdf": ecdf(self, most), "coverage": coverage(self, most)}


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
            one of its arguments; the guide draws no site of the model; a pair that does not
            broadcast over particles.

    Source: Talts et al. 2018, arXiv:1804.06788 (SBC); Yao et al. 2018, arXiv:1802.02538 (VSBC);
    Lemos et al. 2023, arXiv:2302.03026 (TARP).
    """
    begin = time.perf_counter()
    least = {"datasets": 10, "draws": 10}
    check_options(
        least, datasets=datasets, draws=draws, steps=1 if steps is None else steps, seed=seed
    )
    if fitting and steps is None:
        raise ValueError(f"{', '.join(fitting)}: only with steps=, which fits every data set.")
    chain = admit(run, *data, who="calibrate")
    refuse_unbroadcast(chain, "calibrate")
    with chain.ready(seed):
        sets = simulated(chain, datasets)
        scale = simulated(chain, datasets).truths  # independent of the truths that are ranked
    options = None if steps is None else {"steps": steps, **fitting}
    found = posteriors(chain, sets, draws, options, seed + 1)
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
    a: list[Tensor] = []
    b: list[Tensor] = []
    for name, drawn in found.items():
        n = len(drawn)
        grid = scale[name].double().reshape(len(scale[name]), -1).T.sort(-1)[0].contiguous()
        for values, out in ((drawn.reshape(*drawn.shape[:2], -1), a),
                            (truths[name].reshape(n, 1, -1), b)):  # fmt: skip
            flat = values.double().movedim(-1, 0).contiguous()  # (C, R, L)
            rank = torch.searchsorted(grid, flat.flatten(1)).reshape(flat.shape)
            out.append(rank.double() / grid.shape[1])
    x, y = torch.cat(a), torch.cat(b)  # (C, R, L), (C, R, 1)
    point = torch.as_tensor(rng.uniform(size=(len(x), x.shape[1], 1)))
    near = (((x - point) ** 2).sum(0) < ((y - point) ** 2).sum(0)).sum(-1).numpy()
    same = (((x - point) ** 2).sum(0) == ((y - point) ** 2).sum(0)).sum(-1).numpy()
    return near + rng.integers(0, same + 1)
