from concurrent.futures import ThreadPoolExecutor

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from inference import elbo, fit, optim
from inference.graph import TraceFailure
from inference.pairs.pair import Pair
from inference.training.proof import Proof
from inference.training.steps import RETRACES, CompiledStep, EagerStep
from inference.training.update import Update, Variables
from zoo.vae import VAE

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
S = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
LR = torch.tensor(0.01)


def schools(y, s):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("J", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, s), obs=y)


def steps_of(update, repeats=1):
    one, two = (Variables.start(update.pair, update.optimiser) for _ in range(2))
    return EagerStep(update, one, LR), CompiledStep(update, two, LR, repeats)


def schools_update():
    return Update(Pair(schools, AutoNormal(schools), (Y, S)), elbo.Trace(), optim.Adam(), clip=5.0)


def test_compiled_equals_eager_step_for_step():
    x = torch.bernoulli(torch.full((30, 12), 0.3))
    vae = VAE(12, 2, hidden=(8,))
    pair = Pair(vae.model, vae.guide, (x[:10],))
    eager, compiled = steps_of(Update(pair, elbo.IWAE(3), optim.Adam(), divide=10, clip=1.0))
    for step in (eager, compiled):
        if step is compiled:
            compiled(((x[:10]),))  # traces and proves; then from the start
            compiled.variables.assign(Variables.start(pair, compiled.update.optimiser))
        torch.manual_seed(3)
        step.losses = [float(step((x[10 * (i % 3) : 10 * (i % 3) + 10],))) for i in range(6)]
    assert eager.losses == pytest.approx(compiled.losses, rel=1e-5)
    assert len(compiled._ready) == 1  # one trace for six steps
    for k, p in eager.variables.params.items():
        torch.testing.assert_close(compiled.variables.params[k], p, rtol=1e-4, atol=1e-5)
    compiled((x[:7],))  # a smaller last batch: one more trace, not an error
    compiled((x[7:14],))
    assert len(compiled._ready) == 2


def test_several_updates_in_one_call():
    _, many = steps_of(schools_update(), repeats=3)
    losses = many((Y, S))
    assert losses.shape == (3,)
    assert int(many.variables.count) == 3
    first, second = losses, many((Y, S))
    assert not torch.equal(first, second)  # fresh noise at every call
    assert len(set(first.tolist())) == 3  # and within one


@pytest.mark.slow
def test_the_count_passes_the_whole_numbers_of_float32():
    """2^24 + 1 is no float32: a count of that type would stand still, and schedules with it."""
    update = schools_update()
    update.schedule = lambda count: count.mul(0.5).cos()  # of a float
    for step in steps_of(update):
        step.variables.count.fill_(2**24)
        step((Y, S))
        assert step.variables.count.item() == 2**24 + 1
        assert all(p.isfinite().all() for p in step.variables.params.values())


