"""Autoencoders side by side, and the VAE that turns into one as β goes to zero.

python examples/autoencoders.py --steps 3000 --out autoencoders.png
"""

import argparse

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from inference import elbo, fit
from zoo.autoencoder import (
    Autoencoder,
    DenoisingAutoencoder,
    LinearAutoencoder,
    SparseAutoencoder,
)
from zoo.data import load
from zoo.vae import VAE

BETAS = (1.0, 0.3, 0.1, 0.03, 0.01, 0.0)


def main(data: str = "digits", steps: int = 3_000, out: str = "autoencoders.png"):
    """Fit every kind with one budget, draw `out`; returns the squared errors per test digit."""
    torch.manual_seed(0)
    images = load(data)
    d, code, unit = images.data_dim, 8, {"likelihood": "gaussian-unit"}
    options = {"steps": steps, "lr": 2e-3, "schedule": "cosine", "progress": False}
    pairs = {
        f"linear, {code}": LinearAutoencoder(d, code),
        f"deep, {code}": Autoencoder(d, code),
        "sparse, 128": SparseAutoencoder(d),
        f"denoising, {code}": DenoisingAutoencoder(d, code, (200, 200)),
    }
    runs = {name: fit(pair, images, **options) for name, pair in pairs.items()}
    runs |= {
        f"VAE, {code}, β = {b:g}": fit(VAE(d, code, **unit), images, elbo=elbo.Beta(b), **options)
        for b in BETAS
    }
    trained = {name: run.pair.cpu() for name, run in runs.items()}
    x = images.test
    error = {n: float(((p.reconstruct(x) - x) ** 2).sum(-1).mean()) for n, p in trained.items()}
    for name, value in error.items():
        print(f"{name:24} {value:.3f} squared error per datum")
    zeros = float((trained["sparse, 128"].encode(x) == 0).float().mean())
    print(f"{'sparse, 128':24} {zeros:.1%} of the code is zero")

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    pictures, curve = figure.subplots(1, 2, width_ratios=(1.3, 1))
    shown = [n for n in trained if "β" not in n or n.endswith(("= 1", "= 0"))]
    rows = torch.cat([x[:10], *(trained[n].reconstruct(x[:10]) for n in shown)])
    grid = make_grid(rows.reshape(-1, *images.image_shape).clamp(0, 1), nrow=10, pad_value=1)[0]
    pictures.imshow(grid.numpy(), cmap="gray")
    height = grid.shape[0] / (len(shown) + 1)
    pictures.set_yticks([(i + 0.5) * height for i in range(len(shown) + 1)], ["test digit", *shown])
    pictures.set_xticks([])
    curve.plot(range(len(BETAS)), [error[f"VAE, {code}, β = {b:g}"] for b in BETAS], "o-")
    curve.set_xticks(range(len(BETAS)), [f"{b:g}" for b in BETAS])
    for i, name in enumerate(pairs):
        curve.axhline(error[name], color=f"C{i + 1}", ls="--", label=name)
    curve.set(title="VAE at weight β of its KL", xlabel="β", ylabel="squared error per test digit")
    curve.legend(title="autoencoders")
    figure.savefig(out, dpi=100)
    return error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--out", default="autoencoders.png")
    main(**vars(parser.parse_args()))
