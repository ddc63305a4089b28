import json
import math
import runpy
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from schools import NAMES, SIGMA, Y, centred, centred_mean_field, non_centred, reference
from torch import nn

from inference import elbo, fit, fit_many, make_guide, to_datatree
from inference.draws.measures import evidence_error, log_evidence
from inference.draws.psis import khat
from inference.judging.diagnosis import amortization_gap, diagnose
from inference.judging.diagnosis.checks import leave_one_out
from inference.judging.diagnosis.coordinates import blocks
from inference.judging.diagnosis.correction import correct, resampled
from inference.judging.diagnosis.tail import good_khat, tail_divergence
from inference.pairs.gate import admit
from zoo.data import load
from zoo.vae import VAE

SCHOOLS = (Y, SIGMA)


class Gaussian(nn.Module):
    """A posterior N(mean, covariance) by construction, and a Gaussian guide with given moments."""

    def __init__(self, covariance, scale_tril=None, mean=(0.0, 0.0)):
        super().__init__()
        self.covariance = torch.as_tensor(covariance)
        self.tril = nn.Parameter(
            torch.linalg.cholesky(self.covariance) if scale_tril is None else scale_tril
        )
        self.mean = nn.Parameter(torch.tensor(mean))

    def model(self, x):
        pyro.module("pair", self)
        z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), self.covariance))
        pyro.sample("x", dist.Normal(0 * z[..., 0], 1.0), obs=x)

    def guide(self, x):
        pyro.module("pair", self)
        pyro.sample("z", dist.MultivariateNormal(self.mean, scale_tril=self.tril))


def mean_field(rho):
    """The best mean-field guide of a correlated Gaussian: standard deviations sqrt(1 - rho²)."""
    covariance = torch.tensor([[1.0, rho], [rho, 1.0]])
    return Gaussian(covariance, math.sqrt(1 - rho**2) * torch.eye(2))


X = torch.zeros(())


@pytest.fixture(scope="module")
def centred_fit():
    many = fit_many(centred, centred_mean_field, SCHOOLS, fits=2, elbo=elbo.Trace(8), steps=200,
                    lr=1e-3, jitter=0.0, compile=False)  # fmt: skip
    return diagnose(many, SCHOOLS, coords={"school": NAMES})


def test_centred_eight_schools_is_not_trusted_and_tau_is_named(centred_fit):
    d = centred_fit
    weights = d["importance weights"]
    assert weights.numbers["khat"] > 0.7 and weights.good is False
    assert next(iter(weights.numbers["guilty"])) == "tau"
    assert d.verdict == "do not trust" and not d.trust and d.corrected is None
    assert str(d).startswith("Do not trust this posterior, because")
    assert "The guide's tail is too light in tau" in d.reasons[0]


def test_a_diagnosis_as_text_json_and_figures(centred_fit, tmp_path):
    d = centred_fit
    for name in ("restarts", "correction", "leave-one-out", "worst data", "posterior predictive",
                 "LOO-PIT", "prior sensitivity", "loss"):  # fmt: skip
        assert " ".join(d[name].what.split()) in " ".join(str(d).split())
    assert max(map(len, str(d).splitlines())) <= 100 < max(len(f.what) for f in d.findings)
    read = json.loads(d.to_json(tmp_path / "d.json"))
    assert read == json.loads((tmp_path / "d.json").read_text())
    assert read["verdict"] == "do not trust" and len(read["findings"]) == len(d.findings)
    paths = {p.stem for p in d.plot(tmp_path)}
    assert paths == {"weights", "marginals", "data", "loo-pit", "predictive", "loss"}
    with pytest.raises(KeyError, match="there is importance weights"):
        d["weight"]


