"""Edit images in a VAE's latent space: walk from one to another, and add an attribute.

    python examples/edit_fashion.py --data fashion-mnist --steps 5000 --out edit.png

The attribute is long sleeves, added to T-shirts; on the embedded digits it is a closed loop.
"""

import argparse
import os

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from inference import elbo, fit
from zoo.data import load
from zoo.edit import apply_attribute, attribute_vector, interpolate
from zoo.vae import VAE

ATTRIBUTES = {  # name, labels that have it, labels that have not
    "digits": ("a closed loop", (0, 6, 8, 9), (1, 2, 3, 5, 7)),
    "fashion-mnist": ("long sleeves", (2, 4, 6), (0,)),
}


def main(data: str | None = None, steps: int = 2_000, out: str = "edit.png"):
    """Fit, edit test images, write the picture to `out`; returns the run."""
    data = data or ("fashion-mnist" if os.environ.get("ZOO_DATA") else "digits")
    images = load(data)
    vae = VAE(images.data_dim, latent_dim=16, likelihood="gaussian")
    run = fit(vae, images, elbo=elbo.MeanField(), steps=steps, lr=2e-3)
    pair = run.pair.cpu()

    x, y = images.test, images.test_labels
    tour = interpolate(pair, x[:6], x[6:12], steps=10, path="spherical")  # (10, 6, D)

    name, labels_with, labels_without = ATTRIBUTES[data]
    has = torch.isin(images.train_labels, torch.tensor(labels_with))
    rows = has | torch.isin(images.train_labels, torch.tensor(labels_without))
    vector = attribute_vector(pair, images.train[rows], has[rows])
    plain = x[torch.isin(y, torch.tensor(labels_without))][:6]
    strengths = torch.linspace(-0.5, 1.75, 10)
    edited = apply_attribute(pair, plain, vector, strengths)  # (10, 6, D)

    figure = Figure(figsize=(9, 11), layout="tight")
    top, bottom = figure.subplots(2, 1)
    top.set_title("from one test image to another, on the sphere")
    bottom.set_title(f"{name}: strength {strengths[0]:.2f} to {strengths[-1]:.2f}")
    for axes, columns in ((top, tour), (bottom, edited)):
        rows = columns.transpose(0, 1).reshape(-1, *images.image_shape)
        grid = make_grid(rows, nrow=10, padding=1, pad_value=1)[0]
        axes.imshow(grid.numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
    figure.savefig(out, dpi=100)
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=list(ATTRIBUTES))
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--out", default="edit.png")
    print(main(**vars(parser.parse_args())))
