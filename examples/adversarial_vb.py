"""A posterior that no Gaussian fits, and a guide without a density that does.

z ~ N(0, I) in the plane, x | z ~ N(|z|, 0.2²): given x, z lies on a ring.
python examples/adversarial_vb.py --out ring.png
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import nn

from inference.ratios.implicit import fit_implicit

SCALE = 0.2


class Radius(nn.Module):
    """The model above; in the guide z is a network of x and four numbers of noise."""

    def __init__(self):
        super().__init__()
        hidden = nn.Linear(5, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()
        self.net = nn.Sequential(*hidden, nn.Linear(128, 2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.norm(dim=-1, keepdim=True), SCALE).to_event(1), obs=x)

    def guide(self, x):
        """Noise, and z computed from it."""
        with pyro.plate("data", len(x)):
            noise = dist.Normal(x.new_zeros(4), 1.0).to_event(1)
            eps = pyro.sample("eps", noise, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(self.draw(x, eps), event_dim=1))

    def draw(self, x, eps):  # (..., 1), (..., 4) -> (..., 2)
        return self.net(torch.cat([x.expand(*eps.shape[:-1], 1), eps], -1))


def by_quadrature(x: torch.Tensor) -> tuple[float, float]:
    """Mean log p(x) and KL(p(z | x) || p(z)), over a grid of the radius, p(r) = r exp(−r²/2)."""
    r = torch.linspace(1e-4, 9, 20_001, dtype=torch.float64)
    log_lik = dist.Normal(r, SCALE).log_prob(x.double())
    p = torch.trapezoid(joint := (r.log() - r**2 / 2 + log_lik).exp(), r)
    return float(p.log().mean()), float((torch.trapezoid(joint * log_lik, r) / p - p.log()).mean())


def main(steps: int = 12_000, out: str = "adversarial_vb.png"):
    """Fit the guide, draw `out`; returns the estimates and log p(x), KL by quadrature."""
    torch.manual_seed(0)
    x = torch.randn(4_000, 2).norm(dim=1, keepdim=True) + SCALE * torch.randn(4_000, 1)
    run = fit_implicit(Radius(), x, steps=steps, critic_steps=3, progress=False)
    got, (log_px, kl) = run.evaluate(x[:1_000]), by_quadrature(x[:1_000])
    print(f"KL(q || p)  {got.kl}, of the posterior {kl:.3f} by quadrature")
    print(f"ELBO        {got.elbo} (no bound), log p(x) {log_px:.3f} by quadrature")

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axis = torch.linspace(-3.5, 3.5, 200)
    z = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    for axes, value in zip(figure.subplots(1, 3), (0.5, 1.2, 2.5)):
        x = torch.tensor([value])
        log_p = -z.square().sum(-1) / 2 + dist.Normal(z.norm(dim=-1), SCALE).log_prob(x)
        axes.contourf(axis, axis, log_p.exp(), 12, cmap="Greys")
        with torch.no_grad():
            draws = run.pair.draw(x, torch.randn(1_000, 4))
        axes.plot(*draws.T, ".", ms=2, color="C1")
        axes.set(title=f"x = {value}: p(z | x), and draws of q", aspect="equal")
    figure.savefig(out, dpi=100)
    return got, log_px, kl


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--out", default="adversarial_vb.png")
    main(**vars(parser.parse_args()))
