"""Draws with named axes, and models that draw what they observe, against values set by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference.weights import log_weights, no_validation, plate_nesting, simulate

X = torch.tensor([[0.3, -1.0], [0.7, 0.2], [-0.4, 1.5]]).double()  # (outer 3, inner 2)


def model(x):
    """A global w, a vector u for each row, z and x in both plates, a sum that is only recorded."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("outer", len(x), dim=-2):
        u = pyro.sample("u", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
        with pyro.plate("inner", x.shape[-1], dim=-1):
            z = pyro.sample("z", dist.Normal(w + u.sum(-1), 1e-9))
            pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(z, 1e-9), obs=x)
    pyro.factor("penalty", -w.square())


def guide(x):
    pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("outer", len(x), dim=-2):
        pyro.sample("u", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
        with pyro.plate("inner", x.shape[-1], dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))


@pytest.mark.parametrize("particles", [1, 5])
def test_observations_are_drawn_and_the_latents_given_are_kept(particles):
    lead = (particles,) if particles > 1 else ()
    given = torch.arange(6.0 * particles).reshape(*lead, 3, 2).double()
    terms, observed = simulate(model, X, values={"z": given}, particles=particles, nesting=2)
    assert list(observed) == ["x"] and observed["x"] is X
    # x is drawn about z with a standard deviation of 1e-9, of which 12 is beyond any draw
    assert torch.allclose(terms["x"].value, given, rtol=0, atol=12e-9)
    assert torch.equal(terms["twice"].value, 2 * given)
    drawn, _ = simulate(model, X, particles=particles, nesting=2)
    center = drawn["w"].value + drawn["u"].value.sum(-1)
    assert torch.allclose(drawn["z"].value, center.expand_as(drawn["z"].value), rtol=0, atol=12e-9)
    assert not torch.equal(drawn["w"].value, terms["w"].value)


@pytest.mark.parametrize("particles", [1, 5])
def test_axes_are_named(particles):
    """One axis per plate that a site is in, outermost first; event axes have no name."""
    terms, _ = simulate(model, X, particles=particles, nesting=2)
    k = particles
    shapes = {n: (*map(tuple, (v.shape, a)),) for n, (v, a) in (
        (n, t.values(particles, 2)) for n, t in terms.items()
    )}  # fmt: skip
    assert shapes["w"] == ((k,), ())
    assert shapes["u"] == ((k, 3, 4), ("outer", None))
    assert shapes["z"] == ((k, 3, 2), ("outer", "inner"))
    assert shapes["twice"] == ((k, 3, 2), ("outer", "inner"))
    lps = {n: t.pointwise(particles, 2) for n, t in terms.items()}
    assert {n: tuple(lp.shape) for n, (lp, _) in lps.items()} == {
        "w": (k,), "u": (k, 3), "z": (k, 3, 2), "twice": (k, 3, 2), "x": (k, 3, 2),
        "penalty": (k,),
    }  # fmt: skip
    assert lps["u"][1] == ["outer"] and lps["w"][1] == []


def test_kinds_of_sites():
    terms = log_weights(model, guide, X, particles=2).model
    kinds = {
        kind: [n for n, t in terms.items() if getattr(t, kind)]
        for kind in ("is_latent", "is_data", "is_computed")
    }
    assert kinds == {
        "is_latent": ["w", "u", "z"], "is_data": ["x"], "is_computed": ["twice"],
    }  # fmt: skip


def test_a_value_that_is_shared_by_all_rows_is_repeated():
    """A site in a plate whose density does not vary along it still has the plate's axis."""

    def flat(x):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))

    def still(x):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Delta(x.new_ones(3), log_density=x.new_zeros(())))

    weights = log_weights(flat, still, X, particles=4)
    assert weights.guide["z"].pointwise(4, 1)[0].shape == (4, 3)
    assert weights.guide["z"].values(4, 1)[0].shape == (4, 3)
    assert not weights.guide["z"].free and weights.model["z"].free


@pytest.mark.parametrize("dims, nesting", [((), 0), ((-1,), 1), ((-2,), 2), ((-3, -1), 3)], ids=str)
def test_nesting_is_the_deepest_plate(dims, nesting):
    def plated(x):
        for d in dims:
            with pyro.plate(f"p{d}", 2, dim=d):
                pyro.sample(f"z{d}", dist.Normal(0.0, 1.0))

    state = torch.random.get_rng_state()
    assert plate_nesting(plated, plated, X) == nesting
    assert torch.equal(torch.random.get_rng_state(), state)  # the dry run leaves the seed alone
    assert plate_nesting(plated, lambda x: None, X) == nesting


def test_a_plate_that_is_a_loop_takes_no_dimension():
    def looped(x):
        for i in pyro.plate("loop", 3):
            pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))

    assert plate_nesting(looped, looped, X) == 0


def test_checks_are_off_inside_and_as_before_after():
    flags = [
        torch.distributions.Distribution._validate_args,
        pyro.infer.util.is_validation_enabled(),
        pyro.poutine.util.is_validation_enabled(),
    ]
    with pytest.raises(RuntimeError, match="inside"), no_validation():
        assert not torch.distributions.Distribution._validate_args
        assert not pyro.infer.util.is_validation_enabled()
        assert not pyro.poutine.util.is_validation_enabled()
        raise RuntimeError("inside")
    assert flags == [
        torch.distributions.Distribution._validate_args,
        pyro.infer.util.is_validation_enabled(),
        pyro.poutine.util.is_validation_enabled(),
    ]


def test_particles_below_one_are_refused():
    with pytest.raises(ValueError, match=r"particles: expected K >= 1, got 0"):
        log_weights(model, guide, X, particles=0)
    assert log_weights(model, guide, X).particles == 1
