"""Diffusion in two dimensions: noise walks back to data, and the bound rises with the steps.

python examples/diffusion_2d.py --data eight-gaussians --steps 5000 --out diffusion.png
"""

import argparse
import math

import torch
from matplotlib.figure import Figure

from inference import fit
from zoo.data import load
from zoo.diffusion import Diffusion

TIMESTEPS = (16, 32, 64, 128, 256)
# Eight normals, six standard deviations of 1/2 apart: minus the entropy of one and of the choice.
LOG_PX = {"eight-gaussians": -math.log(2 * math.pi * math.e / 4) - math.log(8)}


def main(
    data: str = "eight-gaussians", steps: int = 5_000, out: str = "diffusion.png", draws: int = 20
):
    """Fit, walk back from noise, bound log p(x) with more and more steps; returns the run."""
    torch.manual_seed(0)
    points = load(data)
    scale = float(points.train.std())
    pair = Diffusion(2, timesteps=256, log_snr_max=8.0, log_snr_min=-8.0, data_scale=scale)
    run = fit(pair, points, steps=steps, batch_size=512, lr=2e-3, schedule="cosine")
    pair = run.pair.cpu()

    # The denoiser knows λ, not t, so one network serves any number of steps.
    bounds = []
    for timesteps in TIMESTEPS:
        other = Diffusion(2, timesteps, denoiser=pair.denoiser, log_snr_max=8.0, log_snr_min=-8.0)
        value = other.elbo(points.test, draws)
        bounds.append((value.mean().item(), value.std().item() / len(value) ** 0.5))
        print(f"T = {timesteps:3}: ELBO {bounds[-1][0]:.3f} ± {bounds[-1][1]:.3f} nats per datum")

    path = pair.reverse(2_000)  # z_T, ..., z_1, x
    stops = [0, 96, 128, 160, len(path) - 1]
    figure = Figure(figsize=(13, 2.8), layout="constrained")
    *panels, curve = figure.subplots(1, len(stops) + 1)
    for axes, stop in zip(panels, stops):
        t = pair.timesteps - stop
        axes.scatter(*path[stop].T, s=1, alpha=0.5, rasterized=True)
        axes.set(title=f"$z_{{{t}}}$" if t else "x", xticks=[], yticks=[], aspect="equal")
        limit = 1.2 * max(float(points.test.abs().max()), 3.0)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit))
    panels[-1].scatter(*points.test.T, s=1, alpha=0.5, color="C1", label="test data")
    panels[-1].legend(loc="lower right", markerscale=5, fontsize="x-small")
    means, errors = zip(*bounds)
    curve.errorbar(TIMESTEPS, means, errors, fmt="o-")
    if data in LOG_PX:
        curve.axhline(LOG_PX[data], color="gray", ls="--", label="E log p(x)")
        curve.legend()
    curve.set(xlabel="steps T", ylabel="nats per datum", title="T-step bound on log p(x)")
    curve.set_xscale("log", base=2)
    figure.savefig(out, dpi=100)
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="eight-gaussians")
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--out", default="diffusion.png")
    parser.add_argument("--draws", type=int, default=20)
    main(**vars(parser.parse_args()))
