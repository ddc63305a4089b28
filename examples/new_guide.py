"""Write a new guide: what `check` says of a first try, and what the guide is worth beside others.

python examples/new_guide.py --steps 2000
"""

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from inference import check, fit_guides

EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])  # Rubin 1981, eight schools
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def model(y, sigma):
    """Effects theta_j ~ N(mu, tau) of eight schools; y_j ~ N(theta_j, sigma_j)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def first_try(y, sigma):
    """Three mistakes: tau may be negative, theta has no plate, and a name is misspelt."""
    pyro.sample("mo", dist.Normal(pyro.param("mu_loc", torch.tensor(0.0)), 1.0))
    pyro.sample("tau", dist.Normal(pyro.param("tau_loc", torch.tensor(2.0)), 0.1))
    loc = pyro.param("theta_loc", torch.zeros(8))
    pyro.sample("theta", dist.Normal(loc, 1.0).to_event(1))


def collapsed(y, sigma):
    """q(mu, tau) q(theta | mu, tau, y) with the last factor exact: the schools are conjugate."""
    loc = pyro.param("loc", torch.zeros(2))
    tril = pyro.param("tril", 0.5 * torch.eye(2), constraint=constraints.lower_cholesky)
    helps = {"is_auxiliary": True}  # of the guide alone: it draws two sites of the model together
    u = pyro.sample("u", dist.MultivariateNormal(loc, scale_tril=tril), infer=helps)
    mu = pyro.sample("mu", dist.Delta(u[..., 0]))
    tau = u[..., 1].exp()
    pyro.sample("tau", dist.Delta(tau, log_density=-u[..., 1]))  # du / dtau = 1 / tau
    with pyro.plate("schools", len(y)):
        precision = 1 / tau**2 + 1 / sigma**2
        mean = (mu / tau**2 + y / sigma**2) / precision
        pyro.sample("theta", dist.Normal(mean, precision.rsqrt()))


def main(steps: int = 2_000):
    """Print the advice on the first try and the table of fits; returns both."""
    advice = check(model, first_try, EFFECT, ERROR)
    print(advice, end="\n\n")
    print(check(model, collapsed, EFFECT, ERROR), end="\n\n")

    guides = {name: name for name in ("mean-field", "full-rank", "structured", "iaf")}
    table = fit_guides(model, (EFFECT, ERROR), {"new": collapsed, **guides}, steps=steps)
    print(table)
    return advice, table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2_000)
    main(**vars(parser.parse_args()))
