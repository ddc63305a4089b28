"""Bounds tighten: ELBO < IWAE_2 < IWAE_8 < IWAE_64 < log p(x), and all meet at the posterior.

Three pairs: linear-Gaussian and global-and-local ones, whose log p(x) is exact, and a VAE of the
digits, whose log p(x) is bounded from below with 5,000 particles (Burda et al. 2016,
arXiv:1509.00519, theorem 1).

python examples/bounds_tighten.py --out bounds.png
"""

import argparse

import torch
from matplotlib.figure import Figure

from inference import elbo, fit, log_weights
from inference.toys import GlobalLocal, LinearGaussian
from zoo.data import load
from zoo.vae import VAE


@torch.no_grad()
def bound(model, guide, x, k, repeats):
    """Mean of IWAE_K over draws, and its standard error: nats per datum (nats if joint)."""
    values = []
    for _ in range(repeats):
        weights = log_weights(model, guide, x, particles=k)
        values.append(elbo.IWAE(k).bound(weights) / weights.data_size)
    values = torch.stack(values).double()
    return values.mean().item(), values.std().item() / repeats**0.5


def main(out="bounds.png", steps=1_500, draws=20_000):
    """Measure and draw; returns {pair: [(K, bound, SE), ...]}, the truth as K = inf."""
    torch.manual_seed(0)
    digits = load("digits")
    run = fit(VAE(digits.data_dim), digits, steps=steps, progress=False)
    x = digits.test[:100]
    pairs = {
        "VAE of the digits": (run.model, run.guide, x, bound(run.model, run.guide, x, 5_000, 4))
    }
    for name, kind in (("linear-Gaussian", LinearGaussian), ("global and local", GlobalLocal)):
        toy = kind(exact=False)
        x = toy.data()
        size = 1 if kind is GlobalLocal else len(x)
        pairs[name] = toy.model, toy.guide, x, (toy.log_px(x).item() / size, 0.0)

    found, figure = {}, Figure(figsize=(12, 4), layout="constrained")
    for axes, (name, (model, guide, x, (truth, truth_se))) in zip(
        figure.subplots(1, 3), pairs.items()
    ):
        rows = [(k, *bound(model, guide, x, k, max(20, draws // (k * 10)))) for k in (1, 2, 8, 64)]
        ks, values, errors = zip(*rows)
        axes.errorbar(ks, values, [3 * e for e in errors], marker="o", capsize=3)
        axes.axhspan(truth - 3 * truth_se, truth + 3 * truth_se, color="k", alpha=0.3)
        axes.axhline(truth, color="k", label="log p(x)")
        axes.set(xscale="log", xlabel="particles K", title=name)
        axes.legend()
        found[name] = [*rows, (float("inf"), truth, truth_se)]
    figure.supylabel("nats per datum (right: nats in all), ± 3 SE")
    figure.savefig(out, dpi=120)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="bounds.png")
    parser.add_argument("--steps", type=int, default=1_500)
    for name, rows in main(**vars(parser.parse_args())).items():
        print(name, *(f"K={k:g}: {v:.4f} ± {e:.1g}" for k, v, e in rows), sep="\n  ")
