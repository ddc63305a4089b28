"""One gate: what one entrance refuses, all refuse."""

import warnings

import broken_guides  # noqa: F401  # it extends the table of broken pairs
import numpy as np
import pandas
import pyro
import pyro.distributions as dist
import pytest
import torch
from broken_pairs import BROKEN, gaussian_site
from pyro.infer import SVI
from torch import nn

from inference import (
    calibrate,
    compare,
    diagnose,
    elbo,
    evaluate,
    fit,
    fit_guides,
    fit_many,
    log_weights,
    to_datatree,
)
from inference.pairs import gate
from inference.pairs.arguments import as_arguments, take_rows
from inference.pairs.gate import admit, inspect_once
from inference.pairs.options import check_options, device_of, nearest, number, one_of, whole
from inference.ratios.adversarial import fit_adversarial
from inference.ratios.fitting import density_ratio
from inference.ratios.implicit import fit_implicit

X = torch.tensor([0.5, -1.0, 2.0])


def model(x):
    """m ~ N(0, 1), b ~ N(0, 0.01²), x ~ N(m + b, 1)."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 0.01))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m + b, 1.0), obs=x)


def of_m(x):
    gaussian_site("m")


def right(x):
    gaussian_site("m")
    gaussian_site("b")


def with_a_stranger(x):
    right(x)
    gaussian_site("c")


def svi(model, guide, *args):
    loss = elbo.IWAE(8)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=loss).step(*args)


# entrance -> a short call with a model, its guide and the arguments
PAIRS = {
    "fit": lambda m, g, *a: fit(m, g, a, steps=1, progress=False, compile=False),
    "fit_many": lambda m, g, *a: fit_many(m, g, a, fits=2, steps=1, compile=False),
    "fit_guides": lambda m, g, *a: fit_guides(m, a, {"given": g}, steps=1, draws=25),
    "compare": lambda m, g, *a: compare(m, g, a, [elbo.Trace()], draws=4),
    "evaluate": lambda m, g, *a: evaluate(m, g, *a, particles=2),
    "diagnose": lambda m, g, *a: diagnose(m, g, *a, draws=25),
    "to_datatree": lambda m, g, *a: to_datatree(m, g, *a, draws=2),
    "calibrate": lambda m, g, *a: calibrate(m, g, *a, datasets=10, draws=10),
    "SVI": svi,
    "loss": lambda m, g, *a: elbo.Trace().loss(m, g, *a),
    "differentiable_loss": lambda m, g, *a: elbo.Enum().differentiable_loss(m, g, *a),
}
# `log_weights` knows only names
NAMES = {**PAIRS, "log_weights": lambda m, g, *a: log_weights(m, g, *a)}
# what is wrong of a pair whatever is done with it: not to have nothing to learn; and not what is
# told by a mini-batch, or by a tensor without values, which is refused before
ELSEWHERE = "no_parameters_at_all", "autoguide_on_another_device"
WRONG = [
    n for n, b in BROKEN.items() if b.level == "error" and b.size is None and n not in ELSEWHERE
]
# refused where they are to be trained; a judge goes on, and has "no estimate" of such a density
UNKNOWN_DENSITY = (
    "delta_without_a_jacobian", "shifted_and_scaled_noise",
    "correlated_noise_without_a_determinant", "noise_of_torch_in_a_delta",
)  # fmt: skip
TRAINING = "fit", "fit_many", "fit_guides"
# one of each sort, tried at every entrance by default; `check` is tried with all in test_check.py
SORTS = (
    "site_of_an_older_model", "guide_draws_the_data", "loop_without_names", "no_data_plate",
    "targets_with_a_column", "normal_guide_for_a_scale", "delta_without_a_jacobian",
)  # fmt: skip


@pytest.mark.parametrize("entrance", NAMES)
@pytest.mark.parametrize(
    "guide, says",
    [
        (of_m, r"(?s)'b'.*forgets a latent of the model|forgets a latent.*'b'"),
        (with_a_stranger, r"(?s)'c'.*the model does not have|the model does not have, 'c'"),
    ],
    ids=["forgotten", "unknown"],
)
def test_latents_must_match_at_every_entrance(entrance, guide, says):
    with pytest.raises(ValueError, match=says):
        NAMES[entrance](model, guide, X)


@pytest.mark.parametrize(
    "name, entrance",
    [
        pytest.param(n, e, marks=[] if n in SORTS else pytest.mark.slow)
        for n in WRONG
        for e in PAIRS
        if e in TRAINING or n not in UNKNOWN_DENSITY
    ],
)
def test_every_broken_pair_is_refused_at_every_entrance(name, entrance):
    broken = BROKEN[name]
    half, guide, args = broken.make()
    with pytest.raises((ValueError, TypeError)) as error:
        PAIRS[entrance](half, guide, *args)
    assert any(word in str(error.value) for word in broken.says), error.value


def test_what_is_refused_was_a_bound_above_the_evidence():
    """log p(x) = -5.794; unrefused, IWAE(500) said -2.45."""
    cov = torch.eye(3) + 1.0001
    assert dist.MultivariateNormal(torch.zeros(3), cov).log_prob(X).item() == pytest.approx(
        -5.794, abs=5e-4
    )
    with pytest.raises(ValueError, match="forgets a latent"):
        elbo.IWAE(500).loss(model, of_m, X)


def test_discrete_latents_may_be_left_out():
    def mixture(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(m + 2 * k, 1.0), obs=x)

    for entrance in ("fit", "fit_many", "compare", "to_datatree", "SVI"):
        PAIRS[entrance](mixture, of_m, X)
    assert float(evaluate(mixture, of_m, X).elbo) < 0


def exact(x):
    """The posterior of the mean of N(m, 1) under N(0, 1): no parameters."""
    pyro.sample("m", dist.Normal(x.sum() / (1 + len(x)), (1 + len(x)) ** -0.5))


def one_mean(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def test_a_pair_without_parameters_is_judged_but_not_fitted():
    truth = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(X).item()
    assert -elbo.IWAE(3).loss(one_mean, exact, X) == pytest.approx(truth, abs=1e-5)
    judged = admit(one_mean, exact, X)
    with judged.ready(0):
        assert judged.weights(2).elbo().tolist() == pytest.approx([truth, truth], abs=1e-5)
    with pytest.raises(ValueError, match="has no parameters"):
        PAIRS["fit"](one_mean, exact, X)


def test_a_run_fitted_unchecked_is_judged():
    half, guide, args = BROKEN["forgot_pyro_module"].make()
    run = fit(half, guide, args, steps=2, progress=False, check=False)
    assert admit(run, *args).run is run
    with pytest.raises(ValueError, match="not registered"):
        admit(half, guide, *args)


# ---------------------------------------------------------------- plain SVI


def state_of_everything():
    store = pyro.get_param_store()
    return {
        "params": {n: (id(p), p.detach().clone()) for n, p in store._params.items()},
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "validation": torch.distributions.Distribution._validate_args,
        "grad": torch.is_grad_enabled(),
    }


def test_the_gate_leaves_no_trace():
    pyro.param("m_loc", torch.tensor(3.0))
    before = state_of_everything()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inspect_once(model, right, (X,))
        admit(model, right, X)
    assert before == state_of_everything()


def test_plain_svi_inspects_a_pair_once_and_follows_the_ungated_path(monkeypatch):
    calls = []
    refuse = gate.refuse_errors
    monkeypatch.setattr(gate, "refuse_errors", lambda *a, **k: calls.append(a) or refuse(*a, **k))

    def mine(x):
        right(x)

    def steps():
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        svi = SVI(model, mine, pyro.optim.Adam({"lr": 0.1}), loss=elbo.IWAE(4))
        return [svi.step(X) for _ in range(3)]

    first, again = steps(), steps()  # the first goes through the gate, the second does not
    assert len(calls) == 1
    assert first == again
    elbo.Trace().loss(model, mine, X)  # another estimator, the same pair
    assert len(calls) == 1
    elbo.Trace().loss(model, mine, X.double())  # other data
    assert len(calls) == 2


def test_an_unknown_option_of_a_baseline_is_refused():
    half, guide, args = BROKEN["unknown_baseline"].make()
    with pytest.raises(ValueError, match="has 'use_decaying_average'"):
        elbo.Trace().loss(half, guide, *args)


def test_what_was_seen_is_forgotten_with_the_pair():
    def mine(x):
        right(x)

    inspect_once(model, mine, (X,))
    guides = gate._SEEN[model]
    assert mine in guides
    before = len(guides)
    del mine
    assert len(guides) == before - 1


# ---------------------------------------------------------------- data


def frame():
    return pandas.DataFrame({"a": [0.5, -1.0, 2.0], "b": [1.0, 0.0, 3.0]})


WRONG_DATA = {
    "empty": (X[:0], "at least one row"),
    "NaN": (torch.tensor([0.5, float("nan"), 2.0]), r"NaN or infinite, the first at \(1,\)"),
    "complex": (X.to(torch.complex64), "a complex one"),
    "sparse": (X.to_sparse(), "a sparse one"),
    "meta": (X.to("meta"), "a meta one"),
    "list": ([0.5, -1.0, 2.0], "expected a tensor"),
    "text": ("x.csv", "expected a tensor|expected a file, found none"),
    "words": (pandas.DataFrame({"a": ["x", "y"]}), "expected numbers, got a DataFrame of object"),
}
DATA = {k: v for k, v in PAIRS.items() if k not in ("SVI", "loss", "differentiable_loss")}


@pytest.mark.parametrize("entrance", DATA)
@pytest.mark.parametrize("wrong", WRONG_DATA)
def test_wrong_data_are_refused_at_every_entrance(entrance, wrong):
    data, says = WRONG_DATA[wrong]
    call = {
        "fit": lambda x: fit(model, right, x, steps=1, progress=False),
        "fit_many": lambda x: fit_many(model, right, x, fits=2, steps=1),
        "fit_guides": lambda x: fit_guides(model, x, {"g": right}, steps=1, draws=25),
        "compare": lambda x: compare(model, right, x, [elbo.Trace()], draws=4),
    }.get(entrance, lambda x: DATA[entrance](model, right, x))
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=says):
        call(data)


@pytest.mark.parametrize("entrance", DATA)
def test_the_wrong_number_of_arguments_is_refused(entrance):
    with pytest.raises(TypeError, match=r"the model takes \(x\), got 2 arguments"):
        DATA[entrance](model, right, X, X)


@pytest.mark.parametrize("wrong", ["empty", "NaN"])
def test_wrong_held_out_data_are_refused(wrong):
    data, says = WRONG_DATA[wrong]
    with pytest.raises(ValueError, match=f"valid: .*{says}"):
        fit(model, right, X, valid=data, steps=1, progress=False)


def test_arrays_and_data_frames_are_taken():
    (x,) = as_arguments(frame())
    assert x.dtype == torch.float32 and x.tolist() == [[0.5, 1.0], [-1.0, 0.0], [2.0, 3.0]]
    assert as_arguments((frame()["a"], 3))[0].tolist() == X.tolist()
    assert as_arguments(np.array([1, 2]))[0].dtype == torch.int64
    run = fit(model, right, frame()["a"], steps=2, progress=False)
    assert len(run.losses) == 2
    assert torch.equal(admit(run, frame()["a"]).args[0], X)


def test_rows_are_taken_together():
    args = (X, 7, torch.eye(3), torch.ones(2), torch.tensor(1.0), "y")
    cut = take_rows(args, torch.tensor([2, 0]))
    assert cut[0].tolist() == [2.0, 0.5] and cut[2].tolist() == [[0, 0, 1], [1, 0, 0]]
    assert cut[1] == 7 and cut[3] is args[3] and cut[4] is args[4] and cut[5] == "y"


# ---------------------------------------------------------------- options


def bad(**options):
    """A short fit with these options."""
    fit(model, right, X, **{"steps": 2, "progress": False, **options})


WRONG_OPTIONS = [
    ({"steps": "ten"}, "steps: expected a whole number of at least 1, got 'ten'"),
    ({"steps": 2.0}, "steps: expected a whole number"),
    ({"steps": True}, "steps: expected a whole number"),
    ({"steps": 0}, "steps: expected .* at least 1, got 0"),
    ({"lr": "fast"}, "lr: expected a number > 0, got 'fast'"),
    ({"lr": -1e-3}, "lr: expected a number > 0"),
    ({"lr": float("nan")}, "lr: expected a number > 0"),
    ({"batch_size": 2.0}, "batch_size: expected a whole number"),
    ({"batch_size": "2"}, "batch_size: expected a whole number"),
    ({"batch_size": True}, "batch_size: expected a whole number"),
    ({"batch_size": 4}, r"batch_size: expected 1 \.\. 3"),
    ({"seed": 2**63}, "seed: expected a whole number from 0 to 9,223"),
    ({"seed": -1}, "seed: expected a whole number from 0"),
    ({"seed": 0.5}, "seed: expected a whole number from 0"),
    ({"clip": 0}, "clip: expected a number > 0, got 0"),
    ({"clip": -1.0}, "clip: expected a number > 0"),
    ({"repeats": 0}, "repeats: expected a whole number of at least 1"),
    ({"chunk": 0.5}, "chunk: expected a whole number"),
    ({"valid_every": 0, "valid": X}, "valid_every: expected a whole number of at least 1"),
    ({"patience": 0, "valid": X}, "patience: expected a whole number of at least 1"),
    ({"patience": 3}, "patience: there is no validation to wait for"),
    ({"compile": "no"}, r"compile: expected one of \[True, False, 'auto'\], got 'no'"),
    ({"schedule": "cosin"}, "schedule: .* Did you mean 'cosine'"),
    ({"schedule": 3}, "schedule: expected 'constant'"),
    ({"device": "gpu"}, "device: 'gpu' is not on this machine"),
    ({"optimiser": "adam"}, "optimiser: expected one of inference.optim.* Did you mean 'Adam'"),
    ({"elbo": "IWAE(8)"}, r"got 'IWAE\(8\)'; write elbo.IWAE\(8\)\."),
    ({"elbo": "iwea"}, "write elbo.IWAE"),
    ({"elbo": pyro.infer.Trace_ELBO()}, r"got Pyro's Trace_ELBO; write elbo.Trace\(\)"),
    ({"elbo": pyro.infer.RenyiELBO}, r"got Pyro's RenyiELBO; write elbo.IWAE\(8\)"),
    ({"check": "yes"}, "check: expected one of"),
    ({"callbacks": print}, "callbacks: expected a list of functions"),
    ({"callbacks": [3]}, "callbacks: expected a list of functions"),
]


@pytest.mark.parametrize("options, says", WRONG_OPTIONS, ids=lambda o: str(o)[:40])
def test_a_wrong_option_is_answered_in_one_sentence(options, says):
    with pytest.raises((ValueError, TypeError), match=says) as error:
        bad(**options)
    assert "\n" not in str(error.value)


def test_every_trainer_and_judge_checks_its_options():
    pair = (model, right, X)
    tensors = torch.randn(40, 2), torch.randn(40, 2)
    for call in (
        lambda: fit(*pair, steps="ten"),
        lambda: fit_many(*pair, fits=2, steps="ten"),
        lambda: fit_guides(model, X, ["mean-field"], steps="ten"),
        lambda: fit_adversarial(nn.Linear(2, 2), tensors[0], steps="ten"),
        lambda: fit_implicit(*pair, steps="ten"),
        lambda: density_ratio(*tensors, steps="ten"),
        lambda: calibrate(*pair, steps="ten"),
    ):
        with pytest.raises(ValueError, match="steps: expected a whole number"):
            call()
    for call in (
        lambda: compare(*pair, [elbo.Trace()], draws="ten"),
        lambda: diagnose(*pair, draws=1),
        lambda: to_datatree(*pair, draws="ten"),
        lambda: calibrate(*pair, draws="ten"),
        lambda: fit_guides(model, X, ["mean-field"], draws="ten"),
    ):
        with pytest.raises(ValueError, match="draws: expected a whole number"):
            call()
    with pytest.raises(ValueError, match="particles: expected a whole number"):
        evaluate(*pair, particles=0.5)
    for call in (
        lambda: fit_many(*pair, fits=2, seed=2**63),
        lambda: compare(*pair, [elbo.Trace()], seed=2**63),
        lambda: evaluate(*pair, seed=2**63),
        lambda: diagnose(*pair, seed=2**63),
        lambda: to_datatree(*pair, seed=2**63),
        lambda: calibrate(*pair, seed=2**63),
    ):
        with pytest.raises(ValueError, match="seed: expected a whole number from 0"):
            call()


def test_what_is_meant_is_taken():
    run = fit(
        model, right, X, elbo=elbo.IWAE, steps=np.int64(2), lr=np.float64(0.1), batch_size=None,
        seed=np.int32(3), progress=False,
    )  # fmt: skip
    assert repr(run.estimator) == "IWAE(8)" and len(run.losses) == 2
    one_of("compile", "auto", (True, False, "auto"))
    with pytest.raises(ValueError, match="compile"):
        one_of("compile", 1, (True, False, "auto"))
    assert whole("k", 3) == 3 and number("x", 2) == 2.0
    assert nearest("Mean_Feild", ["mean-field", "iaf"]) == " Did you mean 'mean-field'?"
    assert nearest("zzz", ["iaf"]) == ""
    assert device_of("cpu") == torch.device("cpu")
    check_options({"draws": 25}, draws=25, unknown=object())
    with pytest.raises(ValueError, match="draws: expected a whole number of at least 25"):
        check_options({"draws": 25}, draws=24)


# ---------------------------------------------------------------- a run's own halves


def test_the_halves_of_a_run_are_the_run():
    run = fit(model, right, X, steps=20, lr=0.1, progress=False)
    found = admit(run.model, run.guide, X)
    assert found.run is run
    assert torch.equal(found.params["m_loc"], run.state["m_loc"])


def vector(x):
    """Its data are one site without a plate, which a plate of particles does not fit."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mu, 1.0).expand([len(x)]).to_event(1), obs=x)


