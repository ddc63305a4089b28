"""The result of `compare`: a dataset that prints as a table, plots, and recommends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr

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
        half = self._halves()
        rate = half.snr**2 / half.ms  # (estimator, group)
        fair = self.is_bound & (self._bias_sigmas() < SIGNIFICANT)  # False for NaN
        pool = fair if fair.any() else fair | True
        least = rate.min("group").where(pool, -1.0)
        best = rate.prod("group").where(least >= 0.75 * least.max(), -1.0)
        name = str(best.idxmax("estimator").item())
        return self.assign_attrs(  # type: ignore[return-value]
            recommendation=name, because=self._reason(name, rate, pool, bool(fair.any()))
        )

    def table(self) -> Table:
        """An estimator to a line."""
        half, sigmas = self._halves(), self._bias_sigmas()
        halves = [str(g) for g in half.group.values]
        head = ["estimator", f"value ({self.attrs['unit']})", f"minus {self.attrs['label']}",
                *(f"SNR {h}" for h in halves), "gradient bias", "ms",
                *(f"efficiency {h}" for h in halves)]  # fmt: skip
        rows = []
        for i, name in enumerate(map(str, self.estimator.values)):
            at, bias = half.isel(estimator=i), float(sigmas[i])
            rows.append([
                name, f"{float(at.value):.4f} ± {float(at.value_se):.2g}",
                f"{float(at.bias):+.4f} ± {float(at.bias_se):.2g}" if np.isfinite(at.bias) else "–",
                *(f"{snr:.3g}" for snr in at.snr.values),
                "not its aim" if math.isnan(bias) else f"{bias:.1f}",
                f"{float(at.ms):.3g}", *(f"{e:.3g}" for e in at.efficiency.values),
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
            *(f"Left out: {why}" if why.startswith(name) else f"Left out: {name}: {why}"
              for name, why in self.refused.items()),
        ]  # fmt: skip

    @property
    def refused(self) -> dict[str, str]:
        """Estimator -> why it does not take the pair."""
        names, reasons = (np.atleast_1d(self.attrs.get(k, [])).tolist()
                          for k in ("refused", "refused_because"))  # fmt: skip
        return dict(zip(names, reasons))

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
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        nc, txt, csv, png = (folder / f"comparison.{end}" for end in ("nc", "txt", "csv", "png"))
        self.to_nc(nc)
        txt.write_text(f"{self}\n", encoding="utf-8")
        self.to_csv(csv)
        self.plot(png)
        return [nc, txt, csv, png]

    def to_nc(self, path: str | Path) -> None:
        """Write all numbers as NetCDF, for `read`."""
        xr.Dataset(self.data_vars, self.coords, self.attrs).to_netcdf(path, engine="h5netcdf")

    def to_csv(self, path: str | Path) -> None:
        """Write a row per estimator and group of parameters."""
        rows = self.reset_coords(drop=True).to_dataframe(["estimator", "group"])
        rows.to_csv(path, lineterminator="\r\n")

    @classmethod
    def read(cls, path: str | Path) -> Comparison:
        """Read a comparison.nc that `save` has written."""
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            stored.load()
            return cls(stored.data_vars, stored.coords, stored.attrs)

    # -- the recommendation

    def _halves(self) -> xr.Dataset:
        return self.isel(group=np.flatnonzero(self.is_half.values))

    def _bias_sigmas(self) -> xr.DataArray:
        """Largest bias of a half's gradient, in standard errors; NaN where it has no aim."""
        half = self._halves()
        sigmas = abs(half.gradient_bias) / half.gradient_bias_se.where(half.gradient_bias_se > 0)
        known = half.gradient_bias.notnull()
        return sigmas.fillna(0.0).where(known).max("group", skipna=False)

    def _reason(self, best: str, rate: xr.DataArray, pool: xr.DataArray, fair: bool) -> str:
        def signal(name: str) -> str:
            half = str(rate.sel(estimator=name).idxmin("group").item())
            at = self.sel(estimator=name, group=half)
            return f"{half}: SNR {float(at.snr):.2g} in {float(at.ms):.2g} ms"

        who = "bounds with an unbiased gradient" if fair else "estimators, none of which is fair,"
        text = (
            f"of the {who} it has the most signal per millisecond in the half of the pair that "
            f"has less of it ({signal(best)}"
        )
        others = rate.min("group").where(pool).drop_sel(estimator=best)
        if others.notnull().any():
            name = str(others.idxmax("estimator").item())
            text += f"; next is {name}, {signal(name)}"
        text += ")"
        tightest = str(self.value.where(pool).idxmax("estimator").item())
        ahead = float(self.value.sel(estimator=tightest) - self.value.sel(estimator=best))
        se = math.hypot(*(float(self.value_se.sel(estimator=e)) for e in (tightest, best)))
        if tightest != best and ahead > 2 * se:
            text += f", though {tightest} is {ahead:.2g} ± {se:.1g} {self.attrs['unit']} tighter"
        return text + "."
