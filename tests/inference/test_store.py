"""Compiled steps that are used again: never another's, and only files that are to be trusted."""

import os
import subprocess
import sys

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from inference import elbo, fit, optim
from inference.graph import TraceFailure, name_of, recall, recorded, remember, store
from inference.graph.replay import Program
from inference.pairs.pair import Pair
from inference.training import steps
from inference.training.proof import Proof
from inference.training.steps import CompiledStep
from inference.training.update import Update, Variables, schedule_of

X = torch.linspace(-1.0, 2.0, 6)
LR = torch.tensor(0.01)


class Normals(nn.Module):
    """z ~ N(0, prior²), x_i ~ N(z + shift, 1): everything that a pair's Python may hold."""

    def __init__(self, prior=2.0, shift=None, doubled=False):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5))
        self.prior, self.shift, self.doubled = prior, shift, doubled

    def model(self, x, size=None):
        z = pyro.sample("z", dist.Normal(0.0, self.prior))
        mean = z if self.shift is None else z + self.shift
        with pyro.plate("data", size or len(x), subsample=x):
            pyro.sample("x", dist.Normal(2 * mean if self.doubled else mean, 1.0), obs=x)

    def guide(self, x, size=None):
        pyro.module("pair", self)
        pyro.sample("z", dist.Normal(self.loc, 1.0))


def proof_of(module, x=X, bound=None, optimiser=None, lr=LR, **options):
    pair = Pair(module.model, module.guide, (x,))
    update = Update(pair, bound or elbo.Trace(), optimiser or optim.Adam(), **options)
    return Proof(update, Variables.start(pair, update.optimiser), lr, [(x,)] * 2)


def key_of(*args, **options):
    return proof_of(*args, **options).tape.key


def in_closure(scale):
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z * scale, 1.0), obs=x)

    return model


GLOBAL = 1.0


def with_global(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z * GLOBAL, 1.0), obs=x)


class Halves:
    def __init__(self, model):
        self.model = model

    @staticmethod
    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))


def test_what_does_not_change_the_graph_does_not_change_its_key():
    key = key_of(Normals())
    assert key == key_of(Normals())
    assert key == key_of(Normals(), X.flip(0) + 3)  # data
    assert key == key_of(Normals(), lr=torch.tensor(0.7), optimiser=optim.Adam(0.7))
    there = Normals()
    there.loc.data.fill_(7.0)
    assert key == key_of(there)  # parameters
    linear = [key_of(Normals(), schedule=schedule_of("linear", n)) for n in (10, 1_000)]
    assert linear[0] == linear[1] != key  # the number of steps
    sized = [key_of(Normals(), kwargs={"size": n}, divide=float(n)) for n in (60, 150, 36)]
    assert len(set(sized)) == 1  # the number of data, in N/B and in nats per datum
    shifts = [key_of(Normals(shift=torch.tensor([s, -s]).sum(0).expand(1))) for s in (1.0, 2.0)]
    assert shifts[0] == shifts[1] != key  # a tensor from outside is an input


@pytest.mark.parametrize(
    "one, two",
    [
        (lambda: key_of(Normals()), lambda: key_of(Normals(prior=2.5))),
        (lambda: key_of(Normals()), lambda: key_of(Normals(doubled=True))),
        (lambda: key_of(Normals(shift=1.0)), lambda: key_of(Normals(shift=2.0))),
        (lambda: key_of(Normals(shift=torch.tensor(1.0))), lambda: key_of(Normals(shift=1.0))),
        (lambda: key_of(Halves(in_closure(1.5))), lambda: key_of(Halves(in_closure(2.5)))),
        (lambda: key_of(Normals()), lambda: key_of(Normals(), bound=elbo.Trace(2))),
        (lambda: key_of(Normals()), lambda: key_of(Normals(), bound=elbo.IWAE(2))),
        (
            lambda: key_of(Normals()),
            lambda: key_of(Normals(), optimiser=optim.Adam(betas=(0.8, 0.999))),
        ),
        (lambda: key_of(Normals()), lambda: key_of(Normals(), clip=1.0)),
        (lambda: key_of(Normals()), lambda: key_of(Normals(), X[:5])),
        (lambda: key_of(Normals()), lambda: key_of(Normals().double(), X.double())),
        (lambda: key_of(Normals()), lambda: key_of(Normals(), divide=3.0)),
    ],
)
def test_another_graph_has_another_key(one, two):
    assert one() != two()