@pytest.mark.slow
def test_a_mixture_with_summed_out_assignments_compiles():
    x = torch.randn(50, 2)

    def mixture(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("components", 3):
            means = pyro.sample("means", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(means[k], 1.0).to_event(1), obs=x)

    guide = AutoNormal(pyro.poutine.block(mixture, hide=["k"]))
    run = fit(mixture, guide, (x,), steps=5, compile=True, progress=False)
    assert run.compiled, run.eager_because


def test_a_pair_that_reads_a_value_goes_on_eagerly_and_says_why(capfd):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def model(self, x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(z if z.item() > 0 else -z, 1.0), obs=x)

        def guide(self, x):
            pyro.module("pair", self)
            pyro.sample("z", dist.Normal(self.loc, 1.0))

    run = fit(Branching(), Y, steps=4, compile=True, check=False)
    assert not run.compiled
    assert "read on the host" in run.eager_because and "test_step.py" in run.eager_because
    assert "eager steps: " in capfd.readouterr().err
    assert "z.item()" in run.eager_because and "near site" in run.eager_because


@pytest.fixture
def nothing_known(monkeypatch, tmp_path):
    """No program was compiled before."""
    monkeypatch.setattr("inference.graph.store._KNOWN", {})
    monkeypatch.setattr("inference.graph.store.folder", lambda: tmp_path)


def test_no_compiler(monkeypatch, nothing_known):
    import torch._inductor.compile_fx as inductor

    class InvalidCxxCompiler(RuntimeError):
        pass

    def broken(*_):
        raise InvalidCxxCompiler("No working C++ compiler found")

    monkeypatch.setattr(inductor, "compile_fx", broken)
    run = fit(schools, AutoNormal(schools), (Y, S), steps=4, compile=True, progress=False)
    assert not run.compiled and "g++" in run.eager_because


def test_a_wrong_compiled_step_is_not_used(monkeypatch, nothing_known):
    import inference.training.steps as step_module

    before = step_module.compiled

    def wrong(tape, apart):
        code = before(tape, apart)
        code.function, code._run = None, lambda *inputs: torch.zeros(())
        return code

    monkeypatch.setattr(step_module, "compiled", wrong)
    _, step = steps_of(schools_update())
    with pytest.raises(TraceFailure, match="on the same noise"):
        step((Y, S))


class Averaged(nn.Module):
    """A pair with a buffer that every update changes."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor([0.5, -0.5]))
        self.register_buffer("mean", torch.zeros(2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("averaged", self)
        self.mean.add_(0.1 * (x.mean(0) - self.mean))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc + x - self.mean, 1.0).to_event(1))


X = torch.linspace(-1.0, 2.0, 10).reshape(5, 2)
# in the order of `Variables.flat`
KINDS = ["parameter 'loc'", "buffer 'mean'", "count of updates '1'", "mean of 'loc'",
         "square of 'loc'", "count of updates '0'"]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place, name", list(enumerate(KINDS)))
def test_the_proof_compares_everything_an_update_changes(place, name, dtype):
    pair = Averaged().to(dtype)
    update = Update(Pair(pair.model, pair.guide, (X.to(dtype),)), elbo.Trace(), optim.Adam())
    variables = Variables.start(update.pair, update.optimiser)
    rows = [(X.to(dtype) + i,) for i in range(3)]
    proof = Proof(update, variables, LR, rows)

    def run(own, others, updates):
        (*flat, lr), (x,) = own, others
        x = x if updates else x[None]
        losses = torch.stack([update(variables.like(flat), lr, (row,)) for row in x])
        return losses if updates else losses[0]

    def wrong(own, others, updates):
        losses = run(own, others, updates)
        if updates:
            start, end = proof.start.flat()[place], own[place]
            end.add_(0.01 * (end - start) if end.is_floating_point() else 1)
        return losses

    proof.hold(run, None, together=True)
    with pytest.raises(TraceFailure, match=f"{name} differs .* one call on the same noise"):
        proof.hold(wrong, None, together=True)


def test_the_proof_sees_a_batch_that_does_not_step():
    pair = Averaged()
    update = Update(Pair(pair.model, pair.guide, (X,)), elbo.Trace(), optim.Adam())
    variables = Variables.start(update.pair, update.optimiser)
    proof = Proof(update, variables, LR, [(X + i,) for i in range(3)])

    def run(own, others, updates):
        (*flat, lr), (x,) = own, others
        x = x[:1].expand(3, -1, -1) if updates else x[None]
        losses = torch.stack([update(variables.like(flat), lr, (row,)) for row in x])
        return losses if updates else losses[0]

    proof.hold(run, None, together=False)
    with pytest.raises(TraceFailure, match="3 updates in one call"):
        proof.hold(run, None, together=True)


def test_a_step_that_cannot_be_recorded_is_called_from_python(monkeypatch, nothing_known):
    def changed(*_):
        raise AttributeError("torch has renamed it")

    monkeypatch.setattr("inference.graph.replay.calls_of", changed)
    eager, step = steps_of(schools_update())
    step.repeats = 5
    assert step((Y, S)).shape == (5,) and int(step.variables.count) == 5
    assert "torch has renamed it" in step.not_replayed and step.repeats == 1
    eager.variables.assign(step.variables)
    losses = []
    for each in (eager, step):
        torch.manual_seed(3)
        losses.append(each((Y, S)))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


def test_fits_in_two_threads_are_those_of_one_after_the_other():
    """Pyro's store and torch's generators are the process's; both pairs call a parameter "loc"."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    def fitted(seed):
        run = fit(
            model,
            guide,
            (Y + seed,),
            steps=60,
            seed=seed,
            compile=False,
            progress=False,
            check=False,
        )
        return run.losses, run.params["loc"].item()

    singly = [fitted(seed) for seed in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(fitted, (1, 2)))
    assert together == singly


def test_an_argument_that_keeps_changing(monkeypatch):
    import inference.training.steps as step_module

    monkeypatch.setattr(step_module.CompiledStep, "_proved", lambda *args, **kwargs: lambda *_: LR)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=x)

    update = Update(Pair(model, lambda x: None, (Y,)), elbo.Trace(), optim.Adam())
    step = CompiledStep(update, Variables.start(update.pair, update.optimiser), LR)
    for n in range(1, RETRACES + 1):
        step((torch.zeros(n),))
    with pytest.raises(ValueError, match="argument 0 of the step keeps changing"):
        step((torch.zeros(20),))


def test_not_finite_before_the_first_step_names_the_site():
    def bad(x):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.LogNormal(0.0, scale), obs=x)

    with pytest.raises(ValueError, match="'x'"):
        fit(
            bad,
            AutoNormal(bad),
            (torch.tensor([1.0, -1.0]),),
            steps=5,
            progress=False,
            compile=True,
        )


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captured_step_on_cuda_equals_the_eager_one():
    x = torch.bernoulli(torch.full((64, 12), 0.3))
    kwargs = dict(steps=40, batch_size=16, device="cuda", progress=False)
    vae = VAE(12, 2, hidden=(8,))
    eager = fit(vae, x, compile=False, **kwargs)
    compiled = fit(vae, x, compile=True, **kwargs)
    assert compiled.compiled, compiled.eager_because
    assert compiled.losses[:5] == pytest.approx(eager.losses[:5], rel=1e-3)
