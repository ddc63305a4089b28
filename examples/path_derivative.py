"""Sticking the landing: no gradient noise at the exact posterior, and where it must not be used.

Left: the variance of the guide's gradient against its distance from the posterior. The score
function of the total derivative has mean zero but not variance zero; path derivatives drop it
(`STL`; Roeder et al. 2017, arXiv:1703.09194) or turn it into another path derivative (`DReG`;
Tucker et al. 2019, arXiv:1810.04152), so both are exactly zero where log w is constant.
Right: dropping the score function from IWAE is biased for K > 1 (Tucker et al., section 3); DReG
is not. The bias is told by `compare` against the gradient of the estimator's own bound.

python examples/path_derivative.py --out path.png
"""

import argparse

import torch
from matplotlib.figure import Figure

from inference import compare, elbo
from inference.testing.toys import LinearGaussian


class StickingIWAE(elbo.IWAE):
    """IWAE whose gradient leaves the guide's score function out: what DReG mends."""

    def surrogate(self, weights):
        """Weights held fixed, and the guide's parameters too, but for the path through z."""
        w = torch.softmax(weights.log_weight(), 0).detach()
        return weights.total((w * (weights.log_weight() + weights.fixed().log_q())).sum(0))


def at(distance):
    """The linear-Gaussian pair with its guide so far from the posterior."""
    return type("Apart", (LinearGaussian,), {"distance": distance})()


def main(out="path.png", distances=(0.0, 0.1, 0.2, 0.3, 0.4), particles=(1, 2, 4, 8, 16),
         draws=20_000):  # fmt: skip
    """Measure and draw; returns (variance by estimator, bias in standard errors by estimator)."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    noise: dict[str, list[float]] = {}
    for d in distances:
        pair = at(d)
        listed = [elbo.Trace(), elbo.STL(), elbo.IWAE(8), elbo.DReG(8)]
        found = compare(pair, pair.data(), listed, draws=draws, compile=False).sel(group="guide")
        for name, variance in zip(found.estimator.values, found.variance.values):
            noise.setdefault(str(name), []).append(float(variance))
    for name, values in noise.items():
        left.plot(distances, values, marker="o", label=name)
    left.set(xlabel="distance of the guide from the posterior", ylim=(0, None),
             ylabel="variance of the guide's gradient")  # fmt: skip
    left.legend()

    pair, sigmas = at(0.4), {}
    for kind in (StickingIWAE, elbo.DReG):
        listed = [kind(k) for k in particles]
        found = compare(pair, pair.data(), listed, draws=draws, compile=False).sel(group="guide")
        bias, se = found.gradient_bias.values, found.gradient_bias_se.values
        sigmas[kind.__name__] = [float(b / s) if s else 0.0 for b, s in zip(bias, se)]
        label = {"StickingIWAE": "IWAE without the score", "DReG": "DReG"}[kind.__name__]
        right.errorbar(particles, bias, yerr=3 * se, marker="o", capsize=3, label=label)
    right.axhline(0, color="black", lw=0.8)
    right.set(xscale="log", xlabel="particles K", ylabel="bias of the guide's gradient, ± 3 SE")
    right.set_xticks(particles, [str(k) for k in particles])
    right.minorticks_off()
    right.legend()
    figure.savefig(out, dpi=120)
    return noise, sigmas


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="path.png")
    noise, sigmas = main(**vars(parser.parse_args()))
    for name, values in noise.items():
        print(f"{name:8} variance {', '.join(f'{v:.3g}' for v in values)}")
    for name, values in sigmas.items():
        print(f"{name:12} bias in standard errors {', '.join(f'{v:.1f}' for v in values)}")
