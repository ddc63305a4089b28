"""Is a guide right on average? 500 simulated data sets of eight schools, a fit to each.

python examples/calibration.py --datasets 500 --guide mean-field --out calibration.png
"""

import argparse

import pyro
import pyro.distributions as dist
import torch

from inference import calibrate, elbo, make_guide

ERROR = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])  # Rubin 1981


def model(y, sigma):
    """theta_j = mu + tau z_j, y_j ~ N(theta_j, sigma_j)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(y), 1.0))
        pyro.sample("y", dist.Normal(pyro.deterministic("theta", mu + tau * z), sigma), obs=y)


def main(
    datasets: int = 500, guide: str = "mean-field", steps: int = 1_000, out: str = "calibration.png"
):
    """Print the verdict, draw coverage (`out`) and ranks (`out` with `-ranks`); returns it."""
    options = {"lr": 0.05, "elbo": elbo.Trace(4), "schedule": "cosine"}
    y = torch.zeros(8)  # only its shape counts: data are drawn from the model
    result = calibrate(
        model, make_guide(guide, model), y, ERROR, datasets=datasets, steps=steps, **options
    )
    print(result)
    print(f"{result.seconds:.0f} s for {datasets} fits of {steps} steps")
    figures = result.figures()
    figures["coverage"].savefig(out, dpi=100)
    figures["ecdf"].savefig(out.replace(".png", "-ranks.png"), dpi=100)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=int, default=500)
    parser.add_argument("--guide", default="mean-field")
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--out", default="calibration.png")
    main(**vars(parser.parse_args()))
