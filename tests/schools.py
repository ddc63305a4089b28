"""Eight schools (Rubin 1981), centred and not, and its reference posterior."""

import json
import zipfile

import numpy as np
import pyro
import pyro.distributions as dist
import torch

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
NAMES = list("ABCDEFGH")


def centred(y, sigma):
    """y_j ~ N(theta_j, sigma_j), theta_j ~ N(mu, tau), mu ~ N(0, 5), tau ~ Cauchy+(0, 5)."""
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def non_centred(y, sigma):
    """The same, with theta = mu + tau z, z ~ N(0, 1)."""
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("school", len(sigma)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(sigma), 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def centred_mean_field(y, sigma):
    """Normals for mu and theta, a log-normal for tau, from where 8,000 steps of Adam end."""
    loc = [7.13, 5.15, 3.5, 4.82, 2.82, 3.62, 7.51, 4.95]
    scale = [5.2, 4.86, 5.25, 4.97, 4.74, 4.96, 4.86, 5.3]

    def parameter(name, value, **options):
        return pyro.param(name, lambda: y.new_tensor(value), **options)

    positive = {"constraint": dist.constraints.positive}
    mu = dist.Normal(parameter("mu_loc", 4.28), parameter("mu_scale", 1.83, **positive))
    tau = dist.LogNormal(parameter("tau_loc", 1.77), parameter("tau_scale", 0.24, **positive))
    pyro.sample("mu", mu)
    pyro.sample("tau", tau)
    with pyro.plate("school", len(sigma)):
        theta = dist.Normal(parameter("loc", loc), parameter("scale", scale, **positive))
        pyro.sample("theta", theta)


def reference(folder):
    """10,000 reference draws: name -> array (draws,) or (draws, 8)."""
    path = (
        folder / "posteriordb/posterior_database/reference_posteriors/draws/draws"
        / "eight_schools-eight_schools_noncentered.json.zip"
    )  # fmt: skip
    with zipfile.ZipFile(path) as archive:
        drawn = json.loads(archive.read(archive.namelist()[0]))
    flat = {k: np.concatenate([c[k] for c in drawn]) for k in drawn[0]}
    theta = np.stack([flat[f"theta[{j}]"] for j in range(1, 9)], -1)
    return {"mu": flat["mu"], "tau": flat["tau"], "theta": theta}
