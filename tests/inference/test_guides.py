import math
import runpy
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from inference import (
    calibrate,
    check,
    elbo,
    evaluate,
    fit,
    fit_guides,
    log_weights,
    make_guide,
    to_datatree,
)
from inference.guides import KINDS
from inference.guides.packed import flow_normal, layers
from inference.pairs.pair import Pair
from inference.weights import no_validation

QUIET = {"progress": False, "compile": False}
NAMED = [k for k in KINDS if k != "flow"]
AMORTIZED = ("mean-field", "low-rank", "full-rank", "structured", "iaf", "spline")


def regression(x, y):
    """Two coefficients, correlated a posteriori; float64 follows from the data."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((w * x).sum(-1), x.new_tensor(0.7)), obs=y)


def regression_data():
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(30, 2, generator=draw, dtype=torch.float64)
    x[:, 1] = 0.8 * x[:, 0] + 0.6 * x[:, 1]
    y = x[:, 0] - 0.5 * x[:, 1] + 0.7 * torch.randn(30, generator=draw, dtype=torch.float64)
    eye = torch.eye(30, dtype=x.dtype)
    precision = x.T @ x / 0.49 + eye[:2, :2] / 4  # of the posterior
    cov = 4 * x @ x.T + 0.49 * eye
    evidence = dist.MultivariateNormal(x.new_zeros(30), cov).log_prob(y)
    return (x, y), precision, float(evidence)


def hierarchy(y):
    """Two levels of plates with linear-Gaussian latents in each; 3 x 2 data."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 1.0))
    shift = pyro.sample("shift", dist.Normal(y.new_zeros(()), 0.5))
    with pyro.plate("rows", 3, dim=-2):
        a = pyro.sample("a", dist.Normal(mu, 1.0))
        with pyro.plate("columns", 2, dim=-1):
            b = pyro.sample("b", dist.Normal(a + shift, 0.5))
            pyro.sample("y", dist.Normal(b, 0.3), obs=y)


def hierarchy_evidence(y):
    row = torch.arange(3).repeat_interleave(2)
    same = (row[:, None] == row).double()
    cov = 1.0 + 0.25 + same + (0.25 + 0.09) * torch.eye(6, dtype=torch.float64)
    return float(dist.MultivariateNormal(y.new_zeros(6), cov).log_prob(y.flatten()))


def banana(x):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(b - 2 * a**2, 0.5), obs=x)


def absolute(x):
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(a.abs(), 1.0), obs=x)


def assorted(x):
    """Supports of every kind, plates, and a discrete latent."""
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
    tril = pyro.sample("tril", dist.LKJCholesky(2, 1.0))
    s = pyro.sample("s", dist.Gamma(2.0, 1.0))
    p = pyro.sample("p", dist.Uniform(2.0, 5.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w[..., 0], s))
        r = pyro.sample("r", dist.LogNormal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z + k * p + tril[..., 1, 0], 0.1 + r), obs=x)