def test_the_exact_posterior_is_trusted():
    d = diagnose(Gaussian([[1.0, 0.9], [0.9, 1.0]]), X)
    assert d.trust and d.reasons == [] and d["importance weights"].numbers["khat"] < 0.1


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_moment_matching_finds_the_covariance(rho):
    """The posterior is Gaussian, so an affine map of the guide's draws is exact."""
    d = diagnose(mean_field(rho), X, draws=4_000)
    assert d.verdict == "trust the corrected posterior"
    assert d.correction == ("PSIS" if rho == 0.5 else "moment matching")
    z = d.corrected.posterior.z.values[0]
    size = float(d.corrected.sample_stats.ess.values[0])
    # the correlation's standard error is (1 - rho²) / √n; a resampled draw counts as ess / 4,000
    n = min(size, len(z))
    assert abs(np.corrcoef(z.T)[0, 1] - rho) < 5 * (1 - rho**2) / math.sqrt(n)
    assert (abs(z.std(0) - 1) < 5 / math.sqrt(2 * n)).all()
    assert (abs(z.mean(0)) < 5 / math.sqrt(n)).all()
    assert "sd" in d["means and spreads"].what and d["means and spreads"].good is False
    ratio = d["means and spreads"].numbers["z[0]"]["ratio"]
    assert abs(ratio - math.sqrt(1 - rho**2)) < 5 / math.sqrt(2 * n)


def test_a_single_posterior_that_was_moved_must_pass_twice():
    """Centred eight schools, whose k-hat no affine map makes small: luck is not enough."""
    chain = admit(centred, centred_mean_field, *SCHOOLS)
    limit = good_khat(2_000)
    once, twice = 0, 0
    for seed in range(25):
        with chain.ready(seed):
            pair = blocks(chain, 2_000, [seed, 1]), blocks(chain, 2_000, [seed, 2])
            one, two = (correct(*pair, limit, twice=t) for t in (False, True))
        lucky = bool(one.moved & (one.khat <= limit))
        assert two.khat >= one.khat and (lucky or two.khat == one.khat)
        once, twice = once + lucky, twice + bool(two.moved & (two.khat <= limit))
    assert twice < once


def test_moved_draws_are_weighted_against_the_mixture():
    """The evidence and the moments are known."""
    chain = admit(mean_field(0.9), X)
    with chain.ready(0):
        first, second = blocks(chain, 4_000, 1), blocks(chain, 4_000, 2)
        c = correct(first, second, 0.7)
    assert bool(c.moved) and float(c.khat) < 0.5 and float(c.khat_before) > 0.5
    evidence = -0.5 * math.log(2 * math.pi)
    assert abs(float(log_evidence(c.raw)) - evidence) < 5 * float(evidence_error(c.raw))
    mean, sd = c.moments()
    assert (mean.abs() < 0.1).all() and (abs(sd - 1) < 0.1).all()
    assert resampled(c, 100).shape == (100, 1, 2)


@pytest.mark.parametrize("kind", ["mean-field", "full-rank", "structured", "mixture", "iaf"])
@pytest.mark.parametrize("model", [centred, non_centred])
def test_densities_at_given_coordinates(model, kind):
    """What the guide drew is found again from the latents; half-Cauchy has a Jacobian."""
    chain = admit(model, make_guide(kind, model), *SCHOOLS)
    with chain.ready(0):
        b = blocks(chain, 50)
        p, q = b.densities(b.u)
    assert "tau" in b.names and len(b.names) == 10
    assert b.invertible == (kind not in ("structured", "mixture"))  # theirs depend on each other
    torch.testing.assert_close(p, b.log_p, atol=1e-3, rtol=1e-5)
    if b.invertible:
        torch.testing.assert_close(q, b.log_q, atol=1e-3, rtol=1e-5)


