"""Bounds tighten: ELBO < IWAE_2 < IWAE_8 < IWAE_64 < log p(x), and all meet at the posterior.

Three pairs: linear-Gaussian and global-and-local ones, whose log p(x) is exact, and a VAE of the
digits, whose log p(x) is bounded from below with 5,000 particles (Burda et al. 2016,
arXiv:1509.00519, theorem 1).

python examples/bounds_tighten.py --out bounds.png
"""

import argparse

import torch
from matplotlib.figure import Figure

from inference import elbo, evaluate, fit, log_weights
from inference.testing.toys import GlobalLocal, LinearGaussian
from zoo.data import load
from zoo.vae import VAE


@torch.no_grad()
def bound(model, guide, x, k, draws):
    """Mean of IWAE_K over draws // K groups of particles, and its standard error."""
    groups = draws // k
    weights = log_weights(model, guide, x, particles=groups * k)
    each = elbo.MIWAE(groups, k).by_group(weights.log_weight())  # (groups, rows)
    values = weights.total(each).double() / weights.data_size
    return values.mean().item(), values.std().item() / groups**0.5


def main(out="bounds.png", steps=1_500):
    """Measure and draw; returns {pair: [(K, bound, SE), ...]}, the truth as K = inf."""
    torch.manual_seed(0)
    digits = load("digits")
    run = fit(VAE(digits.data_dim), digits, steps=steps, progress=False)
    tight = evaluate(run, digits.test[:100], particles=5_000)
    vae = run.model, run.guide, digits.test[:100], (tight.log_px, tight.log_px_mc_se), 1_280
    pairs = {"VAE of the digits": vae}
    for name, kind in (("linear-Gaussian", LinearGaussian), ("global and local", GlobalLocal)):
        toy, x = kind(exact=False), kind().data()
        size = 1 if kind is GlobalLocal else len(x)
        truth = toy.log_px(x).item() / size, 0.0
        pairs[name] = toy.model, toy.guide, x, truth, 64_000

    found, figure = {}, Figure(figsize=(12, 4), layout="constrained")
    for axes, (name, (model, guide, x, truth, draws)) in zip(figure.subplots(1, 3), pairs.items()):
        rows = [(k, *bound(model, guide, x, k, draws)) for k in (1, 2, 8, 64)]
        ks, values, errors = zip(*rows)
        axes.errorbar(ks, values, [3 * e for e in errors], marker="o", capsize=3)
        axes.axhspan(truth[0] - 3 * truth[1], truth[0] + 3 * truth[1], color="k", alpha=0.3)
        axes.axhline(truth[0], color="k", label="log p(x)")
        axes.set(xscale="log", xlabel="particles K", title=name)
        axes.set_xticks(ks, [str(k) for k in ks], minor=False)
        axes.minorticks_off()
        axes.legend()
        found[name] = [*rows, (float("inf"), *truth)]
    figure.supylabel("nats per datum (right: nats in all), ± 3 SE", fontsize=9)
    figure.savefig(out, dpi=120)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="bounds.png")
    parser.add_argument("--steps", type=int, default=1_500)
    for name, rows in main(**vars(parser.parse_args())).items():
        print(name, *(f"K={k:g}: {v:.4f} ± {e:.1g}" for k, v, e in rows), sep="\n  ")
