"""Nine posteriors of posteriordb, written plainly in Pyro, with their reference draws."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints


def flat(name, support=constraints.real, shape=()):
    """A parameter without a prior."""
    return pyro.sample(name, dist.ImproperUniform(support, (), torch.Size(shape)))


def kidiq(kid_score, mom_hs, mom_iq):
    b1, b2, b3, b4 = (flat(f"beta[{i}]") for i in range(1, 5))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("data", len(kid_score)):
        mean = b1 + b2 * mom_hs + b3 * mom_iq + b4 * mom_hs * mom_iq
        pyro.sample("kid_score", dist.Normal(mean, sigma), obs=kid_score)


def autoregression(y, lags):
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    betas = [pyro.sample(f"beta[{k + 1}]", dist.Normal(0.0, 10.0)) for k in range(lags)]
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    n = len(y) - lags
    with pyro.plate("time", n):
        mean = alpha
        for k, beta in enumerate(betas, 1):
            mean = mean + beta * y[lags - k : lags - k + n]
        pyro.sample("y", dist.Normal(mean, sigma), obs=y[lags:])


def gauss_mix(y):
    ordered = constraints.ordered_vector
    mu = flat("mu", ordered, (2,))
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    sigma1 = pyro.sample("sigma[1]", dist.HalfNormal(2.0))
    sigma2 = pyro.sample("sigma[2]", dist.HalfNormal(2.0))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = torch.stack([theta, 1 - theta], -1)
    parts = dist.Normal(mu, torch.stack([sigma1, sigma2], -1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=y)


def kilpisjarvi(y, x, pmualpha, psalpha, pmubeta, psbeta):
    alpha = pyro.sample("alpha", dist.Normal(pmualpha, psalpha))
    beta = pyro.sample("beta", dist.Normal(pmubeta, psbeta))
    sigma = flat("sigma", constraints.positive)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def nes(y, x):
    betas = [flat(f"beta[{i + 1}]") for i in range(x.shape[1])]
    sigma = flat("sigma", constraints.positive)
    with pyro.plate("data", len(y)):
        mean = sum(b * x[:, i] for i, b in enumerate(betas))
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def gp_regression(x, y):
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    apart = (x[:, None] - x).square()
    rho, alpha, noise = (v[..., None, None] for v in (rho, alpha, sigma))
    cov = alpha**2 * torch.exp(-0.5 * apart / rho**2) + noise * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), cov), obs=y)


def arma11(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    error = y[0] - (mu + phi * mu)
    errors = [error]
    for t in range(1, len(y)):
        error = y[t] - (mu + phi * y[t - 1] + theta * error)
        errors.append(error)
    errors = torch.stack(errors, -1)
    pyro.factor("y", dist.Normal(0.0, sigma[..., None]).log_prob(errors).sum(-1))


def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * z)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def _nes_columns(d):
    age = d["age_discrete"]
    columns = [np.ones_like(d["real_ideo"]), d["real_ideo"], d["race_adj"],
               *(age == a for a in (2, 3, 4)), d["educ1"], d["gender"], d["income"]]  # fmt: skip
    return d["partyid7"], np.stack(columns, -1).astype(float)


def _earnings_columns(d):
    male = d["male"] if "male" in d else 1 - d["sex1"]
    height = np.log(d["height"])
    return np.log(d["earn"]), np.stack([np.ones_like(height), height, male], -1)


POSTERIORS = {
    "kidiq-kidscore_interaction": (kidiq, lambda d: (d["kid_score"], d["mom_hs"], d["mom_iq"])),
    "arK-arK": (autoregression, lambda d: (d["y"], int(d["K"]))),
    "low_dim_gauss_mix-low_dim_gauss_mix": (gauss_mix, lambda d: (d["y"],)),
    "kilpisjarvi_mod-kilpisjarvi": (
        kilpisjarvi,
        lambda d: (d["y"], d["x"], *(float(d[k]) for k in
                   ("pmualpha", "psalpha", "pmubeta", "psbeta"))),
    ),
    "nes2000-nes": (nes, _nes_columns),
    "earnings-logearn_logheight_male": (nes, _earnings_columns),
    "gp_pois_regr-gp_regr": (gp_regression, lambda d: (d["x"], d["y"])),
    "arma-arma11": (arma11, lambda d: (d["y"],)),
    "eight_schools-eight_schools_noncentered": (schools, lambda d: (d["y"], d["sigma"])),
}  # fmt: skip
NAMES = list(POSTERIORS)


def _archive(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def load(name):
    """The model, its arguments, and the reference draws: name -> (10,000,)."""
    root = Path(os.environ["ZOO_DATA"]) / "posteriordb/posterior_database"
    about = json.loads((root / "posteriors" / f"{name}.json").read_text())
    raw = _archive(root / "data/data" / f"{about['data_name']}.json.zip")
    data = {k: np.asarray(v, float) if isinstance(v, list) else v for k, v in raw.items()}
    model, arguments = POSTERIORS[name]
    args = tuple(
        torch.tensor(a, dtype=torch.get_default_dtype()) if isinstance(a, np.ndarray) else a
        for a in arguments(data)
    )
    drawn = _archive(
        root / "reference_posteriors/draws/draws" / f"{about['reference_posterior_name']}.json.zip"
    )
    return model, args, {k: np.concatenate([c[k] for c in drawn]) for k in drawn[0]}
