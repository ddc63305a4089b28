"""IWAE against the VAE, as in Burda et al. 2016 (arXiv:1509.00519, table 1): one net, one budget.

The net is 784-200-200-50 with tanh; every estimator gets the same number of steps, the same
batches of 20 and, per seed, the same start. Test log p(x) is bounded with 1,000 particles.

ZOO_DATA=... python examples/iwae_mnist.py --minutes 60 --seeds 0 1 2 --out iwae_mnist.json
"""

import argparse
import json
import math
import statistics
import time

import torch

from inference import elbo, evaluate, fit
from zoo.data import load
from zoo.vae import VAE

ESTIMATORS = {"VAE": elbo.Trace(8), "IWAE-8": elbo.IWAE(8), "DReG-8": elbo.DReG(8)}


def affordable(data, minutes, fits):
    """Steps that the slowest estimator makes in its share of the minutes, compiling aside."""
    slowest = 0.0
    for estimator in ESTIMATORS.values():
        start = time.perf_counter()
        fit(
            net(data, 0),
            data,
            elbo=estimator,
            steps=30,
            batch_size=20,
            compile=False,
            progress=False,
        )
        slowest = max(slowest, (time.perf_counter() - start) / 30)
    return max(100, int(60 * minutes / fits / slowest))


def net(data, seed):
    """The net of the paper, with its weights drawn from the seed."""
    torch.manual_seed(seed)
    return VAE(data.data_dim, latent_dim=50, hidden=(200, 200), act="tanh")


def main(
    data="mnist", minutes=60.0, steps=None, seeds=(0, 1, 2), test=2_000, out="iwae_mnist.json"
):
    """Fit every estimator from every seed and write the table; returns it."""
    images = load(data, pixels="dynamic")
    steps = steps or affordable(images, minutes, len(seeds) * len(ESTIMATORS))
    rows = images.test[:test]  # its pixels were drawn once, for all
    found = {name: [] for name in ESTIMATORS}
    for seed in seeds:
        for name, estimator in ESTIMATORS.items():
            pair, budget = net(images, seed), {"steps": steps, "batch_size": 20, "lr": 1e-3}
            run = fit(pair, images, elbo=estimator, schedule="linear", seed=seed, **budget)
            found[name].append(evaluate(run, rows, particles=1_000).log_px)
            print(f"seed {seed}, {name}: log p(x) >= {found[name][-1]:.3f} nats", flush=True)
    table = {"steps": steps, "test rows": len(rows), "log_px": found}
    for name in ("IWAE-8", "DReG-8"):  # paired: one seed is one start and one order of batches
        gains = [a - b for a, b in zip(found[name], found["VAE"])]
        spread = statistics.stdev(gains) if len(gains) > 1 else math.nan
        table[f"{name} minus VAE"] = statistics.mean(gains), spread / math.sqrt(len(gains))
    with open(out, "w") as file:
        json.dump(table, file, indent=1)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--test", type=int, default=2_000)
    parser.add_argument("--out", default="iwae_mnist.json")
    print(json.dumps(main(**vars(parser.parse_args())), indent=1))
