"""`zoo curve`: rate and distortion of one model over several β, each fit a run of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inference.results.table import Table

from ..report.draw import NARROW, Drawing, new_figure
from ..report.theme import ACCENT, Theme, png
from .output import say
from .runs import require_writable

BETAS = "0.25,0.5,1,2,4"


def rate_distortion(
    model: str, betas: str, fitting: Sequence[str], out: str | None = None
) -> Path:  # fmt: skip
    """Fit a model for each β, write the curve as picture and table, and print it; the folder.

        rate = KL(q(z | x) || p(z)),   distortion = −E_q[log p(x | z)],   ELBO = −rate − distortion

    Args:
        model: a name with an ELBO whose guide has a density.
        betas: numbers above zero, with commas between.
        fitting: options of `zoo fit`, but for the estimator and the folder.
        out: a new folder, of which each fit gets one inside.

    Raises:
        ValueError: fewer than two β, one that is not above zero, a model without an ELBO, or
            options that are set here.

    Source: Alemi et al. 2018, "Fixing a broken ELBO" (arXiv:1711.00464, section 3); Higgins et al.
    2017, "beta-VAE" (ICLR).
    """
    from .fit import any_card, fit_command

    values = betas_of(betas)
    entry = any_card(model)
    if "elbo" not in entry.trainers or not entry.bound:
        raise ValueError(f"{entry.name} has no ELBO of rate and distortion; a vae has.")
    for flag in ("--elbo", "--out", "--trainer"):
        if any(a == flag or a.startswith(f"{flag}=") for a in fitting):
            raise ValueError(f"{flag} is set by zoo curve. Leave it out.")
    folder = Path(out or f"runs/curve-{entry.name}").expanduser()
    if folder.exists():
        raise ValueError(f"--out: {folder} exists already. Name a folder that does not.")
    require_writable(folder.parent)
    found = []
    for beta in values:
        inside = folder / f"beta-{beta:g}"
        more = ["--elbo", f"beta:{beta:g}", "--out", str(inside)]
        fit_command(entry).main([*fitting, *more], standalone_mode=False)
        found.append({"beta": beta, **point(json.loads((inside / "metrics.json").read_text()))})
    rows = [
        [f"{p['beta']:g}", *(f"{p[k]:.3f} ± {p[k + '_se']:.3f}" for k in COLUMNS)] for p in found
    ]
    say(str(Table(["β", "rate (nats)", "distortion (nats)", "ELBO (nats)"], rows, left=())))
    (folder / "curve.json").write_text(json.dumps(found, indent=1) + "\n")
    picture = folder / "curve.png"
    picture.write_bytes(png(_curve(found, f"{entry.name}: rate and distortion, test data")))
    say(picture)
    return folder


COLUMNS = ("rate", "distortion", "elbo")


def betas_of(text: str) -> list[float]:
    """Return the β of a list such as 0.5,1,2, in rising order."""
    try:
        values = sorted({float(b) for b in text.split(",") if b.strip()})
    except ValueError:
        values = []
    if len(values) < 2 or not all(0 < b < float("inf") for b in values):
        raise ValueError(
            f"--betas: expected at least two numbers above 0 such as {BETAS}, got {text!r}."
        )
    return values


def point(metrics: dict[str, Any]) -> dict[str, float]:
    """Rate, distortion and ELBO of one run with their standard errors, from its numbers."""
    rates = [k for k in metrics if k.startswith("kl_") and not k.endswith(("_se", "_unit"))]
    if not rates or "reconstruction" not in metrics:
        raise ValueError("the run has no reconstruction and KL: its guide has no density.")
    return {
        "rate": sum(metrics[k] for k in rates),
        "rate_se": sum(metrics.get(f"{k}_se", 0.0) ** 2 for k in rates) ** 0.5,
        "distortion": -metrics["reconstruction"],
        "distortion_se": metrics.get("reconstruction_se", 0.0),
        "elbo": metrics["elbo"],
        "elbo_se": metrics.get("elbo_se", 0.0),
    }


def _curve(found: Sequence[dict[str, float]], title: str) -> Drawing:
    def draw(theme: Theme) -> Any:
        figure = new_figure(NARROW, NARROW)
        ax = figure.subplots()
        rate, distortion = ([p[k] for p in found] for k in ("rate", "distortion"))
        ax.errorbar(
            rate, distortion, [2 * p["distortion_se"] for p in found],
            [2 * p["rate_se"] for p in found], fmt="o-", ms=4, lw=1, color=ACCENT,
        )  # fmt: skip
        for p in found:
            ax.annotate(f"β = {p['beta']:g}", (p["rate"], p["distortion"]), (5, 5),
                        textcoords="offset points", fontsize=8)  # fmt: skip
        ax.set(xlabel="rate KL(q ‖ p), nats per datum (2 s.e.)", title=title)
        ax.set_ylabel("distortion −E[log p(x | z)], nats per datum (2 s.e.)")
        return figure

    return draw
