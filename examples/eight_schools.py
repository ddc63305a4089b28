"""Eight schools, centred and not, mean-field, full-rank and a flow: which can be trusted?

python examples/eight_schools.py --steps 4000 --guides mean-field full-rank iaf --seed 0
"""

import argparse
from collections.abc import Sequence

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure

from inference import diagnose, elbo, fit_many, make_guide

EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])  # Rubin 1981
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
THETA = [6.15, 4.94, 3.91, 4.80, 3.61, 4.05, 6.32, 4.88]
THETA_SD = [5.62, 4.65, 5.28, 4.77, 4.61, 4.80, 5.00, 5.32]  # posteriordb's reference draws
REFERENCE = {"mu": (4.41, 3.31), "tau": (3.60, 3.20), "theta": (THETA, THETA_SD)}


def centred(y, sigma):
    """theta_j ~ N(mu, tau), y_j ~ N(theta_j, sigma_j)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def non_centred(y, sigma):
    """The same with theta_j = mu + tau z_j, z_j ~ N(0, 1)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0))
        pyro.sample("y", dist.Normal(pyro.deterministic("theta", mu + tau * z), sigma), obs=y)


def errors(tree):
    """The worst error of a mean, in reference sds, and of an sd."""
    means, sds = [], []
    for name, (mean, sd) in REFERENCE.items():
        draws = tree.posterior[name].stack(sample=("chain", "draw"))
        means.append(np.abs((draws.mean("sample").values - mean) / np.array(sd)).max())
        sds.append(100 * np.abs(draws.std("sample").values / np.array(sd) - 1).max())
    return f"{max(means):.2f} / {max(sds):3.0f} %"


def main(
    steps: int = 4_000,
    guides: Sequence[str] = ("mean-field", "full-rank", "iaf"),
    seed: int = 0,
    out: str = "eight_schools.png",
):
    """Print the table, draw log tau of each guide; returns the diagnoses by name."""
    figure, found = Figure(figsize=(3 * len(guides), 5), layout="constrained"), {}
    axes = iter(figure.subplots(2, len(guides), sharex=True, squeeze=False).ravel())
    print(f"{'':25} {'k-hat':>5}  {'guide':>14}  {'corrected':>14}  verdict")
    for model in (centred, non_centred):
        for kind in guides:
            lr = 0.005 if kind == "iaf" else 0.02
            fits = fit_many(model, make_guide(kind, model), (EFFECT, ERROR), fits=4, steps=steps,
                            elbo=elbo.Trace(16), lr=lr, schedule="cosine", seed=seed)  # fmt: skip
            d = diagnose(fits, (EFFECT, ERROR), draws=20_000, seed=seed)
            found[f"{model.__name__} {kind}"] = d
            after = errors(d.corrected) if d.corrected else "-"
            print(f"{model.__name__:12} {kind:12} {d['importance weights'].numbers['khat']:5.2f}  "
                  f"{errors(d.datatree):>14}  {after:>14}  {d.verdict}", flush=True)  # fmt: skip
            panel = next(axes)
            for tree, name in ((d.datatree, "guide"), (d.corrected, "corrected")):
                if tree is not None:
                    log_tau = np.log(tree.posterior.tau.values.ravel())
                    panel.hist(log_tau, np.linspace(-4, 4, 80), histtype="step", label=name)
            panel.set(title=f"{model.__name__} {kind}", xlabel="log tau", yticks=[])
            panel.legend(frameon=False, fontsize=7)
    print(f"\n{next(iter(found.values()))}")
    figure.savefig(out, dpi=100)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--guides", nargs="+", default=["mean-field", "full-rank", "iaf"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="eight_schools.png")
    main(**vars(parser.parse_args()))
