"""From a plain pair to ArviZ, no line changed for us: fit, verdict, tree, corrected tree, LOO.

Pyro's examples and tutorials as their sources write them (`right_pairs.py`), and nine posteriors of
posteriordb as a paper would.
"""

import warnings

import arviz_stats
import numpy as np
import pytest
from right_pairs import RIGHT

from benchmarks.posteriors import NAMES, load
from inference import diagnose, evaluate, fit, make_guide, predict, to_datatree

# each once failed: recurrent guides, handlers around a model, latents that no draw changes
HARD = "deep_markov_model", "gaussian_mixture", "normal_by_map"
POINTS = (  # guides that are a point: no verdict but one, and nothing for LOO to smooth
    "gaussian_mixture", "hidden_markov_model", "normal_by_map", "logistic_regression_by_laplace",
    "negative_binomial_regression",
)  # fmt: skip
WITHOUT_LOO = (  # and where all draws are equal, or the data stand in a pyro.factor
    *POINTS[:-1], "score_function_guide", "arma-arma11",
)  # fmt: skip


def follow(model, guide, args):
    """The whole way; what ArviZ warns of at 60 steps is no concern of this test."""
    run = fit(model, guide, args, steps=60, lr=0.02, compile=False, progress=False)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.filterwarnings(
            "ignore", "Estimated shape|The point-wise LOO|no prior groups|.*one by one"
        )
        found = diagnose(run, *args, draws=200)
        tree = to_datatree(run, *args, draws=100)
        evaluation = evaluate(run, *args, particles=30)
        names = list(tree["log_likelihood"].data_vars) if "log_likelihood" in tree.children else []
        loos = {}
        for name in names:
            try:
                loos[name] = float(arviz_stats.loo(tree, var_name=name).elpd)
            except ValueError:  # all draws are equal, or a mask hides a whole observation
                loos[name] = float("nan")
    return run, found, tree, evaluation, loos


def hold(name, found, tree, evaluation, loos):
    assert (found.verdict == "trust the corrected posterior") <= (found.corrected is not None)
    assert bool(found.reasons) == (found.verdict != "trust") and len(found.findings) > 2
    values = [np.isfinite(v.values).all() for v in tree["posterior"].data_vars.values()]
    assert values and all(values)
    point = name in POINTS
    assert (evaluation.elbo is None) == point
    assert any(map(np.isfinite, loos.values())) == (name not in WITHOUT_LOO), loos
    assert not point or found.verdict == "do not trust"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in HARD else pytest.mark.slow) for n in RIGHT]
)
def test_pyro_s_own_pairs_go_the_whole_way(name):
    model, guide, args = RIGHT[name]()
    _, *rest = follow(model, guide, args)
    hold(name, *rest)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_posteriors_of_posteriordb_go_the_whole_way(name, zoo_data):
    model, args, reference = load(name)
    run, *rest = follow(model, make_guide("full-rank", model, *args, start="pathfinder"), args)
    hold(name, *rest)
    draws = {n.partition("[")[0] for n in reference} | set(reference)
    assert draws & set(rest[1]["posterior"].data_vars)
    assert run.steps == 60


def test_a_pair_fitted_to_some_rows_predicts_others():
    model, guide, args = RIGHT["bayesian_regression"]()
    run = fit(model, guide, args, steps=20, compile=False, progress=False)
    new = predict(run, args[0][:3], None)
    assert "predictions" in new.children
