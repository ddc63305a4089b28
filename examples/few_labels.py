"""A few labels and many images: M2 (arXiv:1406.5298), and its test error over seeds.

ZOO_DATA=... python examples/few_labels.py --data mnist --labels 100 --seeds 3 --out few.png
"""

import argparse
import dataclasses

import torch
from matplotlib.figure import Figure
from torchvision.utils import make_grid

from inference import elbo, fit
from zoo.data import hide_labels, load
from zoo.networks import ConvEncoder
from zoo.semisupervised import SemiSupervisedVAE


def main(
    data: str = "digits",
    labels: int = 100,
    seeds: int = 1,
    rows: int = 50_000,
    steps: int = 1_500,
    hidden: int = 100,
    out: str = "few_labels.png",
):
    """Fit, print test errors, write draws of each label to `out`; returns the errors, in %.

    Args:
        rows: training images in all; a step runs each of its rows once for every label.
    """
    images = load(data, pixels="dynamic")
    fewer = {"train": images.train[:rows], "train_labels": images.train_labels[:rows]}
    images = dataclasses.replace(images, **fewer)
    errors = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        some = hide_labels(images, labels, seed)
        few = {"valid": some.valid[:1_000], "valid_labels": some.valid_labels[:1_000]}
        some = dataclasses.replace(some, **few)  # each row is run once for every label
        m2 = SemiSupervisedVAE(
            images.data_dim,
            latent_dim=16,
            hidden=(hidden,),
            # 30 of the paper's: with less the classifier gives in to its prior, all labels alike,
            # before the decoder has learned what a label is
            alpha=3.0 * len(images.train) / labels,
            classifier=ConvEncoder(images.image_shape, 10, act="relu"),
            act="relu",
        )
        run = fit(m2, some, elbo=elbo.Enum(), steps=steps, batch_size=100, lr=2e-3, seed=seed,
                  schedule="cosine")  # fmt: skip
        pair = run.pair.cpu()
        q = torch.cat([pair.classify(x) for x in images.test.split(1_000)])
        errors.append(100 * float((q.argmax(-1) != images.test_labels).double().mean()))
        print(f"{data}, {labels:,} labels, seed {seed}: test error {errors[-1]:.2f} %, "
              f"{run.seconds:.0f} s", flush=True)  # fmt: skip
    found = torch.tensor(errors)
    spread = f" ± {found.std() / len(errors) ** 0.5:.2f}" if len(errors) > 1 else ""
    print(f"mean over {len(errors)} seeds: {found.mean():.2f}{spread} %")

    z = torch.randn(10, 16)  # ten styles, each with every label
    rows = torch.cat([pair.decode(z, y) for y in range(10)])
    figure = Figure(figsize=(6, 6.4), layout="tight")
    axes = figure.subplots()
    axes.imshow(make_grid(rows.reshape(-1, *images.image_shape), 10, 1, pad_value=1)[0], "gray")
    axes.set_title(f"mean images: a row is one label, a column one style\n{labels:,} labels")
    axes.set_axis_off()
    figure.savefig(out, dpi=100)
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=50_000, help="training images, with or without")
    parser.add_argument("--steps", type=int, default=1_500)
    parser.add_argument("--hidden", type=int, default=100)
    parser.add_argument("--out", default="few_labels.png")
    main(**vars(parser.parse_args()))