def test_blocks_are_densities_on_the_real_line():
    """The full-rank guide's own density there; weights are the same as in the latents' space."""
    guide = AutoMultivariateNormal(non_centred, init_scale=0.5)
    chain = admit(non_centred, guide, *SCHOOLS)
    with chain.ready(0):
        b = blocks(chain, 200)
        weights = chain.weights(200, b.values(b.u))
    q = chain.guide.get_posterior()
    theirs = q.log_prob(b.u[:, 0].float())[:, None].double()
    torch.testing.assert_close(b.log_q, theirs, atol=1e-4, rtol=1e-6)  # ten terms in float32
    tau = b.u[:, :, b.names.index("tau")]  # log tau: log p gains log tau
    torch.testing.assert_close(b.log_p, weights.log_p().double() + tau, atol=1e-3, rtol=1e-5)


def test_tail_divergence_finds_the_heavy_coordinate():
    """Student-t with 3 degrees of freedom against a normal in one of three coordinates."""
    u = torch.randn(20_000, 1, 3, dtype=torch.float64)
    log_weight = dist.StudentT(3.0).log_prob(u[..., 1]) - dist.Normal(0.0, 1.0).log_prob(u[..., 1])
    kl, where = tail_divergence(u, log_weight)
    assert where.shape == kl.shape == (1, 3)
    assert kl[0].argmax() == 1 and kl[0, 1] > 1  # all of them in the two outer bins: log 5 = 1.6
    one_sided = tail_divergence(u, u[..., 2])
    assert one_sided[0][0].argmax() == 2 and one_sided[1][0, 2] > 0.98
    # the other coordinates play no part: chi-squared with 9 degrees of freedom over 2 M
    m = int(3 * math.sqrt(20_000))
    assert (kl[0, [0, 2]].abs() < 5 * math.sqrt(18) / (2 * m)).all()


@pytest.mark.parametrize(("nu", "scale"), [(3.0, 1.0), (7.0, 0.6)])
def test_tail_index_of_a_student_t_against_a_gaussian(nu, scale):
    """k = 1, whatever the degrees of freedom and the guide's scale.

    With weights w(z) = t(z) / φ(z / s): log w = z² / 2s² - (ν + 1) log z + c, and the guide's own
    probability of exceeding z has -log P = z² / 2s² + log z + c'. So k = d log w / d(-log P) =
    (z² - (ν + 1) s²) / (z² + s²), which is 1 far out. Here beyond z = 100 s: 1 - (ν + 2) / 10⁴.
    """
    draws, m = 40_000, 600
    p = torch.rand(m, 50, dtype=torch.float64)
    z0 = 100.0
    z = torch.sqrt(z0**2 - 2 * p.log())  # φ beyond z0: z² / 2 is exponential, up to 1 / z0²
    log_w = dist.StudentT(nu).log_prob(scale * z) + z**2 / 2
    at = torch.tensor(z0, dtype=torch.float64)
    cut = dist.StudentT(nu).log_prob(scale * at) + at**2 / 2
    body = cut.expand(draws - m, 50)
    found = khat(torch.cat([body, log_w]))
    expected = (m * 1.0 + 5) / (m + 10)  # the estimate is drawn towards 0.5 by ten observations
    se = 2 / math.sqrt(m) / math.sqrt(50)  # (1 + k) / √M, fifty times
    assert abs(found.mean() - expected) < 5 * se
    gaussian = -(z**2) * 0.5 * 0.36 + z**2 / 2  # target with precision 0.36: k = 1 - 0.36
    edge = (-(at**2) * 0.5 * 0.36 + at**2 / 2).expand(draws - m, 50)
    found = khat(torch.cat([edge, gaussian]))
    assert abs(found.mean() - (m * 0.64 + 5) / (m + 10)) < 5 * 1.64 / math.sqrt(m) / math.sqrt(50)


def test_restarts_that_disagree():
    """Two guides on the two modes of a mixture: each has fine weights, R-hat does not."""

    def model(x):
        which = dist.Categorical(torch.ones(2))
        z = pyro.sample(
            "z", dist.MixtureSameFamily(which, dist.Normal(torch.tensor([-5.0, 5.0]), 0.5))
        )
        pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)

    def at(mean):
        return lambda x: pyro.sample("z", dist.Normal(mean, 0.5))

    d = diagnose([(model, at(-5.0)), (model, at(5.0))], X, draws=1_000)
    assert d["importance weights"].good and d["restarts"].good is False
    assert d["restarts"].numbers["rhat"]["z"] > 1.5 and not d.trust
    assert "They differ in z" in d["restarts"].what


