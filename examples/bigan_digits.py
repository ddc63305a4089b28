"""A GAN with an encoder on handwritten digits: draws, and test images through its latent space.

python examples/bigan_digits.py --steps 8000 --out bigan_digits.png
"""

import argparse

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from inference.ratios.adversarial import fit_adversarial
from zoo.data import load
from zoo.edit import interpolate
from zoo.gan import BiGAN


def main(data: str = "digits", steps: int = 8_000, seed: int = 0, out: str = "bigan_digits.png"):
    """Fit, draw `out`; returns the run and the mean squared error of its reconstructions."""
    torch.manual_seed(seed)
    images = load(data)
    pair = BiGAN(images.data_dim, 16, (256, 256), output="sigmoid", image_shape=images.image_shape)
    run = fit_adversarial(pair, images, steps=steps, batch_size=128, seed=seed, progress=False)
    x, found = images.test, run.generator
    error = float((found.reconstruct(x) - x).square().mean())
    print(f"squared error {error:.4f} per value; of the mean image {float(x.var(0).mean()):.4f}")

    figure = Figure(figsize=(14, 4.8), layout="constrained")
    panels = {
        "draws": run.sample(64),
        "test images and their reconstructions": torch.stack(
            [x[:32], found.reconstruct(x[:32])], 1
        ).flatten(0, 1),
        "from one test image to another": interpolate(found, x[:8], x[8:16], steps=8)
        .transpose(0, 1).flatten(0, 1),
    }  # fmt: skip
    for axes, (title, rows) in zip(figure.subplots(1, 3), panels.items()):
        grid = make_grid(rows.reshape(-1, *images.image_shape), 8, 1, pad_value=0.5)
        axes.imshow(grid[0].numpy(), cmap="gray")
        axes.set(title=title, xticks=[], yticks=[])
    figure.savefig(out, dpi=100)
    return run, error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="bigan_digits.png")
    main(**vars(parser.parse_args()))
