"""Flows against autodiff, quadrature and the entropy of a Gaussian."""

import copy
import math
import runpy
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pair_contract import check_pair
from torch import nn
from torch.func import functional_call, jacrev, vmap

from inference import elbo, fit, log_weights
from inference.networks import ActivationNorm, Dropout, LULinear, Permutation
from inference.optim import AdamW
from zoo.flows import (
    IAF,
    MAF,
    Affine,
    Autoregressive,
    ConditionalFlow,
    Coupling,
    NeuralSplineFlow,
    RationalQuadratic,
    RealNVP,
)
from zoo.flows.noise import StudentMixture

FLOWS = {
    "RealNVP": lambda d, **kw: RealNVP(d, layers=4, **kw),
    "MAF": lambda d, **kw: MAF(d, layers=3, **kw),
    "spline autoregressive": lambda d, **kw: NeuralSplineFlow(d, layers=2, **kw),
    "spline coupling": lambda d, **kw: NeuralSplineFlow(d, layers=2, transform="coupling", **kw),
    "MAF with LU": lambda d, **kw: MAF(d, layers=2, linear="lu", **kw),
    "RealNVP permuted": lambda d, **kw: RealNVP(d, layers=2, linear="permutation", **kw),
}
TRANSFORMS = {
    "affine coupling": lambda: Coupling(5, Affine()),
    "affine coupling, swapped": lambda: Coupling(5, Affine(), swap=True),
    "spline coupling": lambda: Coupling(5, RationalQuadratic()),
    "affine autoregressive": lambda: Autoregressive(5, Affine()),
    "spline autoregressive": lambda: Autoregressive(5, RationalQuadratic(), order="reversed"),
    "random order": lambda: Autoregressive(5, Affine(), order="random", seed=3),
    "affine conditioner": lambda: Autoregressive(5, Affine(), hidden=()),
    "one variable": lambda: Autoregressive(1, RationalQuadratic(bins=2)),
}


def far_from_identity(module, sd=0.15):
    """In float64, every parameter moved by N(0, sd²): a transform starts as the identity."""
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p += sd * torch.randn_like(p)
    return module


@pytest.fixture(params=FLOWS)
def flow(request):
    return far_from_identity(FLOWS[request.param](4, hidden=(16, 16)))


@pytest.fixture(params=TRANSFORMS)
def transform(request):
    return far_from_identity(TRANSFORMS[request.param]())


def rows_for(transform, n=64):
    """Inside the splines' interval and, some of them, outside."""
    known = transform.net
    d = known.rank.numel() if isinstance(transform, Autoregressive) else sum(transform.sizes)
    return 3 * torch.randn(n, d, dtype=torch.float64)


def test_inverse_and_log_determinant_equal_autodiff(transform):
    x = rows_for(transform)
    y, ladj = transform.call_and_ladj(x)
    back, ladj_back = transform.inv_and_ladj(y)
    assert (y - x).abs().max() > 0.1  # not the identity
    # Rounding, 1e-15, grows by at most the slopes' range within a spline's bin, about 1e5 here.
    assert torch.allclose(back, x, rtol=0, atol=1e-10)
    assert torch.allclose(ladj_back, ladj, rtol=0, atol=1e-10)
    exact = vmap(jacrev(lambda v: transform.call_and_ladj(v)[0]))(x).slogdet()
    assert torch.allclose(ladj, exact.logabsdet, rtol=0, atol=1e-12)
    assert (exact.sign == 1).all()
    assert torch.equal(transform.log_abs_det_jacobian(x, y), ladj)


def test_a_flow_is_inverted_through_all_its_layers(flow):
    x = 3 * torch.randn(100, 4, dtype=torch.float64)
    u = x
    for t in flow.transforms:
        u = t(u)
    back = u
    for t in reversed(list(flow.transforms)):
        back = t.inv(back)
    assert torch.allclose(back, x, rtol=0, atol=1e-9)


