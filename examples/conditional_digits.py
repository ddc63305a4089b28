"""Generate a 7: a VAE that is told the label.

python examples/conditional_digits.py --data mnist --steps 5000 --out sevens.png
"""

import argparse

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from inference import elbo, fit
from zoo.data import load
from zoo.vae import ConditionalVAE


def main(data: str = "digits", steps: int = 2_000, out: str = "conditional.png"):
    """Fit, write ten draws of each label and ten styles to `out`; returns the run."""
    torch.manual_seed(0)
    images = load(data, pixels="dynamic")
    vae = ConditionalVAE(images.data_dim, classes=10, latent_dim=8)
    run = fit(vae, images, elbo=elbo.MeanField(), steps=steps, lr=2e-3)

    pair = run.pair.cpu()
    sevens = pair.sample(10, y=7)  # zeros and ones, (10, D)
    z = torch.randn(10, 8)  # ten styles, each with every label
    means = [pair.decode(z, y) for y in range(10)]

    figure = Figure(figsize=(7, 8.5), layout="tight")
    top, bottom = figure.subplots(2, 1, height_ratios=(1, 10))
    top.set_title("ten draws of a 7")
    bottom.set_title("mean images: a column is one z, a row one label")
    for axes, rows in ((top, [sevens]), (bottom, means)):
        pictures = torch.cat(rows).reshape(-1, *images.image_shape)
        grid = make_grid(pictures, nrow=10, padding=1, pad_value=1)[0]
        axes.imshow(grid.numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
    figure.savefig(out, dpi=100)
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--out", default="conditional.png")
    print(main(**vars(parser.parse_args())))
