"""Classical densities: estimated from data, and derived from other densities.

python examples/densities.py --out densities.png
"""

import argparse

import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch.distributions import constraints

from zoo.density import Gaussian, KernelDensity
from zoo.pushforward import inverse_cdf, negative_log, square


def main(n: int = 400, out: str = "densities.png") -> dict[str, float]:
    """Draw estimates and derived densities; returns the largest error of each derived one, nats."""
    torch.manual_seed(0)
    f64 = {"dtype": torch.float64}
    zero, one = torch.zeros((), **f64), torch.ones((), **f64)
    normal, uniform = dist.Normal(zero, one), dist.Uniform(zero, one)
    figure = Figure(figsize=(11, 6), layout="constrained")
    above, below = figure.subplots(2, 3)

    # Estimates of a density with two hills
    truth = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7], **f64)),
        dist.Normal(torch.tensor([-2.0, 1.0], **f64), torch.tensor([0.3, 1.0], **f64)),
    )
    x = truth.sample((n,)).unsqueeze(-1)
    test = truth.sample((10 * n,)).unsqueeze(-1)
    grid = torch.linspace(-5, 5, 500, **f64).unsqueeze(-1)
    estimates = {
        "Gaussian, maximum likelihood": Gaussian(1).double().fit_closed_form(x).distribution(),
        "kernels, Scott's rule": KernelDensity(x, "scott"),
        "kernels, leave-one-out": KernelDensity(x, "leave-one-out"),
    }
    for axes, (name, estimate) in zip(above, estimates.items()):
        with torch.no_grad():
            nats = estimate.log_prob(test)
            axes.plot(grid, estimate.log_prob(grid).exp())
        gap = truth.log_prob(test.squeeze(-1)) - nats
        print(f"{name:30} KL(truth, estimate) {gap.mean():.4f} ± {gap.std() / len(gap) ** 0.5:.4f}")
        axes.plot(grid, truth.log_prob(grid.squeeze(-1)).exp(), "k:")
        axes.plot(x, torch.zeros_like(x) - 0.01, "|", color="grey", alpha=0.4)
        axes.set_title(f"{name}: KL {gap.mean():.3f} nats", fontsize="medium")

    # Derived densities, each with the closed form it should be
    shape = 1.7
    weibull = inverse_cdf(
        lambda x: -torch.expm1(-(x**shape)), support=constraints.positive, base=uniform
    )
    derived = {
        "-log(uniform) = exponential": (negative_log(uniform), dist.Exponential(one)),
        "normal² = chi-squared": (square(normal), dist.Chi2(one)),
        "from a CDF: Weibull": (weibull, dist.Weibull(one, shape * one)),
    }
    positive = torch.linspace(0.02, 4, 400, **f64)
    errors = {}
    for axes, (name, (ours, closed)) in zip(below, derived.items()):
        errors[name] = float((ours.log_prob(positive) - closed.log_prob(positive)).abs().max())
        print(f"{name:30} largest error of log p {errors[name]:.1e} nats")
        axes.hist(ours.sample((10 * n,)), bins=60, range=(0, 4), density=True, color="0.85")
        axes.plot(positive, ours.log_prob(positive).exp())
        axes.set_title(name, fontsize="medium")
        axes.set_ylim(0, 1.5)
    figure.savefig(out, dpi=100)
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--out", default="densities.png")
    main(**vars(parser.parse_args()))
