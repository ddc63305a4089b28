"""A GAN on handwritten digits: its draws beside real ones.

python examples/gan_digits.py --steps 6000 --out gan_digits.png
"""

import argparse

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from inference.ratios.adversarial import fit_adversarial
from zoo.data import load
from zoo.gan import GAN, GANCritic


def main(data: str = "digits", steps: int = 6_000, seed: int = 0, out: str = "gan_digits.png"):
    """Fit the GAN, draw `out`; returns the mean distance of draws and of test images to the
    nearest training image, and how the draws' nearest neighbours spread over the labels."""
    torch.manual_seed(seed)
    images = load(data)
    gan = GAN(images.data_dim, latent_dim=16, hidden=(256, 256), output="sigmoid")
    critic = GANCritic(images.data_dim, hidden=(256, 256))
    run = fit_adversarial(
        gan, images, critic=critic, steps=steps, batch_size=128, seed=seed, progress=False
    )
    x = run.sample(1_000)
    near = torch.cdist(x, images.train).min(1)
    real = torch.cdist(images.test, images.train).min(1).values.mean()
    labels = torch.bincount(images.train_labels[near.indices], minlength=10) / len(x)
    print(
        f"distance to the nearest training image: draws {near.values.mean():.2f}, test {real:.2f}"
    )
    print("labels of those images:", " ".join(f"{s:.2f}" for s in labels))

    figure = Figure(figsize=(14, 4.4), layout="constrained")
    draws, data_, curve = figure.subplots(1, 3)
    for axes, rows, title in ((draws, x, "draws of the generator"), (data_, images.train, "data")):
        grid = make_grid(rows[:100].reshape(-1, *images.image_shape), 10, 1, pad_value=0.5)
        axes.imshow(grid[0].numpy(), cmap="gray")
        axes.set(title=title, xticks=[], yticks=[])
    curve.plot(run.history["step"], run.history["divergence"])
    curve.set(title="the critic's Jensen-Shannon divergence", xlabel="step", ylabel="nats")
    figure.savefig(out, dpi=100)
    return float(near.values.mean()), float(real), labels


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="gan_digits.png")
    main(**vars(parser.parse_args()))
