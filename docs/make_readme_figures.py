"""The picture of the README: a verdict and the posterior it is about, into docs/figures/readme.png.

Eight schools (Rubin 1981), not centred, by `posterior`: what `zoo posterior` prints and draws.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure

from inference import posterior
from zoo.report.theme import ACCENT, LIGHT, saved, themed

OUT = Path(__file__).resolve().parent / "figures" / "readme.png"
EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(effect: torch.Tensor, error: torch.Tensor) -> None:
    """theta_j = mu + tau z_j, y_j ~ N(theta_j, error_j)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(effect)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, error), obs=effect)


def main() -> None:
    """Find the posterior, and draw its verdict beside it."""
    found = posterior(schools, EFFECT, ERROR)
    draws = found.datatree.posterior
    with themed(LIGHT):
        figure = Figure(figsize=(11, 4.2))
        left, *right = figure.subplots(1, 4, width_ratios=(2.9, 1, 1, 1))
        left.set_axis_off()
        lines = [line for line in str(found).splitlines() if line.strip()]
        text = "\n".join(t for line in lines for t in textwrap.wrap(
            line, 64, subsequent_indent="    ", replace_whitespace=False) or [""])  # fmt: skip
        left.text(0, 0.98, "$ zoo posterior schools.py:schools --data schools.csv", va="top",
                  family="monospace", size=8.2, color=ACCENT)  # fmt: skip
        left.text(0, 0.88, text, va="top", family="monospace", size=7.6)
        names = {"mu": draws["mu"], "tau": draws["tau"], "theta, school A": draws["theta"][..., 0]}
        for axes, (name, values) in zip(right, names.items()):
            axes.hist(values.values.ravel(), 40, density=True, color=ACCENT, alpha=0.7)
            axes.set(xlabel=name, yticks=[])
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_bytes(saved(figure))
    print(found)


if __name__ == "__main__":
    main()