def near(x):
    loc = pyro.param("loc", torch.tensor(0.3))
    pyro.sample("mu", dist.Normal(loc, 0.5))


def test_a_pair_that_does_not_broadcast_is_taken_at_every_entrance():
    x = torch.tensor([0.5, -1.0, 2.0])
    exact = float(dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + 1).log_prob(x))
    assert evaluate(vector, near, x, particles=100).log_px == pytest.approx(exact, abs=0.1)
    assert to_datatree(vector, near, x, draws=10)["posterior"]["mu"].shape == (1, 10)
    compare(vector, near, x, [elbo.Trace(), elbo.IWAE(4), elbo.DReG(4)], draws=8, compile=False)
    calibrate(vector, near, x, datasets=10, draws=10)
    quiet = {"compile": False, "progress": False, "steps": 1}
    assert fit_guides(vector, x, {"given": near}, draws=25, **quiet)["given"].elbo is not None
    run = fit(vector, near, x, elbo=elbo.IWAE(4), **quiet)
    assert run.pair_.way == "vmap"
    assert fit(vector, near, x, elbo=elbo.IWAE(4, vectorized=False), **quiet).steps == 1
    with pytest.raises(ValueError, match="vectorized: expected one of"):
        to_datatree(run, x, draws=10, vectorized="vamp")