def test_an_untrained_flow_is_the_standard_normal(flow):
    fresh = type(flow)(4).double()
    x = 3 * torch.randn(50, 4, dtype=torch.float64)
    normal = dist.Normal(torch.zeros(4, dtype=torch.float64), 1.0).to_event(1)
    assert torch.allclose(fresh.log_prob(x), normal.log_prob(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FLOWS)
def test_the_density_integrates_to_one(name):
    flow = far_from_identity(FLOWS[name](2, hidden=(8, 8), act="tanh"), sd=0.1)

    @torch.no_grad()
    def mass(points):  # trapezoid rule; the density vanishes at the border
        axis = torch.linspace(-10, 10, points, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        return (flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2).item()

    coarse, middle, fine = mass(121), mass(241), mass(481)
    # A spline's density has kinks, so the rule's error falls with the spacing squared: what the
    # first halving changed is 3/4 of the coarse error, and 1/16 of that error is left.
    halving = abs(middle - coarse)
    assert halving < 5e-3
    assert abs(fine - 1) < halving / 4 + 1e-10


# the permutation that seed 1 draws
RANDOM = torch.randperm(4, generator=torch.Generator().manual_seed(1)).argsort().tolist()


@pytest.mark.parametrize(
    "order, ranked",
    [
        ("natural", [0, 1, 2, 3]),
        ("reversed", [3, 2, 1, 0]),
        ("random", RANDOM),
        ([2, 0, 3, 1], [2, 0, 3, 1]),
    ],
)
@pytest.mark.parametrize("univariate", [Affine(), RationalQuadratic()])
def test_an_autoregressive_jacobian_is_triangular(order, ranked, univariate):
    t = far_from_identity(Autoregressive(4, univariate, hidden=(32,), order=order, seed=1))
    jacobian = jacrev(lambda v: t.call_and_ladj(v)[0])(torch.randn(4, dtype=torch.float64))
    by_order = t.net.rank.argsort()
    jacobian = jacobian[by_order][:, by_order]
    assert (jacobian.triu(1) == 0).all()
    assert (jacobian.diagonal() > 0).all()
    assert (jacobian.tril(-1)[torch.ones(4, 4).tril(-1).bool()] != 0).all()
    assert by_order.tolist() == ranked


def test_a_spline_is_the_identity_outside_of_its_interval():
    spline = RationalQuadratic(bins=5, bound=2.0)
    x = torch.tensor([-1e200, -2.0, 2.0, 3.5], dtype=torch.float64).repeat(200, 1)
    h = 3 * torch.randn(200, spline.outputs, 4, dtype=torch.float64)
    x.requires_grad = True
    for function in (spline.forward, spline.inverse):
        x.grad, h.grad, h.requires_grad = None, None, True
        y, log_slope = function(x, h)
        assert torch.equal(y, x) and (log_slope == 0).all()
        (y + log_slope).sum().backward()
        assert (x.grad == 1).all() and (h.grad == 0).all()  # and no NaN


def test_a_spline_meets_its_knots_and_slopes():
    spline = RationalQuadratic(bins=4, bound=3.0)
    h = torch.randn(1, spline.outputs, 1, dtype=torch.float64)
    share = lambda v: 6.0 * (1e-3 + (1 - 4e-3) * v.softmax(0))  # noqa: E731
    x = share(h[0, :4, 0]).cumsum(0)[:-1, None] - 3.0  # the inner knots
    y = share(h[0, 4:8, 0]).cumsum(0)[:-1, None] - 3.0
    slope = h[0, 8:] / (1 + h[0, 8:].abs() / 7)  # logarithms
    got, log_slope = spline.forward(x, h)
    assert torch.allclose(got, y, rtol=0, atol=1e-12)
    assert torch.allclose(log_slope, slope, rtol=0, atol=1e-12)


def test_particles_and_batches_broadcast(flow):
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    together = flow.log_prob(x)
    assert together.shape == (3, 5)
    apart = torch.stack([flow.log_prob(row) for row in x.reshape(15, 4)]).reshape(3, 5)
    assert torch.allclose(together, apart, rtol=0, atol=1e-12)
    assert flow.sample(7).shape == (7, 4)


def test_a_flow_is_a_pair(flow):
    check_pair(flow, torch.randn(6, 4, dtype=torch.float64), latents=[])


def test_transforms_work_in_a_plain_transformed_distribution(flow):
    x = torch.randn(9, 4, dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    steps = [t.inv for t in reversed(list(flow.transforms))]
    plain = dist.TransformedDistribution(dist.Normal(zero, 1.0).to_event(1), steps)
    assert torch.allclose(plain.log_prob(x), flow.log_prob(x), rtol=0, atol=1e-12)
    cached = [t.with_cache(1).inv for t in reversed(list(flow.transforms))]
    plain = dist.TransformedDistribution(dist.Normal(zero, 1.0).to_event(1), cached)
    assert torch.equal(plain.log_prob(x), flow.log_prob(x))


def passes(module):
    """Counts the passes through a module's networks."""
    count = [0]
    for t in module.transforms:
        getattr(t, "net", t).register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    return count


def test_a_density_is_one_pass_per_layer(flow):
    count = passes(flow)
    flow.log_prob(torch.randn(3, 4, dtype=torch.float64))
    assert count[0] == sum(hasattr(t, "net") for t in flow.transforms)


def test_a_draw_and_its_density_are_one_pass_per_layer():
    iaf = far_from_identity(IAF(4, layers=3))
    count = passes(iaf)
    q = iaf()
    z = q.rsample((10,))
    value = q.log_prob(z)
    assert count[0] == 3
    other = iaf().log_prob(z.clone())
    assert count[0] == 3 + 3 * 4  # a value from elsewhere: one pass for each dimension
    assert torch.allclose(value, other, rtol=0, atol=1e-10)


def step_in_place(module):
    opt = torch.optim.Adam(module.parameters(), lr=0.1)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    opt.step()


def test_what_a_distribution_remembers_does_not_outlive_a_step():
    iaf = far_from_identity(IAF(3))
    q = iaf()
    z = q.rsample((5,))
    step_in_place(iaf)
    assert torch.allclose(q.log_prob(z), iaf().log_prob(z.clone()), rtol=0, atol=1e-10)

    z = q.rsample((5,))
    other = {k: v.detach().clone() for k, v in iaf.named_parameters()}
    for k, v in iaf.named_parameters():  # other tensors of the same version
        while other[k]._version < v._version:
            other[k] += 0.1
    swapped = functional_call(_Score(iaf, q), {f"iaf.{k}": v for k, v in other.items()}, (z,))
    fresh = functional_call(_Score(iaf, None), {f"iaf.{k}": v for k, v in other.items()}, (z,))
    assert torch.equal(swapped, fresh)
    assert not torch.allclose(swapped, iaf().log_prob(z))


class _Score(nn.Module):
    def __init__(self, iaf, q):
        super().__init__()
        self.iaf, self.q = iaf, q

    def forward(self, z):
        return (self.q or self.iaf()).log_prob(z)


def test_a_density_is_never_stale(flow):
    x = torch.randn(5, 4, dtype=torch.float64)
    p = flow.distribution()
    before = p.log_prob(x)
    step_in_place(flow)
    assert torch.equal(p.log_prob(x), flow.log_prob(x.clone()))
    assert not torch.allclose(p.log_prob(x), before)
    y = p.rsample((5,))
    for parameter in flow.parameters():  # as optimisers that write through .data do
        parameter.data = parameter.data + 0.1
    assert torch.equal(flow.log_prob(y), flow.log_prob(y.clone()))


def test_a_used_flow_can_be_copied(flow):
    flow.log_prob(torch.randn(2, 4, dtype=torch.float64))
    flow.transforms[0].inv  # noqa: B018 - torch keeps the inverse with the transform
    twin = copy.deepcopy(flow)
    x = torch.randn(2, 4, dtype=torch.float64)
    assert torch.equal(twin.log_prob(x), flow.log_prob(x))
    step_in_place(twin)
    assert not torch.equal(twin.log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "MAF" else pytest.mark.slow) for n in FLOWS]
)
def test_a_fit_reaches_the_entropy_of_a_correlated_gaussian(name):
    rho, n = 0.8, 2_000
    noise = torch.randn(2, 20 * n, 2)  # enough that nothing is learned by heart
    draws = torch.stack(
        [noise[..., 0], rho * noise[..., 0] + math.sqrt(1 - rho**2) * noise[..., 1]], -1
    )
    data = FLOWS[name](2, hidden=(16,))
    run = fit(
        data, draws[0], steps=250, lr=1e-2, batch_size=500, schedule="cosine",
        compile=False, progress=False,
    )  # fmt: skip
    with torch.no_grad():
        nats = run.pair.log_prob(draws[1, :n])
    entropy = math.log(2 * math.pi * math.e) + 0.5 * math.log(1 - rho**2)
    independent = math.log(2 * math.pi * math.e)  # what the untrained flow would reach
    error = nats.std() / math.sqrt(n)
    assert abs(nats.mean() + entropy) < 3 * error
    assert nats.mean() + independent > 3 * error


class Ridge(nn.Module):
    """z ~ N(0, I), x | z ~ N(z_1 + z_2, 0.25²) for one x: a posterior of correlation -0.94."""

    def __init__(self, latent_dim=2, hidden=(16,)):
        super().__init__()
        self.flow = IAF(latent_dim, layers=2, hidden=hidden)

    def model(self, x, size=None):
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 0.25).to_event(1), obs=x)

    def guide(self, x, size=None):
        pyro.module("ridge", self)
        with pyro.plate("data", size or x.shape[-2], subsample=x):
            pyro.sample("z", self.flow())