def test_loss_that_still_falls():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 100.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    x = 50 + torch.randn(20)
    run = fit(model, AutoNormal(model), x, steps=100, lr=0.1, compile=False, progress=False)
    d = diagnose(run, x, draws=200)
    assert d["loss"].good is False and "resume" in d["loss"].what


class Normals(nn.Module):
    """x_i ~ N(mu, scale), mu ~ N(0, prior): the exact posterior as guide."""

    def __init__(self, scale=1.0, prior=10.0):
        super().__init__()
        self.scale, self.prior = scale, prior

    def model(self, x):
        mu = pyro.sample("mu", dist.Normal(0.0, self.prior))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, self.scale), obs=x)

    def guide(self, x):
        precision = len(x) / self.scale**2 + 1 / self.prior**2
        mean = x.sum() / self.scale**2 / precision
        pyro.sample("mu", dist.Normal(mean, precision**-0.5))


def test_predictive_checks_tell_a_wrong_model():
    x = torch.randn(200)
    good, narrow = (diagnose(Normals(s), x, draws=1_000) for s in (1.0, 0.5))
    assert good.trust and narrow.trust  # the posteriors are exact; it is the model that is wrong
    assert good["LOO-PIT"].good and good["posterior predictive"].good
    assert not narrow["LOO-PIT"].good and not narrow["posterior predictive"].good
    assert "sd(x)" in narrow["posterior predictive"].what


def test_leave_one_out_of_a_conjugate_model():
    """elpd of x_i is N(mean of the others, 1 + their posterior variance), in closed form."""
    x = torch.randn(30).double()
    d = diagnose(Normals(), x, draws=4_000)
    precision = 29 + 0.01
    mean = (x.sum() - x) / precision
    exact = dist.Normal(mean, math.sqrt(1 + 1 / precision)).log_prob(x)
    found = d.evidence["pointwise"].elpd.values
    # 1 / p(x_i | mu) has a relative sd of about |x_i - mean| / √30 under the posterior
    tolerance = 5 * ((x - mean).abs().numpy() / math.sqrt(30) + 1 / 30) / math.sqrt(4_000)
    assert (abs(found - exact.numpy()) < tolerance).all()
    assert d["worst data"].numbers["places"][0] == (int(exact.argmin()),)


def test_loo_pit_of_a_conjugate_model():
    """Left-out x_i is N(mean of the others, 1 + their posterior variance) again."""
    x = torch.tensor([-2.5, -0.5, 0.3, 1.0, 2.0]).double()
    pit = diagnose(Normals(), x, draws=8_000).evidence["pit"]
    precision = 4.01
    mean = (x.sum() - x) / precision
    exact = dist.Normal(mean, math.sqrt(1 + 1 / precision)).cdf(x).numpy()
    # a mean of 8,000 indicators, whose weights cost a factor of ten in effective draws
    assert (abs(pit - exact) < 5 * np.sqrt(exact * (1 - exact) / 800)).all()


def test_worst_data_are_named():
    x = torch.cat([torch.randn(20), torch.tensor([9.0])])
    d = diagnose(Normals(), x, draws=500, coords={"data": [f"row{i}" for i in range(21)]})
    assert d["worst data"].what.startswith("least likely, nats")
    assert "data row20" in d["worst data"].what.split(",")[2 - 1]


def test_prior_data_conflict():
    x = 10 + torch.randn(3).double()
    conflict = diagnose(Normals(prior=1.0), x, draws=4_000)["prior sensitivity"]
    assert not conflict.good and "Prior and data pull apart: mu" in conflict.what
    assert diagnose(Normals(prior=50.0), torch.randn(30).double(), draws=4_000)[
        "prior sensitivity"
    ].good