def test_a_global_is_seen(monkeypatch):
    before = key_of(Halves(with_global))
    monkeypatch.setitem(globals(), "GLOBAL", 3.0)
    assert key_of(Halves(with_global)) != before


class Changing:
    """Something outside of torch that is another at each call."""

    calls = 0

    def counter(self):
        self.calls += 1
        return self.calls

    def numpys(self):
        return torch.from_numpy(numpy.random.default_rng().normal(size=1)).float()


@pytest.mark.parametrize("kind", ["counter", "numpys"])
def test_what_changes_from_call_to_call_is_no_graph(kind):
    source = getattr(Changing(), kind)

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z + source(), 1.0), obs=x)

    with pytest.raises(TraceFailure, match="not the same operations as the one before"):
        proof_of(Halves(model))


@pytest.mark.parametrize(
    "read",
    [lambda z: float(z), lambda z: z.tolist(), lambda z: z.detach().numpy(), lambda z: bool(z > 0)],
)
def test_a_value_read_on_the_host_is_refused(read):
    def function(p):
        read(p * 2)
        return p.sum()

    with pytest.raises(TraceFailure, match=r"read on the host.*test_store.py"):
        recorded(function, [torch.ones(())])


def test_entries_are_picked_by_number_but_not_by_a_mask():
    numbers, p = torch.tensor([0, 2]), torch.ones(3)
    assert recorded(lambda p: p[numbers.clone()].sum(), [p]).constants[0] is numbers
    with pytest.raises(TraceFailure, match=r"shape of a result.*test_store.py"):
        recorded(lambda p: p[p > 0].sum(), [p])


def test_a_constant_may_be_read():
    tape = recorded(lambda p: p * torch.tensor(3.0).item(), [torch.ones(())])
    assert [name for name, *_ in tape.operations][-1] == "aten.mul.Tensor"


def test_a_tensor_from_outside_is_not_changed():
    outside = torch.zeros(3)
    with pytest.raises(TraceFailure, match="changed in place"):
        recorded(lambda p: (outside.add_(1) * p).sum(), [torch.ones(3)])


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """An empty store of programs."""
    monkeypatch.setattr(store, "_KNOWN", {})
    monkeypatch.setattr(store, "folder", lambda: tmp_path / "programs")
    return tmp_path / "programs"


def compiled_step(module, x=X, repeats=4):
    pair = Pair(module.model, module.guide, (x,))
    update = Update(pair, elbo.Trace(), optim.Adam())
    return CompiledStep(update, Variables.start(pair, update.optimiser), LR, repeats)