def test_an_iaf_guide_is_a_pair():
    pair = far_from_identity(Ridge(), sd=0.2)
    check_pair(pair, torch.tensor([[0.7], [-0.2]], dtype=torch.float64), latents=["z"])


@pytest.mark.slow
def test_an_iaf_guide_closes_the_gap_that_a_mean_field_leaves():
    x = torch.full((1, 1), 0.7)
    evidence = dist.Normal(0.0, math.sqrt(2 + 0.25**2)).log_prob(x).item()
    precision = torch.eye(2) + torch.ones(2, 2) / 0.25**2
    # KL of the best factorised Gaussian, whose precisions are the diagonal's.
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    run = fit(
        Ridge(), x, elbo=elbo.Trace(particles=64), steps=300, lr=1e-2,
        compile=False, progress=False,
    )  # fmt: skip
    with torch.no_grad():
        weights = log_weights(run.model, run.guide, x, particles=4_000).log_weight()
    error = weights.std().item() / math.sqrt(weights.numel())
    assert weights.mean().item() < evidence + 3 * error
    assert weights.mean().item() > evidence - gap / 10


@pytest.mark.parametrize(
    ("make", "moved"),
    [
        (lambda: Autoregressive(1, RationalQuadratic(), act="tanh", context_dim=2), 1),
        (lambda: Autoregressive(4, Affine(), act="tanh", context_dim=2), 4),
        (lambda: Autoregressive(6, Affine(), hidden=(3,), act="tanh", context_dim=2), 6),
        (lambda: Coupling(4, Affine(), act="tanh", context_dim=2), 2),
    ],
)
def test_a_context_reaches_every_variable_that_moves(make, moved):
    t = far_from_identity(make())
    x, context = torch.randn(3, 6, dtype=torch.float64)[:, :4], torch.randn(3, 2).double()
    x = rows_for(t, 3) if isinstance(t, Autoregressive) else x
    y, ladj = t.call_and_ladj(x, context)
    back, again = t.inv_and_ladj(y, context)
    assert torch.allclose(back, x, atol=1e-10) and torch.allclose(again, ladj, atol=1e-10)
    by_context = vmap(jacrev(lambda c, v: t.call_and_ladj(v, c)[0]))(context, x)
    reached = (by_context != 0).all(0).all(-1)
    assert reached.sum() == moved