class Factors(nn.Module):
    """x_i ~ N(W z_i, s² I), z_i ~ N(0, I): a linear VAE whose encoder can be exact, or off.

    The mean-field optimum has the posterior's means and variances 1 / diag(precision).
    """

    def __init__(self, w, noise=1.0, off=0.0, dead=0):
        super().__init__()
        self.w = nn.Parameter(w)  # (D, L)
        self.noise = noise
        precision = torch.eye(w.shape[1]) + w.T @ w / noise**2
        self.precision = precision
        self.encoder = nn.Parameter(torch.linalg.inv(precision) @ w.T / noise**2)  # (L, D)
        self.shift = nn.Parameter(off * precision.diagonal().rsqrt())
        self.log_scale = nn.Parameter(-0.5 * precision.diagonal().log())

    def model(self, x, size=None):
        pyro.module("factors", self)
        with pyro.plate("data", size or len(x), subsample=x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.w.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.w.T, self.noise).to_event(1), obs=x)

    def guide(self, x, size=None):
        pyro.module("factors", self)
        with pyro.plate("data", size or len(x), subsample=x):
            mean = x @ self.encoder.T + self.shift
            pyro.sample("z", dist.Normal(mean, self.log_scale.exp()).to_event(1))


def gap(pair, x, **options):
    return amortization_gap(admit(pair, x), **{"rows": 16, "draws": 400, **options})


def test_gaps_in_closed_form():
    """Means off by d cost dᵀ precision d / 2 nats; mean-field costs half a log-determinant."""
    w = torch.tensor([[1.0, 0.5], [0.0, 1.0], [0.5, 0.5]])
    x = torch.randn(40, 3)
    off = Factors(w, off=0.8)
    found = gap(off, x, steps=200, lr=3e-2)
    amortised, se = found.amortization
    shift = off.shift.detach()
    assert abs(amortised - float(shift @ off.precision @ shift) / 2) < 5 * se + 0.01
    family = 0.5 * (off.precision.diagonal().log().sum() - off.precision.logdet())
    approximation, se = found.approximation
    assert abs(approximation - family) < 5 * se
    exact = gap(Factors(torch.diag(torch.tensor([1.0, 2.0]))), torch.randn(20, 2), steps=50)
    assert abs(exact.amortization.value) < 5 * exact.amortization.se + 1e-3
    assert abs(exact.approximation.value) < 5 * exact.approximation.se + 1e-3
    assert "16 data" in str(exact)


def test_a_refit_leaves_the_model_as_it_is():
    """A guide that uses the model's weights: only what is its own may move, or log p(x) would."""

    class Tied(Factors):
        def guide(self, x, size=None):
            pyro.module("factors", self)
            with pyro.plate("data", size or len(x), subsample=x):
                mean = x @ self.w / 3 + self.shift
                pyro.sample("z", dist.Normal(mean, self.log_scale.exp()).to_event(1))

    pair, x = Tied(torch.tensor([[1.0, 0.5], [0.0, 1.0], [0.5, 0.5]])), torch.randn(16, 3)
    w = pair.w.detach()
    exact = dist.MultivariateNormal(torch.zeros(3), torch.eye(3) + w @ w.T).log_prob(x)
    found = gap(pair, x, steps=200, lr=3e-2)
    # with mean-field weights of k-hat below a half, 400 draws leave a hundredth of a nat or so
    assert abs(float((found.log_px - exact).mean())) < 0.05


def test_gaps_are_refused_where_there_are_none():
    with pytest.raises(ValueError, match="outside the data plate"):
        gap(Normals(), torch.randn(5))
    pair = Factors(torch.eye(2))
    for p in pair.parameters():
        p.requires_grad_(False)
    pair.eval()
    with pytest.raises(ValueError, match="no parameters of its own"):
        gap(pair, torch.randn(5, 2))


