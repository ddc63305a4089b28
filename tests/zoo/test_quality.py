"""Sample quality on samples whose answer is known."""

import math

import pytest
import torch

from zoo.report.quality import kernel_distance, neighbourhoods, quality, two_sample


def test_one_distribution_has_density_one_and_the_paper_s_coverage():
    n, m, k = 300, 200, 5
    expected = 1 - math.prod((n - i) / (m + n - i) for i in range(1, k + 1))
    found = torch.tensor([
        [e.value for e in neighbourhoods(torch.randn(n, 3), torch.randn(m, 3), k)]
        for _ in range(40)
    ])  # fmt: skip
    se = found.std(0) / math.sqrt(40)
    assert abs(found[:, 2].mean() - 1) < 4 * se[2]
    assert abs(found[:, 3].mean() - expected) < 4 * se[3]


def test_copies_are_precise_and_far_draws_are_not():
    x = torch.randn(200, 4)
    assert all(e.value == 1 for e in neighbourhoods(x, x.clone())[:2])
    assert [e.value for e in neighbourhoods(x, x + 100)] == [0, 0, 0, 0]


def test_a_lost_mode_is_a_lack_of_recall_and_coverage():
    modes = torch.arange(400) % 2
    real = torch.randn(400, 2) + 20 * modes[:, None]
    precision, recall, _, coverage = neighbourhoods(real, torch.randn(400, 2))
    assert precision.value > 0.9 and recall.value < 0.51 and coverage.value < 0.51


def test_the_kernel_distance_of_one_distribution_is_zero_in_the_mean():
    distance = kernel_distance(torch.randn(2_000, 5), torch.randn(2_000, 5))
    assert abs(distance.value) < 4 * distance.se
    apart = kernel_distance(torch.randn(2_000, 5), torch.randn(2_000, 5) + 0.5)
    assert apart.value > 4 * apart.se


def test_classifiers_reach_the_bayes_accuracy_of_two_normals():
    same = two_sample(torch.randn(400, 2), torch.randn(400, 2))
    assert len(same) == 3
    for e in same.values():
        assert abs(e.value - 0.5) < 4 * e.se
    shift = torch.tensor([2.0, 0.0])
    bayes = float(torch.special.ndtr(torch.tensor(1.0)))
    e = two_sample(torch.randn(400, 2), torch.randn(400, 2) + shift)["logistic"]
    assert abs(e.value - bayes) < 4 * e.se


def test_memorised_draws_are_near_their_training_rows():
    train, test = torch.randn(500, 20), torch.randn(200, 20)
    found = quality(test, train[:200] + 1e-3, train)
    assert found.memory < 0.01 and torch.equal(found.nearest, train[:200])
    assert "principal directions" in found.features
    assert 0.8 < quality(test, torch.randn(200, 20), train).memory < 1.25
    with pytest.raises(ValueError, match="at least 50"):
        quality(test[:20], test, train)