def test_no_data_no_guides_and_held_out_data_of_the_wrong_kind_are_refused_by_name():
    quiet = {"steps": 1, "compile": False, "progress": False}
    with pytest.raises(TypeError, match="fit: no data was given"):
        fit(model, right, None, **quiet)
    with pytest.raises(TypeError, match="valid: expected a tensor"):
        fit(model, right, X, valid="x", **quiet)
    with pytest.raises(ValueError, match="guides: expected at least one"):
        fit_guides(model, X, [])
    with pytest.raises(ValueError, match="there is no 'nothing'"):
        fit_guides(model, X, "nothing")


@pytest.mark.parametrize(
    "data",
    [
        [torch.ones(3), torch.ones(5)],
        torch.nested.nested_tensor([torch.ones(3), torch.ones(5)], layout=torch.jagged),
        torch.tensor([[1.0, 2.0, torch.nan], [1.0, torch.nan, torch.nan]]),
        torch.tensor([[[1.0, 2.0], [torch.nan] * 2], [[1.0, 2.0], [3.0, 4.0]]]),
    ],
)
def test_sequences_of_different_lengths_ask_for_a_mask(data):
    with pytest.raises(ValueError, match=r"argument 0.*pad_sequence.*poutine\.mask"):
        fit(model, right, data, steps=1, progress=False)


def test_missing_values_within_rows_are_no_padding():
    data = torch.tensor([[1.0, torch.nan, 2.0], [1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="Drop or impute them"):
        fit(model, right, data, steps=1, progress=False)