def test_context_is_broadcast_over_particles():
    iaf = far_from_identity(IAF(3, context_dim=2))
    context = torch.randn(5, 2, dtype=torch.float64)
    base = dist.Normal(torch.randn(5, 3, dtype=torch.float64), 0.5).to_event(1)
    q = iaf(base, context)
    z = q.rsample((4,))
    assert z.shape == (4, 5, 3)
    rows = [
        iaf(dist.Normal(base.mean[i], 0.5).to_event(1), context[i]).log_prob(z[:, i])
        for i in range(5)
    ]
    assert torch.allclose(q.log_prob(z), torch.stack(rows, 1), rtol=0, atol=1e-10)
    assert not torch.allclose(iaf(base, context + 1).log_prob(z), q.log_prob(z))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: RealNVP(1), "at least 2 dimensions"),
        (lambda: NeuralSplineFlow(1, transform="coupling"), "transform='autoregressive'"),
        (lambda: RealNVP(4, layers=0), "layers: expected"),
        (lambda: MAF(4, layers=0), "layers: expected"),
        (lambda: IAF(4, layers=0), "layers: expected"),
        (lambda: NeuralSplineFlow(4, bins=1), "bins: expected at least 2"),
        (lambda: NeuralSplineFlow(4, bins=1000), "do not fit"),
        (lambda: NeuralSplineFlow(4, bound=0.0), "bound: expected a positive"),
        (lambda: NeuralSplineFlow(4, transform="glow"), "transform: expected"),
        (lambda: Autoregressive(3, Affine(), order=[0, 1, 1]), "order: expected each of 0 .. 2"),
        (lambda: Autoregressive(3, Affine(), order="sorted"), "order: expected natural"),
        (lambda: IAF(3, context_dim=2)(), "context: "),
        (lambda: IAF(3)(context=torch.zeros(2)), "context: "),
        (lambda: MAF(3).model(torch.zeros(5, 2)), "data_dim = 3"),
        (lambda: MAF(2).validate(torch.full((5, 2), math.nan)), "NaN"),
    ],
)
def test_bad_input_is_refused_with_the_fix(call, words):
    with pytest.raises(ValueError, match=words):
        call()


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_the_example_of_two_densities_runs(tmp_path):
    main = runpy.run_path(str(EXAMPLES / "flow_moons.py"))["main"]
    runs = main(steps=10, out=str(tmp_path / "picture.png"))
    assert [len(run.losses) for run in runs] == [10, 10]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_example_of_a_flow_guide_runs(tmp_path):
    main = runpy.run_path(str(EXAMPLES / "flow_guide.py"))["main"]
    gaps = main(steps=100, out=str(tmp_path / "picture.png"))
    assert all(gap > -3 * error for gap, error in gaps.values())  # no bound above the evidence
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("make", [MAF, RealNVP, NeuralSplineFlow])
def test_a_flow_with_matrices_begins_at_the_gaussian_of_best_fit(make):
    """Layers start at the identity, so the matrix alone makes the density: N(mean, covariance)."""
    x = (torch.randn(300, 4) @ torch.randn(4, 4) + 3).double()
    flow = make(4, layers=2, linear="lu").double()
    flow.initialise(x)
    best = dist.MultivariateNormal(x.mean(0), torch.cov(x.mT, correction=0))
    # splines leave what is beyond their bound of 5 standard deviations alone too
    torch.testing.assert_close(flow.log_prob(x), best.log_prob(x), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="linear: expected none, norm"):
        make(4, linear="plu")


