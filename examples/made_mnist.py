"""MADE with one hidden layer on binarised MNIST: exact nats, one pixel after the other.

ZOO_DATA=... python examples/made_mnist.py --steps 10000 --out made.png

Without ZOO_DATA it is fitted to the embedded 8x8 digits.
"""

import argparse
import os

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from inference import fit
from zoo.autoregressive import MADE
from zoo.data import load


def main(data: str | None = None, steps: int = 3_000, out: str = "made.png"):
    """Fit, print test nats, write data and draws to `out`; returns (nats, standard error)."""
    torch.manual_seed(0)
    name = data or ("mnist" if os.environ.get("ZOO_DATA") else "digits")
    images = load(name, pixels="static")  # each pixel drawn once, Bernoulli(intensity), seed 0
    made = MADE(images.data_dim, hidden=(500,))
    run = fit(made, images, steps=steps, lr=1e-3, batch_size=100, schedule="cosine")

    pair = run.pair.cpu()
    with torch.no_grad():
        nats = torch.cat([pair.log_prob(x) for x in images.test.split(1_000)])
    mean, error = float(nats.mean()), float(nats.std() / len(nats) ** 0.5)
    print(f"{name}: test log p(x) {mean:.2f} ± {error:.2f} nats, {run.seconds:.0f} s")

    figure = Figure(figsize=(8, 4.4), layout="tight")
    title = f"draws, test log p(x) {mean:.1f} nats"
    panels = {"held-out data": images.test[:64], title: pair.sample(64)}
    for axes, (title, rows) in zip(figure.subplots(1, 2), panels.items()):
        grid = make_grid(rows.reshape(-1, *images.image_shape), nrow=8, padding=1, pad_value=0.5)
        axes.imshow(grid[0].numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title)
        axes.set_axis_off()
    figure.savefig(out, dpi=100)
    return mean, error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=None)
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--out", default="made.png")
    main(**vars(parser.parse_args()))
