"""Codes judged by labels: a linear probe and nearest neighbours, beside PCA and the raw values."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from inference.estimate import Estimate

NEIGHBOURS = 10
WAYS = ("principal", "tsne", "umap")


def probe_accuracies(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
) -> dict[str, Estimate]:
    """Return the test accuracy of a logistic regression and of nearest neighbours on some columns.

    The columns are standardised on the training rows. The standard error is that over test rows.

    Args:
        train, test: (N, L) and (M, L); their labels (N,) and (M,).

    Source: Alain & Bengio 2017, "Understanding intermediate layers using linear classifier probes"
    (arXiv:1610.01644); k-nearest neighbours as in Wu et al. 2018 (arXiv:1805.01978, section 3.4),
    without weights.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    mean, sd = train.mean(0), train.std(0).clamp_min(1e-6)
    a, b = (((x - mean) / sd).double().numpy() for x in (train, test))
    y, expected = train_labels.numpy(), test_labels.numpy()
    kinds = {
        "linear": LogisticRegression(max_iter=300),
        "nearest neighbours": KNeighborsClassifier(min(NEIGHBOURS, len(a))),
    }
    found = {}
    for name, kind in kinds.items():
        right = float((kind.fit(a, y).predict(b) == expected).mean())
        found[name] = Estimate(right, math.sqrt(max(right * (1 - right), 1 / len(b)) / len(b)))
    return found


def compare_codes(
    codes: tuple[Tensor, Tensor], rows: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor]
) -> Mapping[str, dict[str, Estimate]]:
    """Probe codes, as many principal components of the data, and the data themselves.

    Args:
        codes, rows, labels: each of training and of test data.
    """
    mean = rows[0].mean(0)
    _, _, directions = torch.linalg.svd(rows[0] - mean, full_matrices=False)
    some = directions[: codes[0].shape[1]].mT
    principal = tuple((x - mean) @ some for x in rows)
    spaces = {"codes": codes, f"{some.shape[1]} principal components": principal,
              "raw values": rows}  # fmt: skip
    return {
        name: probe_accuracies(train, labels[0], test, labels[1])
        for name, (train, test) in spaces.items()
    }


def map_of(z: Tensor, way: str = "principal", seed: int = 0) -> tuple[Tensor, tuple[str, str]]:
    """Return codes (N, L) as points in the plane (N, 2), and the names of its axes.

    Args:
        way: "principal", the first two principal directions; "tsne" (van der Maaten & Hinton 2008,
            JMLR 9:2579), or "umap" (arXiv:1802.03426), where distances between far points mean
            nothing.

    Raises:
        ValueError: another way, fewer than five rows for t-SNE or UMAP, or UMAP is not installed.
    """
    if way not in WAYS:
        raise ValueError(f"--by: expected one of {', '.join(WAYS)}, got {way!r}.")
    if way == "principal":
        centred = (z - z.mean(0)).double()
        _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
        share = (spread**2 / (spread**2).sum()).tolist()
        points = (centred @ directions[:2].mT).float()
        first, second = (f"principal direction {i + 1} ({share[i]:.0%})" for i in (0, 1))
        return points, (first, second)
    if len(z) < 5:
        raise ValueError(f"--rows: {way} needs at least 5 rows, got {len(z)}.")
    if way == "tsne":
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(z) - 1) / 3)
        made = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(z.numpy())
        return torch.from_numpy(made), ("t-SNE 1 (no unit)", "t-SNE 2 (no unit)")
    try:
        from umap import UMAP
    except ImportError as error:
        raise ValueError("--by umap needs the package umap-learn: pip install umap-learn, or take "
                         "--by tsne.") from error  # fmt: skip
    made = UMAP(random_state=seed).fit_transform(z.numpy())
    return torch.from_numpy(made), ("UMAP 1 (no unit)", "UMAP 2 (no unit)")