@pytest.mark.parametrize("make", [ActivationNorm, Permutation, LULinear])
def test_linear_layers_are_inverted_and_their_determinant_is_autodiffs(make):
    torch.manual_seed(0)
    layer, x = far_from_identity(make(5)), torch.randn(20, 5, dtype=torch.float64)
    y, ladj = layer.call_and_ladj(x)
    back, ladj_back = layer.inv_and_ladj(y)
    assert (y - x).abs().max() > 0.1
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(ladj, ladj_back, rtol=0, atol=0)
    exact = vmap(jacrev(lambda v: layer.call_and_ladj(v)[0]))(x).slogdet().logabsdet
    torch.testing.assert_close(ladj, exact, rtol=0, atol=1e-12)


def test_the_noise_of_student_components_is_the_mixture_of_scipys():
    from scipy.stats import multivariate_t

    torch.manual_seed(0)
    loc, df = torch.randn(2, 3).double(), torch.tensor([3.0, 9.0]).double()
    factor = torch.randn(2, 3, 3).double().tril(-1) + torch.rand(2, 3).double().exp().diag_embed()
    noise = StudentMixture(torch.tensor([0.0, 1.0]).double(), loc, factor, df)
    u = torch.randn(5, 3).double()
    weights = torch.tensor([0.0, 1.0]).double().softmax(0)
    shapes = torch.linalg.inv(factor.mT @ factor)
    parts = [w * multivariate_t(m.numpy(), s.numpy(), float(v)).pdf(u.numpy())
             for w, m, s, v in zip(weights.tolist(), loc, shapes, df)]  # fmt: skip
    truth = torch.from_numpy(sum(parts)).log()
    torch.testing.assert_close(noise.log_prob(u), truth, atol=1e-10, rtol=0)
    assert torch.equal(noise.expand((5,)).log_prob(u), noise.log_prob(u))
    draws = noise.sample((40_000,))
    mean = (weights[:, None] * loc).sum(0)
    se = draws.std(0) / 200
    assert ((draws.mean(0) - mean).abs() < 5 * se).all()


