"""One layer of latents or two: a VAE, a Markov hierarchy and a ladder on the digits.

python examples/hierarchy_digits.py --steps 5000 --out hierarchy.png
"""

import argparse

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from inference import evaluate, fit
from zoo.data import load
from zoo.hierarchical import HierarchicalVAE, LadderVAE


def main(
    data: str = "digits", steps: int = 5_000, out: str = "hierarchy.png", particles: int = 500
):
    """Fit all three under one budget, judge on test digits, draw `out`; returns the evaluations."""
    torch.manual_seed(0)
    images = load(data, pixels="dynamic")
    d = images.data_dim
    pairs = {
        "one layer": HierarchicalVAE(d, (16,), ((200,),)),
        "Markov": HierarchicalVAE(d, (16, 8), ((200,), (100,))),
        "ladder": LadderVAE(d, (16, 8), ((200,), (100,))),
    }
    runs, judged = {}, {}
    for name, pair in pairs.items():
        runs[name] = fit(pair, images, steps=steps, schedule="cosine", lr=2e-3)
        judged[name] = evaluate(runs[name], images.test, particles=particles)
        print(f"{name}\n{judged[name]}\n")

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    curves, layers, samples = figure.subplots(1, 3)
    for run, (name, result) in zip(runs.values(), judged.items()):
        line = run.history["valid_elbo"]
        seen = line == line  # a row without validation holds NaN
        curves.plot(run.history["step"][seen], line[seen], label=name)
        start = 0.0
        for layer, color in zip(sorted(result.kl), ("lightsteelblue", "wheat")):
            layers.bar(name, result.kl[layer], bottom=start, color=color)
            start += result.kl[layer]
        words = "\n".join(f"{layer}: {kl:.1f}" for layer, kl in sorted(result.kl.items())[::-1])
        layers.text(name, 0.1, words, ha="center", va="bottom")
    curves.set(title="ELBO on held-out digits", xlabel="step", ylabel="nats per datum")
    curves.legend()
    layers.set(title="KL of each layer, test digits", ylabel="nats per datum")
    pair = runs["Markov"].pair.cpu()
    grid = make_grid(pair.sample(36).reshape(-1, *images.image_shape), nrow=6, pad_value=1)[0]
    samples.imshow(grid.numpy(), cmap="gray")
    samples.set_title("draws from two layers")
    samples.set_axis_off()
    figure.savefig(out, dpi=100)
    return judged


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--out", default="hierarchy.png")
    parser.add_argument("--particles", type=int, default=500)
    main(**vars(parser.parse_args()))
