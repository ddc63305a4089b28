"""A flow as a guide, on a posterior that a Gaussian misses.

python examples/flow_guide.py --steps 3000 --out guide.png
"""

import argparse
import math

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn

from inference import elbo, fit, log_weights
from zoo.flows import IAF

SIGMA = 0.3


def model(x):
    """z ~ N(0, I), x_i | z ~ N(z_2 + z_1², 0.3²): what x says lies along a parabola."""
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(z[..., 1] + z[..., 0] ** 2, SIGMA), obs=x)


class FlowGuide(nn.Module):
    """q(z) = IAF."""

    def __init__(self):
        super().__init__()
        self.flow = IAF(2, layers=4, hidden=(32,))

    def forward(self, x):
        """Draw z."""
        pyro.module("flow", self.flow)
        pyro.sample("z", self.flow())


def main(steps: int = 2_000, out: str = "flow_guide.png"):
    """Fit three guides, print each one's gap, draw them; returns {name: (gap, standard error)}."""
    pyro.set_rng_seed(0)
    x = torch.tensor([1.3, 0.9, 1.1, 1.2])
    side = torch.linspace(-4.5, 4.5, 601)
    z = torch.cartesian_prod(side, side)
    log_joint = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + sum(
        dist.Normal(z[:, 1] + z[:, 0] ** 2, SIGMA).log_prob(v) for v in x
    )
    evidence = log_joint.logsumexp(0) + 2 * math.log(9 / 600)  # by quadrature
    guides = {
        "mean-field": AutoNormal(model),
        "full-rank": AutoMultivariateNormal(model),
        "IAF": FlowGuide(),
    }
    figure, gaps = Figure(figsize=(12, 4), layout="tight"), {}
    for name, guide, axes in zip(guides, guides.values(), figure.subplots(1, 3)):
        run = fit(model, guide, x, elbo=elbo.Trace(32), steps=steps, lr=5e-3, schedule="cosine")
        with torch.no_grad():
            drawn = log_weights(run.model, run.guide, x, particles=10_000)
        nats = drawn.log_weight()
        gaps[name] = float(evidence - nats.mean()), float(nats.std() / 100)
        axes.set_title("{}: KL(q || p) {:.3f} ± {:.3f} nats".format(name, *gaps[name]))
        print(axes.get_title())
        posterior = (log_joint - evidence).exp().reshape(601, 601)
        extent = (-4.5, 4.5, -4.5, 4.5)
        axes.imshow(posterior.T.numpy(), origin="lower", extent=extent, cmap="Greys")
        draws = drawn.guide["z"].value[:500].reshape(500, 2)
        axes.scatter(*draws.T.numpy(), s=2, color="tab:red")
        axes.set(xlim=(-3, 3), ylim=(-3, 3), xlabel="$z_1$", ylabel="$z_2$")
    figure.savefig(out, dpi=100)
    return gaps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--out", default="flow_guide.png")
    main(**vars(parser.parse_args()))