def local(x, size=None):
    with pyro.plate("data", size or len(x), subsample=x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


# ---------------------------------------------------------------- exact truths


def test_full_rank_is_exact_on_a_gaussian_posterior():
    (x, y), precision, evidence = regression_data()
    guide = make_guide("full-rank", regression)
    guide(x, y)
    tril = torch.linalg.cholesky(torch.linalg.inv(precision))
    guide.loc.data = torch.linalg.solve(precision, x.T @ y / 0.49)
    guide.scale, guide.scale_tril = tril.diagonal(), tril / tril.diagonal().unsqueeze(-1)
    weight = log_weights(regression, guide, x, y, particles=50).elbo()
    assert (weight - evidence).abs().max() < 1e-9


def test_fits_reach_full_rank_and_miss_by_the_closed_form_in_mean_field():
    """q_i has variance 1 / Λ_ii: the gap is ½ Σ log Λ_ii - ½ log det Λ."""
    args, precision, evidence = regression_data()
    gap = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
    table = fit_guides(regression, args, ["mean-field", "full-rank"], steps=500, lr=0.05,
                       elbo=elbo.STL(8), draws=4000, compile=False)  # fmt: skip
    row = table["mean-field"]
    assert gap > 0.3
    assert abs(row.elbo - (evidence - gap)) < 4 * row.elbo_se
    assert row.elbo < row.evidence < evidence + 4 * row.evidence_se
    assert row.khat < 0.5 or "k-hat" in row.note
    assert list(table) == ["full-rank", "mean-field"]
    # the path gradient vanishes at the optimum: what is left is Adam's last, small steps
    assert table["full-rank"].elbo == pytest.approx(evidence, abs=1e-4)
    assert table["full-rank"].ess == pytest.approx(4000, rel=1e-4)


def test_structured_is_exact_on_a_linear_hierarchy_and_mean_field_is_not():
    y = torch.randn(3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    evidence = hierarchy_evidence(y)
    guide = make_guide("structured", hierarchy)
    run = fit(hierarchy, guide, y, elbo=elbo.STL(8), steps=500, lr=0.1, schedule="cosine",
              **QUIET)  # fmt: skip
    weight = log_weights(run.model, run.guide, y, particles=100).elbo()
    assert (weight - evidence).abs().max() < 1e-3
    shapes = {k: tuple(v.shape) for k, v in run.params.items()}
    # per element: location, scale, and a weight for each number above it
    assert shapes["PlateGuide.raws.1"] == (3, 1, 2 + 2) and shapes["PlateGuide.raws.2"] == (
        3,
        2,
        2 + 3,
    )


@pytest.mark.parametrize("kind", ["laplace", "pathfinder"])
def test_a_path_is_exact_on_a_gaussian_posterior(kind):
    args, precision, evidence = regression_data()
    guide = make_guide(kind, regression, *args)
    weight = log_weights(regression, guide, *args, particles=9).elbo()
    assert (weight - evidence).abs().max() < 1e-5
    cov = guide.scale0 @ guide.scale0.T
    assert torch.allclose(torch.linalg.inv(cov), precision, rtol=1e-5)


def test_normal_guides_that_know_the_data_begin_near_the_posterior():
    args, _, evidence = regression_data()
    weight = (
        log_weights(regression, make_guide("full-rank", regression, *args), *args).elbo().detach()
    )
    assert weight.item() == pytest.approx(evidence, abs=1e-5)
    assert isinstance(make_guide("mean-field", regression, *args, start={}), AutoNormal)

    def nowhere(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("never", z - torch.inf)

    with pytest.warns(UserWarning, match=r"full-rank: begins as its kind does .*not finite"):
        make_guide("full-rank", nowhere, torch.zeros(2))


def test_laplace_says_when_there_is_no_peak():
    def wedge(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.factor("well", z**2 + z + 0 * x.sum())

    with pytest.raises(ValueError, match=r"laplace: .*z -> [+-]∞.*There is no peak"):
        make_guide("laplace", wedge, torch.zeros(2))


@pytest.mark.parametrize("kind", ["mean-field", "low-rank", "full-rank", "iaf", "spline"])
def test_a_placed_guide_begins_at_the_path_and_keeps_its_family(kind):
    args, precision, evidence = regression_data()
    guide = make_guide(kind, regression, *args, start="laplace")
    elbo_ = log_weights(regression, guide, *args, particles=400).elbo().detach().mean()
    # mean-field's gap is that of the best factors of a Gaussian: half the log of Π H_ii / |H|
    gap = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
    expected = {"mean-field": evidence - gap}.get(kind, evidence)
    spread = {"mean-field": 0.2, "iaf": 0.2, "spline": 0.2}.get(kind, 0.01)
    assert float(elbo_) == pytest.approx(expected, abs=spread)
    with pytest.raises(ValueError, match="start: 'delta' has none; these have: mean-field"):
        make_guide("delta", regression, start="laplace")


def test_amortised_guides_reach_the_evidence_in_mini_batches():
    """x_i ~ N(0, 2) once z_i ~ N(0, 1) is integrated; q(z_i | x_i) = N(x_i / 2, 1 / 2)."""
    x = 2 * torch.randn(200, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    exact = float(dist.Normal(0.0, math.sqrt(2.0)).log_prob(x).mean())
    guide = make_guide("mean-field", local, amortized=True, hidden=())
    run = fit(local, guide, x, batch_size=50, elbo=elbo.STL(4), steps=500, lr=0.05,
              schedule="cosine", **QUIET)  # fmt: skip
    assert run.elbo == pytest.approx(exact, abs=0.05)  # a mean over batches
    new = torch.randn(7, dtype=torch.float64)
    weights = log_weights(run.model, run.guide, new, particles=20).log_weight()
    assert weights.shape == (20, 7)
    at = dist.Normal(0.0, math.sqrt(2.0)).log_prob(new)
    assert (weights - at).abs().max() < 1e-3


# ---------------------------------------------------------------- beyond normal


@pytest.mark.slow
def test_flows_beat_full_rank_on_a_banana_by_many_standard_errors():
    x = torch.zeros(5)
    flows = {k: (k, {"hidden": (16,), "depth": 2}) for k in ("iaf", "spline")}
    table = fit_guides(banana, x, {"full-rank": "full-rank", **flows}, steps=400, lr=3e-2,
                       elbo=elbo.Trace(16), compile=False)  # fmt: skip
    side = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    a, b = side, 4 * side.unsqueeze(-1)
    log_joint = dist.Normal(0.0, 1.0).log_prob(a) + dist.Normal(0.0, 3.0).log_prob(b)
    log_joint = log_joint + 5 * dist.Normal(b - 2 * a**2, 0.5).log_prob(torch.zeros(()))
    evidence = float(log_joint.flatten().logsumexp(0) + math.log(4 * 0.01**2))
    full = table["full-rank"]
    for name in ("iaf", "spline"):
        row = table[name]
        assert row.elbo - full.elbo > 8 * math.hypot(row.elbo_se, full.elbo_se)
        assert row.elbo < evidence


@pytest.mark.slow
def test_a_mixture_finds_both_modes():
    """|a| is observed: one normal distribution loses log 2 against two."""
    x = torch.full((5,), 2.0)
    grid = torch.linspace(-15, 15, 20_001, dtype=torch.float64)
    log_joint = dist.Normal(0.0, 3.0).log_prob(grid)
    log_joint = log_joint + 5 * dist.Normal(grid.abs(), 1.0).log_prob(torch.tensor(2.0))
    evidence = float(torch.logsumexp(log_joint, 0) + math.log(30 / 20_000))
    table = fit_guides(absolute, x, ["mixture", "full-rank"], steps=700, lr=3e-2,
                       elbo=elbo.Trace(16), compile=False)  # fmt: skip
    mixture, full = table["mixture"], table["full-rank"]
    assert abs(mixture.elbo - evidence) < 0.05
    assert abs(full.elbo - (evidence - math.log(2))) < 0.05
    assert abs(mixture.evidence - evidence) < 4 * mixture.evidence_se


@pytest.mark.parametrize("kind", ["iaf", "spline"])
@pytest.mark.parametrize("dim", [1, 4])
def test_flow_layers_are_inverted_and_have_the_jacobian_of_autodiff(kind, dim):
    maps = layers(dim, kind, 3, (16, 16), context_dim=2).double()

    def flow(x, context):
        total = 0.0
        for m in maps:
            x, ladj = m.call_and_ladj(x, context)
            total = total + ladj
        return x, total

    def inverse(y, context):
        total = 0.0
        for m in reversed(maps):
            y, ladj = m.inv_and_ladj(y, context)
            total = total + ladj
        return y, total

    ones = torch.ones(dim, dtype=torch.float64)
    start, _ = flow(ones, torch.ones(2, dtype=torch.float64))
    assert torch.allclose(start, ones, atol=1e-12)  # the identity
    for p in maps.parameters():
        p.data += 0.3 * torch.randn_like(p)
    x, context = 2 * torch.randn(6, dim).double(), torch.randn(6, 2).double()
    y, ladj = flow(x, context)
    back, again = inverse(y, context)
    assert torch.allclose(back, x, atol=1e-10) and torch.allclose(again, ladj, atol=1e-10)
    for i in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda v, i=i: flow(v, context[i])[0], x[i])
        assert torch.linalg.slogdet(jacobian)[1] == pytest.approx(ladj[i].item(), abs=1e-10)
        by_context = torch.autograd.functional.jacobian(lambda c, i=i: flow(x[i], c)[0], context[i])
        assert (by_context != 0).all()


def test_a_draw_and_its_density_are_one_pass_and_that_of_others_is_computed():
    maps = layers(3, "spline", 2, (8,)).double()
    passes = [0]
    for m in maps:
        m.net.register_forward_hook(lambda *_: passes.__setitem__(0, passes[0] + 1))
    for p in maps.parameters():
        p.data += 0.2 * torch.randn_like(p)
    q = flow_normal(torch.randn(3).double(), torch.rand(3).double(), maps).expand([5])
    z = q.rsample()
    assert z.shape == (5, 3)
    drawn = q.log_prob(z)
    assert passes[0] == 2
    assert torch.allclose(drawn, q.log_prob(z.clone()), atol=1e-10)
    affine = [dist.transforms.AffineTransform(1.0, 2.0)]
    q = flow_normal(torch.tensor([0.5, -1.0]), torch.tensor([0.3, 2.0]), affine)
    normal = dist.Normal(torch.tensor([0.8, 1.0]), torch.tensor([0.6, 4.0])).to_event(1)
    z = q.rsample((7,))
    assert torch.allclose(q.log_prob(z), normal.log_prob(z), atol=1e-5)


class Shift(nn.Module):
    """x + by, in the two forms that a map of one's own may have."""

    def __init__(self, dim):
        super().__init__()
        self.by = nn.Parameter(torch.full((dim,), 0.5))

    def forward(self, x, context=None):
        return x + self.by, x.new_zeros(x.shape[:-1])

    def inverse(self, y, context=None):
        return y - self.by, y.new_zeros(y.shape[:-1])


class NamedShift(Shift):
    def call_and_ladj(self, x, context=None):
        return Shift.forward(self, x)

    def inv_and_ladj(self, y, context=None):
        return Shift.inverse(self, y)

    def forward(self, x):
        raise NotImplementedError


@pytest.mark.parametrize("kind", [Shift, NamedShift])
def test_transforms_of_torch_and_of_ones_own_are_taken(kind):
    q = flow_normal(torch.zeros(3), torch.ones(3),
                    [kind(3), dist.transforms.AffineTransform(1.0, 2.0)])  # fmt: skip
    normal = dist.Normal(torch.full((3,), 2.0), torch.full((3,), 2.0)).to_event(1)  # 1 + 2 (ε + ½)
    z = q.rsample((5,))
    assert torch.allclose(q.log_prob(z.clone()), normal.log_prob(z), atol=1e-5)
    assert torch.allclose(q.log_prob(z), normal.log_prob(z), atol=1e-5)
    guide = make_guide("flow", banana, transform=kind)
    run = fit(banana, guide, torch.zeros(5), steps=3, **QUIET)
    assert "FlowGuide.flow.0.by" in run.params


# ---------------------------------------------------------------- every kind


def make(kind, model, **options):
    if kind == "flow":
        options["transform"] = lambda dim: layers(dim, "iaf", 1, (8,))
    return make_guide(kind, model, **options)


# "laplace" wants a peak, which these models lack; "pathfinder" is the same class
ALL = [(k, False) for k in KINDS if k != "laplace"] + [(k, True) for k in AMORTIZED]


@pytest.mark.parametrize(
    "kind, amortized",
    [
        pytest.param(*a, marks=pytest.mark.slow if a[0] in ("pathfinder", "spline") else ())
        for a in ALL
    ],
)
def test_supports_are_respected_and_discrete_latents_are_summed_out(kind, amortized):
    x = torch.randn(9)
    guide = make(kind, assorted, amortized=amortized)
    found = check(assorted, guide, x)
    assert not found.errors and not found.warnings, found
    run = fit(assorted, guide, x, steps=2, **QUIET)
    weights = log_weights(run.model, run.guide, x, particles=40)
    assert torch.isfinite(weights.elbo()).all()
    draws = {n: t.value for n, t in weights.guide.items() if n in ("w", "tril", "s", "p", "z", "r")}
    assert len(draws) == 6 and "k" not in weights.guide and "k" not in weights.model
    assert draws["z"].shape == (40, 9)
    assert (draws["w"] > 0).all() and (draws["w"].sum(-1) - 1).abs().max() < 1e-5
    assert (draws["s"] > 0).all() and (draws["r"] > 0).all()
    assert ((draws["p"] > 2) & (draws["p"] < 5)).all()
    tril = draws["tril"].reshape(40, 2, 2)
    assert (tril.square().sum(-1) - 1).abs().max() < 1e-5 and (tril[:, 0, 1] == 0).all()


@pytest.mark.parametrize("kind, amortized", ALL)
def test_the_step_can_be_traced_and_is_the_eager_one(kind, amortized, particles=3):
    """Loss and gradient of the ATen graph, on the same noise: what is compiled."""
    x = torch.randn(6, dtype=torch.float64)

    def model(x):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
        s = pyro.sample("s", dist.LogNormal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, s))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    guide = make(kind, model, amortized=amortized)
    pair = Pair(model, guide, (x,))
    estimator = elbo.Trace(particles)

    def step(params, x):
        params = [p.detach().requires_grad_() for p in params]
        with pair.bind(dict(zip(pair.params, params)), pair.buffers):
            loss = estimator.differentiable_loss(pair.model, pair.guide, x, nesting=pair.nesting)
        return loss.detach(), torch.autograd.grad(loss, params, materialize_grads=True)

    values = [p + 0.1 for p in pair.params.values()]
    with no_validation():
        graph = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(values, x)
        results = []
        for run in (step, graph):
            torch.manual_seed(3)
            loss, grads = run(values, x)
            results.append([loss, *grads])
    for eager, traced in zip(*results):
        assert torch.allclose(eager, traced, rtol=1e-9, atol=1e-9)
        assert torch.isfinite(eager).all()


def test_a_mixture_can_be_traced_with_one_particle():
    test_the_step_can_be_traced_and_is_the_eager_one("mixture", False, particles=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind, amortized", ALL)
def test_every_kind_compiles(kind, amortized):
    def model(x):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 1.0))
        s = pyro.sample("s", dist.LogNormal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, s))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    guide = make(kind, model, amortized=amortized)
    run = fit(model, guide, torch.randn(6), steps=2, compile=True, progress=False)
    assert run.compiled, run.eager_because


# ---------------------------------------------------------------- the call


def test_unknown_names_and_options_are_answered():
    with pytest.raises(ValueError, match=r"no 'meanfield'.*Did you mean 'mean-field'"):
        make_guide("meanfield", banana)
    with pytest.raises(ValueError, match="Did you mean 'full-rank'"):
        make_guide("Full_Rank", banana)
    with pytest.raises(ValueError, match="'mixture' cannot be amortised; these can: mean-field"):
        make_guide("mixture", banana, amortized=True)
    with pytest.raises(TypeError, match="'full-rank' has no option rank; it takes init_loc_fn"):
        make_guide("full-rank", banana, rank=3)
    with pytest.raises(ValueError, match="at least 25"):
        fit_guides(banana, torch.zeros(5), draws=10)


def test_a_pair_gives_its_model_and_options_reach_the_guide():
    class Pair:
        model = staticmethod(banana)
        guide = staticmethod(lambda x: None)

    guide = make_guide("low-rank", Pair, rank=1, init_scale=0.5)
    guide(torch.zeros(5))
    assert guide.cov_factor.shape == (2, 1)
    assert guide.scale[0].item() == pytest.approx(0.5 * math.sqrt(0.5))


def test_guides_per_datum_ask_for_all_data():
    x = torch.randn(20)
    for kind in ("mean-field", "structured"):
        with pytest.raises(ValueError, match="row for each datum of a mini-batch"):
            fit(local, make_guide(kind, local), x, batch_size=5, steps=1, **QUIET)
    with pytest.raises(
        ValueError, match=r"told 20 and given 5\. Fit on all data, or use amortized"
    ):
        make_guide("structured", local)(x[:5], size=20)


def test_amortised_guides_say_what_they_need():
    def nested(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("time", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match="takes latents in plate 'data' alone"):
        make_guide("mean-field", nested, amortized=True)(torch.randn(5, 3))
    with pytest.raises(ValueError, match="no plate of the latents has the 5 rows"):
        make_guide("mean-field", banana, amortized=True)(torch.zeros(5))


def test_an_encoder_of_ones_own_is_trained():
    class Net(nn.Module):
        def __init__(self, features, outputs):
            super().__init__()
            self.layer = nn.Linear(features, outputs)

        def forward(self, x):
            return self.layer(x)

    x = torch.randn(12)
    for encoder in (Net, Net(1, 2)):
        guide = make_guide("mean-field", local, amortized=True, encoder=encoder)
        run = fit(local, guide, x, steps=3, **QUIET)
        name = next(n for n in run.params if n.endswith("layer.weight"))
        assert run.params[name].shape == (2, 1)


def test_the_table():
    x = torch.zeros(5)

    def hand_written(x):
        pyro.sample("a", dist.Normal(pyro.param("m", torch.tensor(0.0)), 0.5))
        pyro.sample("b", dist.Normal(1.0, 1.0))

    def forgetful(x):
        pyro.sample("a", dist.Normal(pyro.param("m", torch.tensor(0.0)), 0.5))

    table = fit_guides(
        banana, x, ["delta", ("low-rank", {"rank": 1}), hand_written, forgetful], steps=60,
        draws=500, compile=False,
    )  # fmt: skip
    assert list(table)[-1] == "delta" and set(table) == {
        "delta", "low-rank (rank=1)", "hand_written",
    }  # fmt: skip
    assert "forgets a latent" in table.failed["forgetful"]
    assert table["delta"].elbo is None and "log p(x, z) = " in table["delta"].note
    row = table["low-rank (rank=1)"]
    assert row.draws == 500 and row.seconds > 0
    # half fitted, its weights have no mean to rely on: no number, and the reason
    assert row.khat > 0.7 and row.evidence is None and "above 0.7" in row.note
    judged = evaluate(table.runs["low-rank (rank=1)"], x, particles=500)
    assert abs(judged.elbo - row.elbo) < 5 * row.elbo_se
    text = str(table)
    assert "log evidence (nats)" in text and "forgetful: not fitted." in text
    assert text.startswith("guide") and text.splitlines()[1].startswith(next(iter(table)))
    frame = table.to_dataframe()
    assert list(frame.index) == list(table) and frame.loc["delta", "draws"] == 500
    assert table.best is table.runs[next(iter(table))]
    with pytest.raises(ValueError, match=r"(?s)none could be fitted.*forgets"):
        fit_guides(banana, x, [forgetful], steps=1)
    with pytest.raises(ValueError, match="names, \\(name, options\\) or Pyro guides"):
        fit_guides(banana, x, [3], steps=1)


def test_the_same_seed_gives_the_same_table():
    options = {"steps": 20, "draws": 100, "compile": False}
    rows = [fit_guides(banana, torch.zeros(5), ["mixture"], **options)["mixture"] for _ in "ab"]
    assert (rows[0].elbo, rows[0].khat) == (rows[1].elbo, rows[1].khat)


def test_the_example_of_a_new_guide_runs(capsys):
    path = Path(__file__).parents[2] / "examples" / "new_guide.py"
    advice, table = runpy.run_path(str(path))["main"](steps=20)
    assert {f.site for f in advice.errors} == {"mu", "mo", "tau", "theta"}
    assert not table.failed and set(table) == {
        "new", "mean-field", "full-rank", "structured", "iaf",
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "constraints.positive" in said and "log evidence" in said


def test_flat_priors_have_a_start_and_no_prior_groups():
    """The posterior of a mean under a flat prior is N(mean of the data, s²/n)."""
    x = torch.tensor([1.0, 2.0, 4.5])

    def model(x):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    guide = make_guide("mean-field", model, start={"mu": 2.0}, init_scale=0.5)
    guide(x)
    assert float(guide.locs.mu.detach()) == 2.0
    run = fit(model, guide, x, steps=1, lr=1e-9, compile=False, progress=False)
    with pytest.warns(UserWarning, match="no prior groups: the prior of 'mu' is flat"):
        tree = to_datatree(run, x, draws=4_000)
    assert not {"prior", "prior_predictive"} & set(tree.children)
    weight = tree.sample_stats.log_weight.values[0]
    mean = np.average(tree.posterior.mu.values[0], weights=np.exp(weight - weight.max()))
    assert abs(mean - float(x.mean())) < 5 * 1.5 * 3**-0.5 / 4_000**0.5
    with pytest.raises(ValueError, match="flat prior"):
        calibrate(run, x, datasets=10, draws=10)