def test_a_flow_with_students_begins_at_the_mixture_and_weight_decay_keeps_it_there():
    x = torch.cat([torch.randn(150, 2) - 4, torch.randn(150, 2) * torch.tensor([0.2, 1.0]) + 4])
    flow = MAF(2, layers=2, hidden=(8,), linear="lu", students=2)
    flow.initialise(x, torch.tensor([[-4.0, -4], [4, 4]]))
    start = flow.log_prob(x)
    one = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.mT))
    assert start.mean() > one.log_prob(x).mean() + 1  # two clusters are no Gaussian
    run = fit(flow, x, steps=60, batch_size=300, compile=False, progress=False,
              optimiser=AdamW(0.05, weight_decay=19.0))  # fmt: skip
    held = fit(flow, x, steps=60, batch_size=300, compile=False, progress=False,
               optimiser=AdamW(0.05))  # fmt: skip
    assert (run.pair.log_prob(x) - start).abs().mean() < (
        held.pair.log_prob(x) - start
    ).abs().mean()


def test_mistakes_of_students_are_one_sentence():
    with pytest.raises(ValueError, match=r"students: expected 0 \(normal noise\) or more, got -1"):
        MAF(2, students=-1)
    with pytest.raises(ValueError, match="students: expected at most one per datum, got 3 for 2"):
        MAF(2, students=3).initialise(torch.randn(2, 2))


def test_dropout_is_of_steps_alone():
    flow = MAF(3, layers=1, hidden=(32,), dropout=0.5)
    twin = MAF(3, layers=1, hidden=(32,))
    with torch.no_grad():
        for p, q in zip(flow.parameters(), twin.parameters()):
            q.copy_(p.normal_(0, 0.5))
    x = torch.randn(64, 3)
    assert torch.equal(flow.log_prob(x), twin.log_prob(x))
    runs = [fit(f, x, steps=1, batch_size=64, compile=False, progress=False, lr=1e-9)
            for f in (flow, twin)]  # fmt: skip
    assert runs[0].losses[0] != runs[1].losses[0]  # a step left units out
    torch.testing.assert_close(runs[0].pair.log_prob(x), runs[1].pair.log_prob(x))
    assert not any(m.training for m in runs[0].pair.modules() if isinstance(m, Dropout))
    with pytest.raises(ValueError, match="dropout: expected a probability below 1, got 1"):
        MAF(3, dropout=1.0)


@pytest.mark.slow
def test_dropout_and_student_noise_are_compiled():
    x = torch.randn(256, 3)
    flow = MAF(3, layers=2, hidden=(16,), linear="lu", students=2, dropout=0.3)
    flow.initialise(x)
    runs = [fit(flow, x, steps=20, batch_size=64, compile=c, progress=False) for c in (True, False)]
    assert runs[0].compiled
    assert runs[0].losses == pytest.approx(runs[1].losses, abs=1e-4)


def test_a_conditional_flow_is_a_density_for_each_condition():
    """It integrates to one under known and unknown attributes, which are not the same density."""
    torch.manual_seed(0)
    flow = ConditionalFlow(2, binary=1, real=1, layers=2, hidden=(8,)).double()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.3)
    axis = torch.linspace(-9, 9, 181, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    conditions = torch.tensor([[1.0, 0.5], [0.0, -1.0], [torch.nan, torch.nan]]).double()
    densities = [flow.log_prob(grid, y.expand(len(grid), 2)).exp().detach() for y in conditions]
    for p in densities:
        assert abs(float(p.sum() * 0.1**2) - 1) < 1e-3
    assert (densities[0] - densities[2]).abs().max() > 1e-3
    assert flow.sample(5, conditions[0]).shape == (5, 2) and flow.sample(3).shape == (3, 2)
    with pytest.raises(ValueError, match="2 attributes"):
        flow.validate(grid[:5], conditions[:1, :1].expand(5, 1))