def test_an_amortised_guide_datum_by_datum():
    w = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])  # z[2] does nothing
    x = torch.randn(60, 3) + torch.randn(60, 3) @ w.T
    d = diagnose(Factors(w), x, gap=0)
    assert d.trust and d["importance weights"].numbers["khat"].shape == (60,)
    assert d["latents"].numbers["z"]["active"] == 2 and not d["latents"].good
    assert d["worst data"].good is None
    mean = d.corrected.posterior.z.mean("draw").values[0]
    exact = (x @ Factors(w).encoder.T).detach().numpy()
    sd = Factors(w).precision.diagonal().rsqrt().numpy()
    assert (abs(mean - exact) < 6 * sd / math.sqrt(1_000)).all()
    assert d.corrected.sample_stats.khat.shape == (1, 60)
    # one scale in the guide, too small by half: k = 1 - 1/4 in each direction
    narrow = Factors(w)
    narrow.log_scale.data -= math.log(2)
    d = diagnose(narrow, x, gap=0)
    assert not d.trust and d.correction == "moment matching"
    assert "z[2] (sd" in d["means and spreads"].what and "too small" in d["means and spreads"].what
    # weights of k-hat 0.75 miss some of the tail, so that the corrected sd is a little low
    ratio = [v["ratio"] for v in d["means and spreads"].numbers.values()]
    assert all(0.45 < r < 0.55 for r in ratio)


def test_a_collapsed_layer():
    d = diagnose(Factors(torch.zeros(3, 2)), torch.randn(30, 3), gap=0)
    assert "Collapsed: z" in d["latents"].what


def test_images_are_shown():
    x = load("digits").test[:20]
    figures = diagnose(VAE(64, latent_dim=2, hidden=(10,)), x, draws=100, gap=4).figures()
    assert {"worst-data", "gaps", "latents", "weights", "data"} <= set(figures)


def test_pairs_that_cannot_be_corrected():
    def model(x):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        pyro.sample("k", dist.Bernoulli(0.5))

    d = diagnose(model, guide, torch.randn(5), draws=100)
    assert "no correction made, because 'k' is discrete" in d["importance weights"].what
    assert d.corrected is None


def scalar(x):
    pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)


@pytest.mark.parametrize(
    "guide",
    [
        lambda x: pyro.sample("z", dist.Delta(x / 2)),
        lambda x: pyro.sample("z", dist.Delta(x / 2 + 0.7 * torch.randn(x.shape))),
        lambda x: pyro.sample("z", dist.Normal(x / 2, 1e-12)),
    ],
    ids=["point", "own noise", "all draws the same"],
)
def test_weights_that_mean_nothing_do_not_earn_trust(guide):
    d = diagnose(scalar, guide, torch.tensor(0.7), draws=100)
    assert d.verdict == "do not trust" and d["importance weights"].good is False
    assert "no estimate, because" in d["importance weights"].what and "nan" not in str(d)


def test_a_model_without_plates():
    d = diagnose(scalar, lambda x: pyro.sample("z", dist.Normal(x / 2, 0.5**0.5)), X, draws=100)
    assert d.trust and "equal weights" in d["importance weights"].what


def test_an_elpd_that_is_none_is_not_good():
    """A density that is not a number used to end in elpd nan ± nan, and a good mark."""
    tree = to_datatree(Normals(), torch.randn(5), draws=100)
    tree.log_likelihood.x[:] = math.nan
    found, pointwise = leave_one_out(tree)
    assert found.good is None and "no estimate, because" in found.what and pointwise is None
    d = diagnose(Normals(), torch.zeros(1), draws=100)  # one observation has no standard error
    assert d["leave-one-out"].good is None and "no estimate" in d["leave-one-out"].what
    assert "nan" not in str(d)


