"""Sample quality: draws beside held-out data, in a feature space that is named.

Every number compares equally many draws and held-out rows, of which the model has seen none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.estimate import Estimate
from inference.randomness import forked

NEIGHBOURS, FOLDS, BLOCKS = 5, 5, 10
DIMENSIONS = 32  # of the features, at most
ROWS = 2_000  # of each sample, at most


@dataclass(frozen=True)
class Quality:
    """The distance of draws from held-out data, by several measures.

    Attributes:
        features: the space in which distances are taken, in words.
        precision, recall, density, coverage: of k-nearest-neighbour balls (`neighbourhoods`).
        kernel: the squared kernel distance, with its standard error over blocks.
        accuracy: classifier -> its accuracy in telling the two apart, with its error over folds.
        memory: the median distance of draws to their nearest training row, over that of held-out
            data: much below 1 is memorising.
        nearest: (n, D), the training rows nearest to the draws.
        draws: (n, D).
    """

    features: str
    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    kernel: Estimate
    accuracy: dict[str, Estimate]
    memory: float
    nearest: Tensor
    draws: Tensor


def quality(held_out: Tensor, draws: Tensor, train: Tensor, seed: int = 0) -> Quality:
    """Compare draws with held-out data.

    Args:
        held_out, draws: (N, D) and (M, D), of which equally many are taken.
        train: what the model was fitted to; features are its principal directions.
        seed: of folds and classifiers.

    Raises:
        ValueError: fewer than 50 rows.
    """
    n = min(len(held_out), len(draws), ROWS)
    if n < 50:
        raise ValueError(f"quality: expected at least 50 held-out rows and draws, got {n}.")
    with forked(seed):
        rows = torch.randperm(len(train))[: 10 * ROWS]
    train = train[rows]
    project, words = _features(train)
    p, q, seen = project(held_out[:n]), project(draws[:n]), project(train)
    to_train = torch.cdist(q, seen).min(1)
    memory = to_train.values.median() / torch.cdist(p, seen).min(1).values.median()
    return Quality(
        words, *neighbourhoods(p, q), kernel_distance(p, q), two_sample(p, q, seed), float(memory),
        train[to_train.indices], draws[:n],
    )  # fmt: skip


def _features(train: Tensor) -> tuple:
    """A projection onto the data's principal directions, and its name."""
    d = train.shape[1]
    if d <= 2:
        return (lambda x: x), "the columns themselves"
    mean = train.mean(0)
    _, spread, directions = torch.linalg.svd(train - mean, full_matrices=False)
    k = min(DIMENSIONS, d, int((spread > 1e-6 * spread[0]).sum()))
    share = float((spread[:k] ** 2).sum() / (spread**2).sum())
    return (lambda x: (x - mean) @ directions[:k].mT), (
        f"the first {k} principal directions of the training data, {share:.0%} of their variance"
    )


def neighbourhoods(
    real: Tensor, fake: Tensor, k: int = NEIGHBOURS
) -> tuple[Estimate, Estimate, Estimate, Estimate]:
    """Precision, recall, density and coverage of draws (M, d) beside data (N, d).

    A ball reaches from a point to the k-th nearest other of its sample. Precision is the share of
    draws inside a ball of the data, recall that of data inside a ball of draws; density counts the
    balls that a draw is in, over k, and coverage the share of data whose ball holds a draw. Of one
    distribution, density is 1 in the mean and coverage 1 − Π_i (N − i) / (M + N − i), i = 1 .. k.
    Standard errors take the points of the one sample as independent, the balls as given.

    Source: Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models"
    (arXiv:2002.09797, eqs. 3 to 6); Kynkäänniemi et al. 2019 (arXiv:1904.06991).
    """
    across = torch.cdist(real, fake)
    of_real = torch.cdist(real, real).kthvalue(k + 1, 1).values[:, None]  # itself is the first
    of_fake = torch.cdist(fake, fake).kthvalue(k + 1, 1).values[None, :]
    inside = across < of_real  # (N, M)
    found = inside.any(0), (across < of_fake).any(1), inside.sum(0) / k, inside.any(1)
    precision, recall, density, coverage = (Estimate.of(v.double()) for v in found)
    return precision, recall, density, coverage


def kernel_distance(p: Tensor, q: Tensor, blocks: int = BLOCKS) -> Estimate:
    """Return the squared distance of two samples (n, d) by the kernel (x · y / d + 1)³, unbiased.

    The mean over `blocks` parts of both samples, with its standard error; zero in the mean for one
    distribution, and then as often negative. In units of the features, scaled to variance 1.

    Source: Bińkowski et al. 2018, "Demystifying MMD GANs" (arXiv:1801.01401, section 4).
    """
    scale = p.var(0).mean().sqrt()
    parts = []
    for x, y in zip((p / scale).double().chunk(blocks), (q / scale).double().chunk(blocks)):
        n, m = len(x), len(y)
        xx, yy, xy = (((a @ b.mT) / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
        parts.append(within - 2 * xy.mean())
    return Estimate.of(torch.stack(parts))


def two_sample(p: Tensor, q: Tensor, seed: int = 0) -> dict[str, Estimate]:
    """Return the accuracy of classifiers that tell p from q, each row judged by a fit without it.

    One half where the samples are of one distribution; the standard error is that over rows, or
    over folds where it is larger.

    Source: Lopez-Paz & Oquab 2017, "Revisiting classifier two-sample tests" (arXiv:1610.06545).
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = torch.cat([p, q]).double().numpy()
    y = torch.cat([torch.ones(len(p)), torch.zeros(len(q))]).long().numpy()
    kinds = {
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000)),
        "nearest neighbours": make_pipeline(StandardScaler(), KNeighborsClassifier(15)),
        "boosted trees": HistGradientBoostingClassifier(max_iter=30, random_state=seed),
    }
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y))
    found = {}
    for name, classifier in kinds.items():
        right = [classifier.fit(x[a], y[a]).predict(x[b]) == y[b] for a, b in folds]
        by_fold = torch.tensor([float(r.mean()) for r in right])
        mean = float(by_fold.mean())
        binomial = math.sqrt(max(mean * (1 - mean), 1 / len(x)) / len(x))
        found[name] = Estimate(mean, max(binomial, float(by_fold.std()) / math.sqrt(FOLDS)))
    return found
