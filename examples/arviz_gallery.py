"""One DataTree of a fit in ArviZ's plots, unchanged.

    python examples/arviz_gallery.py --out arviz_gallery

Draws from the guide first; `--corrected` takes the importance-corrected posterior instead.
"""

import argparse
import warnings
from pathlib import Path

import arviz_plots
import arviz_stats
import pyro
import pyro.distributions as dist
import torch
from matplotlib import pyplot

from inference import diagnose, elbo, fit, make_guide, to_datatree

EFFECT = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])  # Rubin 1981
ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
COORDS = {"school": ["Choate", "Deerfield", "Phillips Andover", "Phillips Exeter", "Hotchkiss",
                     "Lawrenceville", "St. Paul's", "Mt. Hermon"]}  # fmt: skip


def model(y, sigma):
    """theta_j = mu + tau z_j, y_j ~ N(theta_j, sigma_j)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0))
        pyro.sample("y", dist.Normal(pyro.deterministic("theta", mu + tau * z), sigma), obs=y)


def main(steps: int = 2_000, out: str = "arviz_gallery", corrected: bool = False):
    """Fit, write each figure into the folder `out`; returns the tree."""
    run = fit(model, make_guide("full-rank", model), (EFFECT, ERROR), elbo=elbo.Trace(8),
              steps=steps, lr=0.02, schedule="cosine", progress=False)  # fmt: skip
    if corrected:
        verdict = diagnose(run, (EFFECT, ERROR), coords=COORDS)
        if verdict.corrected is None:
            raise SystemExit(str(verdict))
        tree = verdict.corrected
        loo = arviz_stats.loo(tree, pointwise=True)
    else:
        tree = to_datatree(run, (EFFECT, ERROR), draws=2_000, coords=COORDS)
        stats = tree.sample_stats
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Estimated shape parameter of Pareto")
            loo = arviz_stats.loo_approximate_posterior(tree, stats.log_p, stats.log_q, True)
    print(arviz_stats.summary(tree, var_names=["mu", "tau", "theta"], kind="stats"))
    print(loo)

    top = {"var_names": ["mu", "tau"]}
    plots = {
        "khat": lambda: arviz_plots.plot_khat(loo),
        "ppc_dist": lambda: arviz_plots.plot_ppc_dist(tree),
        "prior_posterior": lambda: arviz_plots.plot_prior_posterior(tree, var_names="mu"),
        "forest": lambda: arviz_plots.plot_forest(tree, var_names=["mu", "tau", "theta"]),
        "psense_dist": lambda: arviz_plots.plot_psense_dist(
            tree, **top, figure_kwargs={"figsize": (10, 8)}
        ),
        "loo_pit": lambda: arviz_plots.plot_loo_pit(tree),
    }
    Path(out).mkdir(parents=True, exist_ok=True)
    for name, plot in plots.items():
        plot().savefig(f"{out}/{name}.png", dpi=100)
        pyplot.close("all")
    return tree


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--out", default="arviz_gallery")
    parser.add_argument("--corrected", action="store_true")
    main(**vars(parser.parse_args()))
