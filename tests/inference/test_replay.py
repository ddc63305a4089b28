"""Recorded kernel calls: the same numbers as the functions they were recorded from."""

import functools

import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from inference import elbo, fit, optim
from inference.graph import NotReplayable, Replay, compiled, program_of, recorded
from inference.graph.matmul import LARGE
from inference.pairs.pair import Pair
from inference.training.steps import CompiledStep, EagerStep
from inference.training.update import Update, Variables
from tests.schools import SIGMA, Y, non_centred


def replay(function, *inputs: Tensor, own: int, outside: bool = True) -> Replay:
    tape = recorded(function, [t.clone() for t in inputs], outside)
    return Replay(program_of(compiled(tape)), own, tape.constants)


def moved(p: Tensor, x: Tensor) -> Tensor:
    """Change p in place and return a loss."""
    p.add_(x)
    return p.square().sum()


def test_a_loop_is_so_many_calls():
    p, x = torch.arange(3.0), torch.randn(5, 3)
    run = replay(moved, p, x[0], own=1)
    assert torch.equal(p, torch.arange(3.0))  # recording changes nothing
    q = p.clone()
    expected = torch.stack([moved(q, row) for row in x])
    torch.testing.assert_close(run([p], [x], updates=5), expected)
    torch.testing.assert_close(p, q)
    torch.testing.assert_close(run([p], [x[2]]), moved(q, x[2]))
    assert run([p], [x[2]], updates=1).shape == (1,)


def test_other_variables_are_updated_where_they_lie():
    p, other = torch.zeros(3), torch.full((3,), 2.0)
    run = replay(moved, p, torch.ones(3), own=1)
    run([other], [torch.ones(3)], updates=4)
    assert torch.equal(p, torch.zeros(3)) and torch.equal(other, torch.full((3,), 6.0))


def test_a_variable_whose_storage_moved():
    p = torch.zeros(3)
    run = replay(moved, p, torch.ones(3), own=1)
    run([p], [torch.ones(3)])
    before = p.view(3)
    p.set_(p.clone())
    run([p], [torch.ones(3)], updates=2)
    assert p.tolist() == [3.0] * 3 and before.tolist() == [1.0] * 3
    p.set_(torch.zeros(6)[::2])
    with pytest.raises(ValueError, match=r"variable 0 .* has changed"):
        run([p], [torch.ones(3)])


def test_memory_is_looked_up_when_another_list_is_given():
    p = torch.zeros(3)
    own = [p]
    run = replay(moved, p, torch.ones(3), own=1)
    run(own, [torch.ones(3)])
    before = p.view(3)
    p.set_(p.clone())
    run(own, [torch.ones(3)])  # in memory that is still there
    assert before.tolist() == [2.0] * 3 and p.tolist() == [1.0] * 3
    run([p], [torch.ones(3)])
    assert before.tolist() == [2.0] * 3 and p.tolist() == [2.0] * 3


def test_a_callback_may_move_a_parameter():
    def start_again(run):
        if run.steps == 100:
            for p in run.variables.params.values():
                p.set_(torch.full_like(p, 0.25))

    run = fit(
        non_centred, AutoNormal(non_centred), (Y, SIGMA), steps=200, lr=1e-6, compile=True,
        callbacks=[start_again], progress=False,
    )  # fmt: skip
    assert run.compiled and run.not_replayed is None
    for p in run.variables.params.values():
        torch.testing.assert_close(p, torch.full_like(p, 0.25), atol=1e-3, rtol=0)


def test_variables_that_share_memory_are_refused():
    p, q, x = torch.zeros(4), torch.zeros(3), torch.ones(3)
    run = replay(lambda p, q, x: moved(p, x) + q.sum(), p[:3], q, x, own=2)
    with pytest.raises(ValueError, match=r"variables 0 and 1 .* share memory"):
        run([p[:3], p[1:]], [x])


def test_a_failure_while_recording_is_a_reason(monkeypatch):
    """As when torch changes what its compiled code calls."""
    p, x = torch.zeros(3), torch.ones(3)
    code = compiled(recorded(moved, (p, x)))
    monkeypatch.setattr("inference.graph.replay.calls_of", lambda code: code.renamed)
    with pytest.raises(NotReplayable, match=r"recording fails: AttributeError: .*renamed"):
        program_of(code)


