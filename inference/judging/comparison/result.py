"""The result of `compare`: a dataset that prints as a table, plots, and recommends."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr

from ...estimate import Estimate
from ...results.result import Result
from ...results.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VARIABLES = {  # name -> what it is, and its unit where that does not follow from the pair's
    "value": ("bound", None),
    "value_se": ("standard error of the bound", None),
    "bias": ("bound minus log p", None),
    "bias_se": ("standard error of the bias", None),
    "variance": ("variance of the gradient, summed over parameters", "square of the gradient's"),
    "snr": ("signal-to-noise ratio of the gradient", "1"),
    "gradient_norm": ("norm of the mean gradient", "gradient's"),
    "gradient_bias": ("bias of the gradient along its own direction", "gradient's"),
    "gradient_bias_se": ("standard error of the gradient's bias", "gradient's"),
    "ms": ("time of a gradient, drawn in batches", "ms"),
    "efficiency": ("1 / (variance x time)", "1 / (square of the gradient's x ms)"),
}
SIGNIFICANT = 5.0  # standard errors at which a gradient counts as biased


class Comparison(Result, xr.Dataset):
    """Estimators side by side; an `xarray.Dataset` (see `inference.compare` for its variables).

    `print` shows the table and the recommendation. `plot()` draws, `save(folder)` writes. What is
    selected of it is one as well; where estimators or groups are gone it prints as xarray does.
    """

    __slots__ = ()
    file_name: ClassVar[str] = "comparison"

    @property
    def recommendation(self) -> str:
        """The name of the estimator to use."""
        return str(self.attrs["recommendation"])

    @property
    def because(self) -> str:
        """Why, in a sentence."""
        return str(self.attrs["because"])

    def recommended(self) -> Comparison:
        """With a recommendation among its attributes.

        Of the estimators whose value bounds log p(x) and whose gradient is that value's own
        (within 5 standard errors), the one with the most signal per millisecond, SNR² / ms, in
        the half of the pair where that is less; of those within a quarter of it, the one with the
        most in both.
        """
        halves = [str(g) for g in self.group.values[self.is_half.values]]
        fair = [str(e) for e in self.estimator.values if self._is_fair(str(e), halves)]
        pool = fair or [str(e) for e in self.estimator.values]
        rate = {e: min((self._rate(e, h), h) for h in halves) for e in pool}
        top = [e for e in pool if rate[e][0] >= 0.75 * max(r for r, _ in rate.values())]
        best = max(top, key=lambda e: math.prod(self._rate(e, h) for h in halves))
        return self.assign_attrs(  # type: ignore[return-value]
            recommendation=best, because=self._reason(best, rate, fair)
        )

    def table(self) -> Table:
        """An estimator to a line."""
        halves = [str(g) for g in self.group.values[self.is_half.values]]
        head = ["estimator", f"value ({self.attrs['unit']})", f"minus {self.attrs['label']}",
                *(f"SNR {h}" for h in halves), "gradient bias", "ms",
                *(f"efficiency {h}" for h in halves)]  # fmt: skip
        rows = []
        for name in map(str, self.estimator.values):
            at = self.sel(estimator=name)
            value = Estimate(float(at.value), float(at.value_se))
            bias = Estimate(float(at.bias), float(at.bias_se))
            rows.append([
                name, f"{value.value:.4f} ± {value.se:.2g}",
                f"{bias.value:+.4f} ± {bias.se:.2g}" if math.isfinite(at.bias) else "–",
                *(f"{float(at.snr.sel(group=h)):.3g}" for h in halves),
                self._bias_in_words(name, halves),
                f"{float(at.ms):.3g}",
                *(f"{float(at.efficiency.sel(group=h)):.3g}" for h in halves),
            ])  # fmt: skip
        return Table(head, rows)

    def footnotes(self) -> list[str]:
        """Lines below the table: reference, draws, what was not compiled."""
        a = self.attrs
        known = math.isfinite(a["log_px"])
        truth = f"{a['log_px']:.4f} ± {a['log_px_se']:.2g} {a['unit']} ({a['reference']})"
        truth = truth if known else f"no estimate, because {a['reference']}"
        return [
            f"{a['label']}: {truth}.",
            f"{a['draws']} draws, {a['how']}, on {a['device']}; gradient bias in standard errors.",
            *([f"Note: {a['notes']}."] if a["notes"] else []),
        ]

    def lines_below(self) -> list[str]:
        """The footnotes, and the estimator to use."""
        return [*self.footnotes(), f"Use {self.recommendation}: {self.because}"]

    @property
    def is_whole(self) -> bool:
        """True where it has estimators, the halves of the pair and all variables."""
        needed = {*VARIABLES, "is_half", "is_bound"}
        return (
            {"estimator", "group"} <= set(self.dims)
            and needed <= set(self.variables)
            and bool(self.is_half.values.any())
            and {"unit", "log_px", "recommendation"} <= set(self.attrs)
        )

    def __str__(self) -> str:
        if not self.is_whole:
            return xr.Dataset.__repr__(self)
        chosen = self.recommendation in self.estimator.values
        return Result.__str__(self if chosen else self.recommended())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return Result._repr_html_(self) if self.is_whole else xr.Dataset._repr_html_(self)

    def to_dict(self, *args: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Everything as plain Python, as xarray has it."""
        return xr.Dataset.to_dict(self, *args, **options)

    def figures(self) -> dict[str, Figure]:
        """The figure of `plot`."""
        return {"comparison": self.plot()}

    def plot(self, path: str | Path | None = None) -> Figure:  # type: ignore[override]
        """SNR and variance against K, efficiency, SNR per module; written to `path` if given."""
        from .plot import figure

        drawn = figure(self)
        if path is not None:
            drawn.savefig(path, dpi=150)
        return drawn

    def save(self, folder: str | Path) -> list[Path]:
        """Write comparison.nc, .txt, .csv and .png into a folder, and return their paths."""
        import matplotlib.pyplot as plt

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"comparison.{end}" for end in ("nc", "txt", "csv", "png")]
        self.to_nc(paths[0])
        paths[1].write_text(f"{self}\n", encoding="utf-8")
        self.to_csv(paths[2])
        plt.close(self.plot(paths[3]))
        return paths

    def to_nc(self, path: str | Path) -> None:
        """Write all numbers as NetCDF, for `read`."""
        xr.Dataset(self.data_vars, self.coords, self.attrs).to_netcdf(path, engine="h5netcdf")

    def to_csv(self, path: str | Path) -> None:
        """Write a row per estimator and group of parameters."""
        with Path(path).open("w", newline="") as file:
            writer = csv.writer(file)
            fields = ["estimator", "group", *(v for v in self.data_vars)]
            writer.writerow(fields)
            for e in self.estimator.values:
                for g in self.group.values:
                    at = self.sel(estimator=e, group=g)
                    writer.writerow([e, g, *(float(at[v]) for v in self.data_vars)])

    @classmethod
    def read(cls, path: str | Path) -> Comparison:
        """Read a comparison.nc that `save` has written."""
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            stored.load()
            return cls(stored.data_vars, stored.coords, stored.attrs)

    # -- the recommendation

    def _rate(self, name: str, half: str) -> float:
        """SNR² per millisecond."""
        at = self.sel(estimator=name, group=half)
        return float(at.snr) ** 2 / float(at.ms)

    def _bias_sigmas(self, name: str, halves: list[str]) -> float:
        at = self.sel(estimator=name, group=halves)
        bias, se = np.abs(at.gradient_bias.values), at.gradient_bias_se.values
        if np.isnan(bias).any():
            return math.nan
        return float(np.max(np.where(se > 0, bias / np.where(se > 0, se, 1), 0)))

    def _bias_in_words(self, name: str, halves: list[str]) -> str:
        sigmas = self._bias_sigmas(name, halves)
        return "not its aim" if math.isnan(sigmas) else f"{sigmas:.1f}"

    def _is_fair(self, name: str, halves: list[str]) -> bool:
        unbiased = self._bias_sigmas(name, halves) < SIGNIFICANT  # False for NaN
        return bool(self.is_bound.sel(estimator=name)) and unbiased

    def _reason(self, best: str, rate: dict[str, tuple[float, str]], fair: list[str]) -> str:
        def signal(name: str) -> str:
            half = rate[name][1]
            at = self.sel(estimator=name, group=half)
            return f"{half}: SNR {float(at.snr):.2g} in {float(at.ms):.2g} ms"

        pool = "bounds with an unbiased gradient" if fair else "estimators, none of which is fair,"
        text = (
            f"of the {pool} it has the most signal per millisecond in the half of the pair that "
            f"has less of it ({signal(best)}"
        )
        others = sorted((e for e in rate if e != best), key=lambda e: rate[e][0], reverse=True)
        if others:
            text += f"; next is {others[0]}, {signal(others[0])}"
        text += ")"
        tightest = max(fair or rate, key=lambda e: float(self.value.sel(estimator=e)))
        ahead = float(self.value.sel(estimator=tightest) - self.value.sel(estimator=best))
        se = math.hypot(*(float(self.value_se.sel(estimator=e)) for e in (tightest, best)))
        if tightest != best and ahead > 2 * se:
            text += f", though {tightest} is {ahead:.2g} ± {se:.1g} {self.attrs['unit']} tighter"
        return text + "."
