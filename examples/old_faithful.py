"""One Gaussian mixture fitted three ways: EM, variational Bayes, SVI with exact enumeration.

ZOO_DATA=... python examples/old_faithful.py --components 6 --out old_faithful.png

Without ZOO_DATA, three synthetic clusters take the place of the geyser's eruptions.
"""

import argparse
import os

import torch

from zoo.data import load
from zoo.em import MixtureComparison, compare_mixtures, expectation_maximization
from zoo.mixture import GaussianMixture


def eruptions() -> tuple[torch.Tensor, tuple[str, str]]:
    """The data (N, 2) and what the columns are."""
    if os.environ.get("ZOO_DATA"):
        return load("old-faithful").all, ("eruption, minutes", "waiting, minutes")
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[2.0, 55.0], [4.3, 80.0], [3.4, 68.0]])
    group = torch.arange(3).repeat_interleave(torch.tensor([100, 150, 22]))
    noise = torch.randn(len(group), 2, generator=generator) * torch.tensor([0.3, 5.0])
    return centres[group] + noise, ("synthetic 1", "synthetic 2")


def main(
    components: int = 6, steps: int = 1_500, out: str = "old_faithful.png"
) -> MixtureComparison:
    """Fit two components by EM, at most `components` all three ways; draw `out`."""
    x, columns = eruptions()
    two = expectation_maximization(x, components=2)
    sizes = two.responsibilities.argmax(-1).bincount().tolist()
    print(f"EM, 2 components: log-likelihood {two.log_likelihood:.3f} nats, groups of {sizes}")

    pair = GaussianMixture(data_dim=2, components=components)
    found = compare_mixtures(x, pair, steps=steps)
    print(found)
    found.plot(columns).savefig(out, dpi=100)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--components", type=int, default=6)
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--out", default="old_faithful.png")
    main(**vars(parser.parse_args()))
