"""Two flows learn a density on the plane: Real NVP and a neural spline flow.

python examples/flow_moons.py --data moons --steps 3000 --out moons.png
"""

import argparse

import torch
from matplotlib.figure import Figure

from inference import fit
from zoo.data import load
from zoo.flows import NeuralSplineFlow, RealNVP


def main(data: str = "moons", steps: int = 2_000, out: str = "flow.png"):
    """Fit both by exact likelihood, write density and draws to `out`; returns the runs."""
    torch.manual_seed(0)
    points = load(data)
    flows = {
        "Real NVP": RealNVP(2, layers=8),
        "neural spline flow": NeuralSplineFlow(2, layers=3),
    }
    side = torch.linspace(-4.5, 4.5, 200)
    grid = torch.cartesian_prod(side, side)
    figure = Figure(figsize=(8, 8), layout="tight")
    panels = figure.subplots(2, 2)
    runs = []
    for name, flow, (left, right) in zip(flows, flows.values(), panels):
        run = fit(flow, points, steps=steps, lr=2e-3, batch_size=256, schedule="cosine")
        runs.append(run)
        pair = run.pair.cpu()
        with torch.no_grad():
            nats = pair.log_prob(points.test)
            density = pair.log_prob(grid).exp().reshape(200, 200)
            draws = pair.sample(1_000)
        error = nats.std() / len(nats) ** 0.5
        mass = density.sum() * (side[1] - side[0]) ** 2
        print(f"{name}: test log p(x) {nats.mean():.3f} ± {error:.3f} nats, mass {mass:.4f}")
        left.set_title(f"{name}: density")
        left.imshow(density.T.numpy(), origin="lower", extent=(-4.5, 4.5, -4.5, 4.5), cmap="magma")
        right.set_title(f"draws; test log p(x) {nats.mean():.2f} ± {error:.2f} nats")
        right.scatter(*points.test.T.numpy(), s=3, color="silver", label="held-out data")
        right.scatter(*draws.T.numpy(), s=3, color="tab:red", label="draws")
        right.set(xlim=(-4.5, 4.5), ylim=(-4.5, 4.5), aspect="equal")
    panels[0, 1].legend(loc="upper right")
    figure.savefig(out, dpi=100)
    return runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="moons")
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--out", default="flow.png")
    main(**vars(parser.parse_args()))
