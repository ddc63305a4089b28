"""Arguments of estimators: defaults, the ends of their ranges, and what is claimed of the value."""

import math

import pytest

from inference import elbo
from inference.testing.toys import LinearGaussian

DEFAULTS = {
    "Trace(1)": elbo.Trace, "MeanField(1)": elbo.MeanField, "STL(1)": elbo.STL,
    "Enum(1)": elbo.Enum, "Beta(4.0, 1)": elbo.Beta, "Score(8)": elbo.Score,
    "IWAE(8)": elbo.IWAE, "MIWAE(4, 4)": elbo.MIWAE, "CIWAE(0.5, 8)": elbo.CIWAE,
    "Renyi(0.5, 8)": elbo.Renyi, "VIMCO(8)": elbo.VIMCO, "DReG(8)": elbo.DReG,
    "WakeSleep(8)": elbo.WakeSleep, "ForwardKL(8)": elbo.ForwardKL, "CUBO(2.0, 8)": elbo.CUBO,
    "ThermodynamicVI(8)": elbo.ThermodynamicVI,
}  # fmt: skip


@pytest.mark.parametrize("shown", DEFAULTS)
def test_defaults(shown):
    estimator = DEFAULTS[shown]()
    assert repr(estimator) == shown
    assert estimator.vectorized and estimator.vectorize_particles and estimator.step == 0
    assert estimator.num_particles == estimator.particles
    apart = DEFAULTS[shown](vectorized=False)
    assert not apart.vectorized and not apart.vectorize_particles
    assert repr(apart) == shown[:-1] + ", vectorized=False)"


def test_arguments_are_kept():
    assert repr(elbo.Beta(2.0, 3, warmup=10, cycles=2, free_bits=0.1)) == (
        "Beta(2.0, 3, warmup=10, cycles=2, free_bits=0.1)"
    )
    assert repr(elbo.Score(4, baseline=None)) == "Score(4, baseline=None)"
    assert repr(elbo.WakeSleep(4, sleep=0.5)) == "WakeSleep(4, sleep=0.5)"
    tvi = elbo.ThermodynamicVI(4, partitions=3, first=0.01)
    assert repr(tvi) == "ThermodynamicVI(4, partitions=3, first=0.01)"
    assert tvi.betas == pytest.approx([0.0, 0.01, 0.1, 1.0], rel=1e-12)  # even in log β
    assert elbo.ThermodynamicVI().betas == pytest.approx(
        [0.0, *(0.1 ** (1 - i / 4) for i in range(4)), 1.0], rel=1e-12
    )
    assert elbo.MIWAE(2, 3).particles == 6


@pytest.mark.parametrize(
    "make",
    [
        lambda: elbo.Beta(0.0), lambda: elbo.CIWAE(0.0), lambda: elbo.CIWAE(1.0),
        lambda: elbo.MIWAE(1, 1), lambda: elbo.Renyi(math.inf), lambda: elbo.VIMCO(2),
        lambda: elbo.WakeSleep(2, sleep=1.0), lambda: elbo.CUBO(1.001),
        lambda: elbo.ThermodynamicVI(2, partitions=1), lambda: elbo.Trace(1),
    ],
)  # fmt: skip
def test_the_ends_of_a_range_are_in_it(make):
    assert make().particles >= 1


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: elbo.Trace(0), "particles"),
        (lambda: elbo.Trace(1.0), "particles"),
        (lambda: elbo.Beta(-1e-9), "beta"),
        (lambda: elbo.Beta(1.0, cycles=1), "cycles"),
        (lambda: elbo.Beta(1.0, free_bits=-1e-9), "free_bits"),
        (lambda: elbo.Score(baseline="mean"), "'others', 'data', None"),
        (lambda: elbo.MIWAE(0, 1), "groups"),
        (lambda: elbo.MIWAE(1, 0), "per_group"),
        (lambda: elbo.CIWAE(-1e-9), "beta"),
        (lambda: elbo.CIWAE(1 + 1e-9), "beta"),
        (lambda: elbo.Renyi(math.nan), "alpha"),
        (lambda: elbo.VIMCO(1), "at least 2"),
        (lambda: elbo.WakeSleep(sleep=-1e-9), "sleep"),
        (lambda: elbo.WakeSleep(sleep=1 + 1e-9), "sleep"),
        (lambda: elbo.CUBO(1.0), "order"),
        (lambda: elbo.ThermodynamicVI(partitions=0), "partitions"),
        (lambda: elbo.ThermodynamicVI(first=0.0), "first"),
        (lambda: elbo.ThermodynamicVI(first=1.0), "first"),
    ],
)
def test_what_lies_outside_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_what_is_a_bound_and_what_the_gradient_follows():
    bounds = {
        elbo.Trace(): True, elbo.IWAE(): True, elbo.DReG(): True, elbo.Beta(1.0): True,
        elbo.Beta(0.5): False, elbo.Beta(1.0, free_bits=0.1): False,
        elbo.Renyi(0.0): True, elbo.Renyi(-0.1): False, elbo.WakeSleep(): True,
        elbo.ForwardKL(): False, elbo.CUBO(): False, elbo.ThermodynamicVI(): True,
    }  # fmt: skip
    assert {e: e.is_bound for e in bounds} == bounds
    follow = [elbo.Trace(), elbo.IWAE(), elbo.DReG(), elbo.VIMCO()]
    other = [elbo.WakeSleep(), elbo.ForwardKL(), elbo.CUBO(), elbo.ThermodynamicVI()]
    assert all(e.follows_bound for e in follow) and not any(e.follows_bound for e in other)


def test_a_loss_is_minus_the_bound_and_counts_its_gradients():
    toy = LinearGaussian(exact=True)
    x = toy.data()
    estimator = elbo.Trace(3)
    expected = -float(toy.log_px(x))  # every draw of an exact guide
    assert estimator.loss(toy.model, toy.guide, x) == pytest.approx(expected, rel=1e-12)
    assert estimator.step == 0
    loss = estimator.differentiable_loss(toy.model, toy.guide, x)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    for count in (1, 2):
        value = estimator.loss_and_grads(toy.model, toy.guide, x)
        assert value == pytest.approx(expected, rel=1e-12) and estimator.step == count
    with pytest.raises(NotImplementedError, match="work on log weights"):
        estimator._get_trace(toy.model, toy.guide, (x,), {})
