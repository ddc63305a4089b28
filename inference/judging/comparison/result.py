"""The result of `compare`: a dataset that prints as a table, plots, and recommends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import xarray as xr

from ...results.finding import listed
from ...results.result import Result
from ...results.table import Table
from .race import sureness

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SQUARE, _GRADIENT = "square of the gradient's", "gradient's"
_MEASURED = {  # name -> what it is, and its unit where that does not follow from the pair's
    "value": ("bound", None),
    "bias": ("bound minus log p", None),
    "variance": ("Monte Carlo variance of the gradient, summed over parameters", _SQUARE),
    "variance_batch": ("variance of the gradient between mini-batches", _SQUARE),
    "variance_step": ("variance of the gradient of a training step", _SQUARE),
    "snr": ("signal-to-noise ratio of the gradient, Monte Carlo noise alone", "1"),
    "snr_step": ("signal-to-noise ratio of the gradient of a training step", "1"),
    "gradient_bias": ("bias of the gradient along its own direction", _GRADIENT),
    "ms": ("time of a training step", "ms"),
    "efficiency": ("1 / (variance of a step x its time)", f"1 / ({_SQUARE} x s)"),
    "race": ("held-out bound after the race", None),
    "race_behind": ("held-out bound behind the leader's", None),
}
VARIABLES = {
    "gradient_norm": ("norm of the mean gradient", _GRADIENT),
    "race_steps": ("steps made in the race", "steps"),
    "race_seconds": ("time in the race", "s"),
} | {
    f"{name}{end}": (f"standard error: {said}" if end else said, unit)
    for name, (said, unit) in _MEASURED.items()
    for end in ("", "_se")
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

        After a race, its winner. Else, of the estimators whose value bounds log p(x) and whose
        gradient is that value's own (within 5 standard errors), the one with the most signal per
        second as training sees it, snr_step² / ms, in the half of the pair where that is less; of
        those that cannot be told from it by their errors, the one with the most in both.
        """
        if self.attrs.get("race_winner") in self.estimator.values:
            name = str(self.attrs["race_winner"])
            return self.assign_attrs(  # type: ignore[return-value]
                recommendation=name, because=self._of_race(name)
            )
        half = self._halves()
        seen = half.snr_step.where(np.isfinite(half.snr_step), 1e30)
        rate = seen.clip(max=1e30) ** 2 / half.ms  # (estimator, group)
        if not bool((rate > 0).any()):  # no signal is seen at all: the least noise
            rate = half.efficiency.clip(max=1e60)
        fair = self.is_bound & (self._bias_sigmas() < SIGNIFICANT)  # False for NaN
        pool = fair if fair.any() else fair | True
        error = (2 * half.snr_step_se / seen.where(seen > 0)) ** 2 + (half.ms_se / half.ms) ** 2
        error = np.sqrt(error.fillna(1.0))
        least = rate.min("group").where(pool, -1.0)
        top = least.idxmax("estimator").item()
        unsure = 2 * np.hypot(error.max("group"), float(error.sel(estimator=top).max()))
        both = np.log(rate.clip(min=1e-60)).sum("group")
        best = both.where((least >= 0) & (least >= (1 - unsure.clip(0.1, 0.9)) * least.max()), -1e9)
        name = str(best.idxmax("estimator").item())
        return self.assign_attrs(  # type: ignore[return-value]
            recommendation=name, because=self._reason(name, rate, pool, bool(fair.any()))
        )

    def table(self) -> Table:
        """An estimator to a line."""
        half, sigmas = self._halves(), self._bias_sigmas()
        halves = [str(g) for g in half.group.values]
        batch, raced = bool(self.attrs.get("batch")), "race" in self.data_vars
        first = [f"held out ({self.attrs['race_unit']})", "behind"] if raced else []
        head = ["estimator", *first, f"value ({self.attrs['unit']})",
                f"minus {self.attrs['label']}",
                *(f"variance {h}{' (batches)' if batch else ''}" for h in halves),
                *(f"SNR {h}" for h in halves), "gradient bias", "ms",
                *(f"efficiency {h}" for h in halves)]  # fmt: skip
        rows = []
        for i, name in enumerate(map(str, self.estimator.values)):
            at, bias = half.isel(estimator=i), float(sigmas[i])
            mark = {"eager": "", "compiled": " c", "estimated": " ~"}[str(at.step.values)]
            race = (
                [_pm(at.race, at.race_se), _pm(at.race_behind, at.race_behind_se)] if raced else []
            )
            rows.append([
                name, *race, f"{float(at.value):.4f} ± {float(at.value_se):.2g}",
                f"{float(at.bias):+.4f} ± {float(at.bias_se):.2g}" if np.isfinite(at.bias) else "–",
                *(f"{v:.3g}{_share(b, v) if batch else ''}" for b, v in
                  zip(at.variance_batch.values, at.variance_step.values)),
                *(f"{snr:.3g}" for snr in at.snr_step.values),
                "not its aim" if math.isnan(bias) else f"{bias:.1f}",
                f"{float(at.ms):.3g} ± {float(at.ms_se):.1g}{mark}",
                *(f"{e:.3g} ± {se:.1g}"
                  for e, se in zip(at.efficiency.values, at.efficiency_se.values)),
            ])  # fmt: skip
        return Table(head, rows)

    def footnotes(self) -> list[str]:
        """Lines below the table: reference, draws, what was not compiled."""
        a = self.attrs
        known = math.isfinite(a["log_px"])
        truth = f"{a['log_px']:.4f} ± {a['log_px_se']:.2g} {a['unit']} ({a['reference']})"
        truth = truth if known else f"no estimate, because {a['reference']}"
        batch = int(a.get("batch", 0))
        share = "; in brackets the mini-batches' share" if batch else ""
        noise = f"a step on {batch} rows" if batch else "a step on all data"
        return [
            f"{a['label']}: {truth}.",
            f"Variance, SNR, efficiency: of {noise}{share}. "
            f"{a['draws']} draws, {a['how']}, on {a['device']}; gradient bias in "
            "standard errors; ms: of an eager step, c compiled, ~ estimated from those compiled.",
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
        needed = {v for v in VARIABLES if not v.startswith("race")} | {
            "is_half",
            "is_bound",
            "step",
        }
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
        """SNR, variance and its parts, efficiency, SNR per module; written to `path` if given.

        Raises:
            ValueError: estimators, groups or variables were selected away.
        """
        if not self.is_whole:
            raise ValueError(
                "plot: expected a comparison with its estimators, the halves of the pair and all "
                "variables; plot it before you select, or plot a variable: found.snr.plot()."
            )
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
        """Write a row per estimator and group of parameters, or what is selected of them."""
        plain = xr.Dataset(
            self.data_vars, {d: self.coords[d] for d in self.dims if d in self.coords}
        )
        kept = [d for d in ("estimator", "group") if d in self.dims]
        rows = plain.to_dataframe(kept) if kept else plain.expand_dims("row").to_dataframe()
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

    def _of_race(self, winner: str) -> str:
        """Why the winner of a race is recommended, and how sure that is."""
        a, unit = self.attrs, self.attrs["race_unit"]
        at = self.sel(estimator=winner)
        text = (
            f"trained for {float(at.race_seconds):.3g} s ({int(at.race_steps):,} steps, "
            f"{a['race_seeds']} seeds) it has the best held-out {a['race']}, "
            f"{_pm(at.race, at.race_se)} {unit}"
        )
        others = self.race_behind.drop_sel(estimator=winner)
        if not others.size:
            return text + "."
        name = str(others.idxmin("estimator").item())
        gap, se = (float(self[v].sel(estimator=name)) for v in ("race_behind", "race_behind_se"))
        sure = sureness(gap, se)
        text += (
            f"; {name} is {_pm(gap, se)} behind, so the lead is one, then, with {100 * sure:.0f} %"
        )
        behind, error = self.race_behind, self.race_behind_se
        near = [str(n) for n in self.estimator.values[(behind <= 2 * error).values] if n != winner]
        text += f". Not told apart from {listed(near)}." if near else "."
        if a["race_rise"] > gap:
            text += (
                f" It won {a['race_rise']:.3g} {unit} in the latter half of that time, more than "
                "its lead: it has not converged, and a longer race may end otherwise."
            )
        return text

    def _reason(self, best: str, rate: xr.DataArray, pool: xr.DataArray, fair: bool) -> str:
        def signal(name: str) -> str:
            half = str(rate.sel(estimator=name).idxmin("group").item())
            at = self.sel(estimator=name, group=half)
            snr, se = float(at.snr_step), float(at.snr_step_se)
            return f"{half}: SNR {snr:.2g} ± {se:.1g} in {float(at.ms):.2g} ms"

        who = "bounds with an unbiased gradient" if fair else "estimators, none of which is fair,"
        text = (
            f"of the {who} it has the most signal per second of training in the half of the pair "
            f"that has less of it ({signal(best)}"
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
        return (
            f"{text}. That is noise and time at these parameters; where training with each ends, "
            "it cannot know: compare(..., race=SECONDS) can."
        )


def _pm(value: Any, se: Any) -> str:
    """A number with its standard error."""
    return f"{float(value):.4g} ± {float(se):.2g}"


def _share(part: float, whole: float) -> str:
    return f" ({100 * part / whole:.0f} %)" if whole > 0 else ""