def test_the_users_batch_is_never_written():
    p, x = torch.zeros(3), torch.ones(3)
    run = replay(moved, p, x, own=1)
    run([p], [torch.full((3,), 7.0)])
    assert torch.equal(x, torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("upper", [False, True])
def test_products_and_solves_are_loops(upper, dtype):
    def function(p, a, b):
        a = (a.triu() if upper else a.tril()) + 5 * torch.eye(4, dtype=dtype)
        p.add_(torch.linalg.solve_triangular(a, b @ b.T, upper=upper)[:, :1])
        more = torch.linalg.solve_triangular(a.T[None], b[None], upper=not upper)
        many = torch.linalg.solve_triangular(
            a.expand(2, 3, 4, 4), b.expand(2, 3, 4, 4), upper=upper
        )
        more = more + many.sin().sum((0, 1))
        return (a @ p).sum() + torch.addmm(p[:, 0], b.T, b).sin().sum() + more.cos().sum()

    p, a, b = torch.randn(3, 4, 4, dtype=dtype).unbind()
    p = p[:, :1].clone()
    run = replay(function, p, a, b, own=1)
    q = p.clone()
    torch.testing.assert_close(run([p], [a, b]), function(q, a, b))
    torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    "m,n,k",
    [(20, 200, 784), (37, 50, 29), (17, 16, 100), (128, 33, 17), (64, 8, 200), (64, 200, 8),
     (9, 3, 200), (99, 15, 5), (300, 1, 40)],
)  # fmt: skip
def test_large_products(m, n, k):
    """Rows or columns together, with a bias, batched, odd sizes: as `torch.matmul` says."""

    def function(p, a, b, c, d, e):
        one, two = torch.addmm(c, a, b.T), a @ d  # columns together, rows together
        three = torch.bmm(a.expand(2, m, k), torch.stack([d, 2 * d]))
        four = torch.addmm(e.T, a, d) + torch.addmm(e, d.T, a.T).T  # a bias in columns
        p.add_(one + two + three.sum(0) + (d.T @ a.T).T + four)
        return p.square().mean()

    a, b, c, d = torch.randn(m, k), torch.randn(n, k), torch.randn(n), torch.randn(k, n)
    e, p = torch.randn(n, m), torch.zeros(m, n)
    run = replay(function, p, a, b, c, d, e, own=1)
    q, rest = p.clone(), [a, b, c, d, e]
    torch.testing.assert_close(run([p], rest), function(q, *rest), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_running_sums_are_loops(dim):
    def function(p, x):
        p.add_(torch.cumsum(x.exp(), dim))
        return (p * x).sum()

    p, x = torch.zeros(3, 4, 5), torch.randn(3, 4, 5)
    run = replay(function, p, x, own=1)
    q = p.clone()
    torch.testing.assert_close(run([p], [x]), function(q, x))
    torch.testing.assert_close(p, q)


def test_what_cannot_be_recorded():
    big = torch.randn(64, 64).double()
    with pytest.raises(NotReplayable, match="a product of"):
        replay(lambda p, a: (p.add_(1) + a @ a).sum(), torch.zeros(64).double(), big, own=1)
    p = torch.zeros(3)
    with pytest.raises(NotReplayable, match="calls"):
        replay(lambda p, a: (p.add_(1) + torch.randn(3)).sum(), p, big, own=1, outside=False)
    assert torch.equal(p, torch.zeros(3))  # trying changes nothing


@pytest.mark.parametrize("generator", [None, "none"])
def test_pixels_drawn_at_every_step_are_noise_from_outside(generator):
    """A graph that draws for itself cannot be recorded; `rand` comes in two spellings."""
    given = {} if generator is None else {"generator": None}

    def drawn(p, x):
        p.add_((torch.rand(x.shape, **given) < x).to(x.dtype))
        return (p * torch.randn(3, **given)).sum()

    noise = recorded(drawn, (torch.zeros(3), torch.rand(3))).noise()
    assert noise.parts == [(False, 3), (True, 3)]


@pytest.mark.parametrize("guide", [AutoNormal, AutoMultivariateNormal])
def test_sixty_four_updates_of_eight_schools(guide):
    """As many eager updates on the same noise give the same parameters."""
    args = (Y, SIGMA)
    pair = Pair(non_centred, guide(non_centred), args)
    update = Update(pair, elbo.Trace(), optim.Adam(0.01))
    rate = torch.tensor(0.01)
    fast = CompiledStep(update, Variables.start(pair, update.optimiser), rate, repeats=64)
    slow = EagerStep(update, Variables.start(pair, update.optimiser), rate)
    start = fast.variables.clone()
    fast(args)
    fast.variables.assign(start)
    torch.manual_seed(3)
    losses = fast(args)
    torch.manual_seed(3)
    noise = torch.empty(64, 10).normal_()

    class Given(TorchDispatchMode):
        place = 0

        def __torch_dispatch__(self, func, types, a=(), kwargs=None):
            out = func(*a, **(kwargs or {}))
            if "normal_" in str(func) or "randn" in str(func):
                part = noise.reshape(-1)[self.place : self.place + out.numel()]
                out.copy_(part.reshape(out.shape))
                self.place += out.numel()
            return out

    with Given():
        expected = torch.stack([slow(args) for _ in range(64)])
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-3)
    for p, q in zip(fast.variables.flat(), slow.variables.flat()):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)


def test_large_products_by_the_faster_library_give_the_same_numbers():
    """Strided operands and a bias; whether oneDNN is taken depends on the machine."""
    a, b, c = torch.randn(130, 160), torch.randn(160, 130), torch.randn(130)
    assert LARGE <= 130 * 160 * 130
    function = functools.partial(lambda a, b, c: (a @ b + c) @ a + b.T + torch.addmm(c, a, b) @ b.T)
    run = compiled(recorded(function, (a, b, c)))
    torch.testing.assert_close(run([a, b, c]), function(a, b, c), rtol=1e-4, atol=1e-2)