@pytest.mark.parametrize("options", [{"draws": 1}, {"draws": 24}, {"draws": 2.5}, {"gap": -1}])
def test_counts_out_of_range(options):
    with pytest.raises(ValueError, match="expected a whole number of at least"):
        diagnose(scalar, lambda x: pyro.sample("z", dist.Normal(0.0, 1.0)), X, **options)


def test_without_latents_there_is_no_posterior():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("m", torch.zeros(())), 1.0), obs=x)

    with pytest.raises(ValueError, match="the guide draws no latent"):
        diagnose(model, lambda x: None, torch.randn(5))


@pytest.mark.slow
def test_the_gap_closes_when_the_encoder_is_replaced_by_parameters():
    """A converged digits VAE; then its decoder with free means and scales for each datum."""
    digits = load("digits", pixels="static")
    run = fit(VAE(64, latent_dim=8), digits, steps=4_000, lr=2e-3, schedule="cosine",
              compile=False, progress=False)  # fmt: skip
    x = digits.test[:32]
    encoder = amortization_gap(admit(run, x), draws=2_000)
    assert encoder.amortization.value > 5 * encoder.amortization.se
    vae = run.pair

    class PerDatum(nn.Module):
        def __init__(self):
            super().__init__()
            self.vae = vae
            for p in vae.decoder.parameters():
                p.requires_grad_(False)
            self.mean = nn.Parameter(vae.encode(x).clone())
            self.log_scale = nn.Parameter(torch.full_like(self.mean, -1.0))

        def model(self, x, row):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(8), 1.0).to_event(1))
                pyro.sample("x", vae.likelihood(vae.decoder(z)), obs=x)

        def guide(self, x, row):
            pyro.param("mean", self.mean)
            pyro.param("log_scale", self.log_scale)
            with pyro.plate("data", len(x)):
                scale = self.log_scale[row].exp()
                pyro.sample("z", dist.Normal(self.mean[row], scale).to_event(1))

    rows = torch.arange(32)
    free = fit(PerDatum(), (x, rows), elbo=elbo.Trace(16), steps=3_000, lr=2e-2, schedule="cosine",
               compile=False, progress=False)  # fmt: skip
    found = amortization_gap(admit(free, x, rows), draws=2_000)
    gap, se = found.amortization
    assert abs(gap) < 3 * se + 0.01 and gap < encoder.amortization.value / 10
    # and both refits end at the same place: the best of the family
    assert abs((found.local - encoder.local).mean()) < 0.05


@pytest.mark.slow
def test_the_example_of_eight_schools_runs(tmp_path, capsys):
    main = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "eight_schools.py"))["main"]
    found = main(steps=30, guides=["mean-field"], out=str(tmp_path / "table.png"))
    assert set(found) == {"centred mean-field", "non_centred mean-field"}
    said = capsys.readouterr().out
    assert all(d.verdict in said for d in found.values()) and (tmp_path / "table.png").is_file()


@pytest.mark.slow
def test_eight_schools_against_the_reference(zoo_data):
    """Errors in reference standard deviations; the table of examples/eight_schools.py."""

    def diagnosed(model, guide):
        many = fit_many(model, guide(model), SCHOOLS, fits=4, elbo=elbo.Trace(16),
                        steps=4_000, lr=0.02, schedule="cosine", compile=True)  # fmt: skip
        return diagnose(many, SCHOOLS, draws=20_000)

    for guide in (AutoNormal, AutoMultivariateNormal):
        d = diagnosed(centred, guide)
        assert d["importance weights"].numbers["khat"] > 0.7
        assert d.verdict == "do not trust"
        assert "tau" in d["importance weights"].numbers["guilty"]
    d = diagnosed(non_centred, AutoMultivariateNormal)
    for name, values in reference(zoo_data).items():
        found = d.corrected.posterior[name].values.reshape(-1, *values.shape[1:])
        sd = values.std(0)
        assert (abs(found.mean(0) - values.mean(0)) < 0.1 * sd).all(), name
        assert (abs(found.std(0) / sd - 1) < 0.1).all(), name
