"""How far apart are two samples, and where? A critic's log density ratio and what it is worth.

python examples/density_ratio.py --steps 2000 --out density_ratio.png
"""

import argparse
import math

import torch
from matplotlib.figure import Figure

from inference.ratios import density_ratio, mutual_information
from zoo.data import load


def main(steps: int = 2_000, out: str = "density_ratio.png"):
    """Eight Gaussians against one with their mean and covariance; returns the `DensityRatio`."""
    torch.manual_seed(0)
    ring = load("eight-gaussians").train
    factor = torch.linalg.cholesky(ring.T.cov())
    one = ring.mean(0) + torch.randn(len(ring), 2) @ factor.T
    ratio = density_ratio(ring, one, steps=steps)
    print(f"Jensen-Shannon divergence     {ratio.js_divergence} (at most {math.log(2):.4f})")
    print(f"KL, ring to Gaussian          {ratio.kl}")
    print(f"calibration error             {ratio.calibration().error:.4f}")
    rho, x = (1 - math.exp(-1)) ** 0.5, torch.randn(20_000, 2)
    y = rho * x + (1 - rho**2) ** 0.5 * torch.randn(20_000, 2)
    mi = mutual_information(x, y, steps=steps // 4)
    print(f"mutual information, 2 pairs   {mi} (truth 1 nat)")

    figure = Figure(figsize=(13, 4), layout="constrained")
    samples, heights, reliability = figure.subplots(1, 3)
    for name, points in (("Q, one Gaussian", one), ("P, eight Gaussians", ring)):
        samples.plot(*points[:1500].T, ".", ms=2, alpha=0.6, label=name)
    samples.legend(loc="upper right")
    samples.set(title="two samples", xlim=(-8, 8), ylim=(-8, 8), aspect="equal")
    axis = torch.linspace(-8, 8, 161)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    image = heights.imshow(
        ratio.log_ratio(grid).numpy(),
        extent=(-8, 8, -8, 8),
        origin="lower",
        cmap="RdBu",
        vmin=-6,
        vmax=6,
    )
    heights.set(title="the critic's log p/q (nats)")
    figure.colorbar(image, ax=heights, extend="both")
    bins = ratio.calibration()
    reliability.plot([0, 1], [0, 1], color="grey", lw=1)
    reliability.errorbar(bins.predicted, bins.observed, 2 * bins.se, fmt="o", ms=4)
    reliability.set(
        title=f"held out: JS {ratio.js_divergence}", xlabel="critic's probability of P",
        ylabel="share of P (2 standard errors)", aspect="equal",
    )  # fmt: skip
    figure.savefig(out, dpi=100)
    return ratio


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--out", default="density_ratio.png")
    main(**vars(parser.parse_args()))
