"""A GAN on the ring of eight Gaussians: does it find them all, and how far from the data is it?

python examples/gan_ring.py --objective non-saturating --steps 5000 --out gan_ring.png
"""

import argparse
import math

import torch
from matplotlib.figure import Figure

from inference.ratios import density_ratio
from inference.ratios.adversarial import fit_adversarial
from zoo.data import load
from zoo.gan import GAN

ANGLES = torch.arange(8) * math.pi / 4
MODES = 4 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)  # each with standard deviation 0.5


def shares(x: torch.Tensor) -> torch.Tensor:
    """The share of points within three standard deviations of each mode."""
    distance, nearest = torch.cdist(x, MODES).min(1)
    return torch.bincount(nearest[distance < 1.5], minlength=8) / len(x)


def main(
    objective: str = "non-saturating", steps: int = 5_000, seed: int = 0, out: str = "gan_ring.png"
):
    """Fit the GAN, draw `out`; returns each mode's share of its draws."""
    torch.manual_seed(seed)
    ring = load("eight-gaussians")
    run = fit_adversarial(GAN(2), ring, objective=objective, steps=steps, seed=seed, progress=False)
    x = run.sample(10_000)
    found = shares(x)
    print("share of each mode: ", " ".join(f"{s:.3f}" for s in found), f"(data: {1 / 8})")
    print(f"near some mode:      {found.sum():.3f} (data: {1 - math.exp(-4.5):.3f})")
    # a new critic on draws and points that neither player saw
    js = density_ratio(
        torch.cat([ring.valid, ring.test]), run.sample(2_000), steps=min(2_000, steps), seed=seed
    )
    print(f"Jensen-Shannon divergence from held-out data: {js.js_divergence}")

    figure = Figure(figsize=(13, 4), layout="constrained")
    data, draws, curve = figure.subplots(1, 3)
    data.plot(*ring.train[:3000].T, ".", ms=2)
    data.set_title("data")
    draws.plot(*x[:3000].T, ".", ms=2, color="C1")
    draws.set_title(f"{objective} GAN, {steps} steps")
    for axes in (data, draws):
        axes.set(xlim=(-6, 6), ylim=(-6, 6), aspect="equal")
    curve.plot(run.history["step"], run.history["divergence"])
    unit = "units of x" if objective == "wasserstein" else "nats"
    curve.set(title="the critic's divergence", xlabel="step", ylabel=unit)
    figure.savefig(out, dpi=100)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objective", default="non-saturating")
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="gan_ring.png")
    main(**vars(parser.parse_args()))
