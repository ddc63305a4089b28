"""A codebook for digits: vector-quantised VAE, and k-means as its smallest case.

python examples/vq_digits.py --steps 3000 --out codes.png
"""

import argparse

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from inference import fit
from zoo.data import load
from zoo.vqvae import VQVAE, perplexity


def main(data: str = "digits", steps: int = 3_000, out: str = "codes.png"):
    """Fit, draw reconstructions, the codebook's use and the k-means digits; returns the run."""
    torch.manual_seed(0)
    images = load(data)
    pair = VQVAE(
        images.data_dim, codes=32, slots=4, networks="conv", image_shape=images.image_shape
    )
    run = fit(pair, images, steps=steps, lr=2e-3, schedule="cosine")
    pair, x = run.pair.cpu(), images.test.cpu()
    error = float(((pair.reconstruct(x) - x) ** 2).sum(-1).mean())
    usage = pair.usage(x)
    print(f"squared error {error:.3f} per test digit with {pair.slots} codes of {pair.codes}")
    print(f"perplexity {perplexity(usage):.1f}, {int((usage > 0).sum())} of {pair.codes} in use")

    # Identity networks and one slot: each code is a digit, a Lloyd step is one of k-means.
    d = images.data_dim
    kmeans = VQVAE(d, codes=20, code_dim=d, slots=1, networks="identity")
    kmeans.codebook.data = images.train[:20].clone()
    for _ in range(50):
        kmeans.lloyd_step(images.train)
    within = float(((kmeans.reconstruct(x) - x) ** 2).sum(-1).mean())
    print(f"squared error {within:.3f} per test digit with one code of 20 (k-means)")

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    pairs = torch.stack([v[:20].reshape(2, 10, -1) for v in (x, pair.reconstruct(x))], 1)
    for axes, pictures, columns, title in (
        (left, pairs, 10, f"digits, and below from {pair.slots} codes"),
        (right, kmeans.codebook.data, 5, "identity networks: k-means"),
    ):
        pictures = pictures.reshape(-1, *images.image_shape).clamp(0, 1)
        grid = make_grid(pictures, nrow=columns, pad_value=1)[0]
        axes.imshow(grid.numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title)
        axes.set_axis_off()
    middle.bar(range(pair.codes), sorted(usage.tolist(), reverse=True))
    middle.axhline(1 / pair.codes, color="gray", ls="--", label="uniform")
    middle.set(title=f"codes in use: perplexity {perplexity(usage):.1f}")
    middle.set(xlabel="code, by share", ylabel="share of all slots")
    middle.legend()
    figure.savefig(out, dpi=100)
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=int, default=3_000)
    parser.add_argument("--out", default="codes.png")
    main(**vars(parser.parse_args()))