def test_a_program_of_another_process_is_proved_and_has_the_constants_of_its_own_pair(
    nowhere, monkeypatch
):
    """Compiled once: then from memory, from disk, and for a pair that holds another tensor."""
    first = compiled_step(Normals(shift=torch.tensor([1.0])))
    torch.manual_seed(1)
    losses = first((X,))

    def never(*_):
        raise AssertionError("compiled again")

    monkeypatch.setattr(steps, "compiled", never)
    for forgotten in (False, True):
        if forgotten:
            store._KNOWN.clear()
        again = compiled_step(Normals(shift=torch.tensor([1.0])))
        torch.manual_seed(1)
        assert torch.equal(again((X,)), losses)
    other = compiled_step(Normals(shift=torch.tensor([4.0])))
    torch.manual_seed(1)
    moved = other((X - 3.0 + 3.0 * 2,))  # shifted by as much as the constant
    torch.testing.assert_close(moved, losses)

    # a damaged, foreign or linked file is as if it were not there
    (library,), (fields,) = nowhere.glob("*.so"), nowhere.glob("*.json")
    name = library.stem
    whole = {path: path.read_bytes() for path in (library, fields)}

    def found():
        store._KNOWN.clear()
        return recall(name)

    assert isinstance(found(), Program)
    for path, content in whole.items():
        path.unlink()  # it may be loaded
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert found() is None
        path.write_bytes(content)
        assert isinstance(found(), Program)
        path.chmod(0o666)
        assert found() is None
        path.chmod(0o700)
        assert isinstance(found(), Program)
        path.rename(nowhere / "elsewhere")
        path.symlink_to(nowhere / "elsewhere")
        assert found() is None
        path.unlink()
        (nowhere / "elsewhere").rename(path)
    nowhere.chmod(0o777)
    assert found() is None
    nowhere.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert found() is None
    monkeypatch.undo()


def test_a_program_under_another_key_is_disproved_and_forgotten(nowhere, monkeypatch):
    """As by a collision: the proof, and not the key alone, decides."""
    right, wrong = proof_of(Normals()).tape.key, compiled_step(Normals(prior=0.5))
    wrong((X,))
    (program,) = store._KNOWN.values()
    remember(name_of(right), program)
    made = []
    before = steps.compiled
    monkeypatch.setattr(steps, "compiled", lambda *a: made.append(a) or before(*a))
    step = compiled_step(Normals())
    step((X,))
    assert len(made) == 1 and step.not_replayed is None
    assert recall(name_of(right)) is not program


def test_a_known_step_is_used_for_a_short_run_and_makes_the_eager_numbers(nowhere, monkeypatch):
    """With "auto" the noise is that of eager steps; a run too short to compile stays eager."""
    options = {"steps": 300, "progress": False, "check": False, "seed": 3}
    eager = fit(Normals(), X, **options)
    assert not eager.compiled and eager.eager_because is None
    fit(Normals(), X, steps=8, compile=True, progress=False, check=False)
    known = fit(Normals(), X, **options)
    assert known.compiled and known.not_replayed is None
    torch.testing.assert_close(known.params["loc"], eager.params["loc"], rtol=1e-4, atol=1e-5)
    assert known.losses == pytest.approx(eager.losses, rel=1e-4)


@pytest.mark.parametrize("shape", [(5,), (3, 7), (40,)])
def test_noise_is_drawn_as_by_one_update_after_the_other(shape):
    """Torch fills fewer than 16 numbers in another way than more."""

    def function(p):
        return (p * torch.randn(shape)).sum() + torch.rand(4).sum()

    noise = recorded(function, [torch.ones(shape)]).noise()
    torch.manual_seed(1)
    drawn = noise.draw(3, singly=True)
    torch.manual_seed(1)
    expected = [(torch.randn(shape).flatten(), torch.rand(4)) for _ in range(3)]
    assert torch.equal(drawn, torch.stack([torch.cat(pair) for pair in expected]))


def test_nothing_of_the_compiler_is_loaded_by_a_warm_start():
    """Nor is anything else that is heavy by `import inference, zoo.vae` and `fit`."""
    code = """
import sys
import torch
import inference, zoo.vae
from inference import fit
heavy = ("torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "sympy",
         "arviz_base", "matplotlib", "pandas", "scipy", "sklearn", "torchvision", "xarray")
print([name for name in heavy if name in sys.modules])
from tests.inference.test_store import X, Normals
run = fit(Normals(), X, steps=8, compile=True, progress=False, check=False)
print(run.compiled, run.not_replayed)
print([name for name in heavy[:4] if name in sys.modules])
"""
    for _ in range(2):  # the first fills the store; this process may know the step by heart
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
    assert done.stdout.splitlines() == ["[]", "True None", "[]"]
