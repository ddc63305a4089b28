"""Mini-batches of a K-sample bound: ours is unbiased for all data, Pyro's RenyiELBO is not.

Of N = 64 rows of a linear-Gaussian pair, B are drawn. The bound of all rows is N/B times the sum
over the batch of the logarithm of each row's mean weight. Pyro 1.9 multiplies by N/B inside that
logarithm (its issue 3104), which is another function of the weights.

python examples/minibatch_iwae.py --out minibatch.png
"""

import argparse

import torch
from matplotlib.figure import Figure
from pyro.infer import RenyiELBO

from inference import elbo
from inference.testing.toys import LinearGaussian

K, N = 8, 64


def mean(loss, pair, x, batch, draws):
    """Mean and standard error of the bound over mini-batches and draws, nats per datum."""
    values = []
    for _ in range(draws):
        rows = x[torch.randperm(N)[:batch]]
        values.append(-loss.loss(pair.model, pair.guide, rows, N) / N)
    values = torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / draws**0.5


def main(out="minibatch.png", batches=(2, 4, 8, 16, 32, 64), draws=1_000):
    """Measure and draw; returns {name: [(B, mean, SE), ...]}."""
    torch.manual_seed(0)
    pair = LinearGaussian(exact=False)
    x = 1.2 * torch.randn(N, 3, dtype=torch.float64)
    losses = {
        f"inference.elbo.IWAE({K})": elbo.IWAE(K),
        f"pyro.infer.RenyiELBO(alpha=0, {K})": RenyiELBO(
            alpha=0, num_particles=K, max_plate_nesting=1, vectorize_particles=True
        ),
    }
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes, found = figure.subplots(), {}
    for name, loss in losses.items():
        found[name] = [(b, *mean(loss, pair, x, b, draws)) for b in batches]
        b, values, errors = zip(*found[name])
        axes.errorbar(b, values, [3 * e for e in errors], marker="o", capsize=3, label=name)
    axes.axhline(found[f"inference.elbo.IWAE({K})"][-1][1], color="k", lw=0.5)
    axes.set(xscale="log", xlabel=f"rows in the batch, of {N}",
             ylabel="bound, nats per datum, ± 3 SE")  # fmt: skip
    axes.set_xticks(batches, [str(b) for b in batches])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(out, dpi=120)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="minibatch.png")
    parser.add_argument("--draws", type=int, default=1_000)
    for name, rows in main(**vars(parser.parse_args())).items():
        print(name, *(f"B={b}: {v:.4f} ± {e:.1g}" for b, v, e in rows), sep="\n  ")
