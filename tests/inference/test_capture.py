"""The loop around a captured graph, with a recording that makes its launches again."""

import captures
import pytest
import torch
from captures import again

from inference import elbo, fit
from inference.graph import Captured
from inference.testing.toys import LinearGaussian
from zoo.data import load
from zoo.vae import VAE


def update(inputs):
    """A step of gradient descent on (w x − y)², with noise."""
    w, lr, x, y = inputs
    gap = w * x - y + 0.1 * torch.randn(())
    w.sub_(lr * 2 * gap * x)
    return gap.square()


def call(captured, inputs, updates=None):
    return captured(inputs[:2], inputs[2:], updates)


def tensors():
    return [torch.tensor(v) for v in (1.0, 0.1, 2.0, 3.0)]


@pytest.mark.parametrize("shared", [True, False])
def test_a_replay_makes_the_updates_in_order(shared):
    inputs = tensors()
    captured = Captured(update, inputs, own=2, record=again)
    batches = [torch.randn(5) for _ in range(2)]
    expected, rows = tensors(), []
    torch.manual_seed(3)
    for _ in range(2):
        for i in range(5):
            batch = inputs[2:] if shared else [b[i] for b in batches]
            rows.append(update([*expected[:2], *batch]))
    torch.manual_seed(3)
    calls = [captured(inputs[:2], inputs[2:] if shared else batches, 5) for _ in range(2)]
    assert torch.equal(torch.cat(calls), torch.stack(rows))
    assert torch.equal(inputs[0], expected[0])


def test_one_update():
    inputs = tensors()
    torch.manual_seed(3)
    loss = call(Captured(update, inputs, own=2, record=again), inputs)
    torch.manual_seed(3)
    assert loss == update(tensors())


def test_a_variable_whose_storage_moved_is_captured_anew():
    inputs, expected = tensors(), tensors()

    def in_place(body):
        """A recording remembers addresses, not tensors."""
        memory = inputs[0].data_ptr()

        def replay():
            assert inputs[0].data_ptr() == memory
            again(body)

        return replay

    captured = Captured(update, inputs, own=2, record=in_place)
    torch.manual_seed(3)
    call(captured, inputs)
    inputs[0].set_(inputs[0].clone())
    call(captured, inputs)
    torch.manual_seed(3)
    for _ in range(2):
        update(expected)
    assert torch.equal(inputs[0], expected[0])


def test_other_variables_are_not_captured():
    inputs, others = tensors(), tensors()

    def refuse(body):
        raise AssertionError

    captured = Captured(update, inputs, own=2, record=refuse)
    call(captured, others)
    assert inputs[0] == 1.0 and others[0] != 1.0


def broken(body):
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def forgetful(body):
    body()
    return lambda: None


@pytest.mark.parametrize("record, why", [(broken, "not permitted"), (forgetful, "losses are not")])
def test_what_cannot_be_captured_is_launched(record, why):
    inputs, expected = tensors(), tensors()
    captured = Captured(lambda i: update(i) + i[0], inputs, own=2, record=record)
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match=f"one by one.*{why}"):
        losses = call(captured, inputs, 4)
    torch.manual_seed(3)
    assert torch.equal(losses, torch.stack([update(expected) + expected[0] for _ in range(4)]))
    assert torch.equal(inputs[0], expected[0])


@pytest.fixture
def captured(monkeypatch):
    """Fits on a CPU go the way of CUDA."""
    captures.use(monkeypatch)


def test_a_fit_makes_the_eager_updates(captured):
    pair = LinearGaussian()
    runs = [
        fit(pair, pair.data(), elbo=elbo.IWAE(3), steps=200, compile=c, progress=False)
        for c in (False, True)
    ]
    assert runs[1].compiled
    assert torch.allclose(*(torch.tensor(r.losses) for r in runs), rtol=1e-4)


@pytest.mark.slow
def test_a_fit_of_batches_makes_the_eager_updates(captured):
    digits, pair = load("digits", pixels="dynamic"), VAE(64, latent_dim=2, hidden=(8,))
    runs = [fit(pair, digits, steps=130, compile=c, progress=False) for c in (False, True)]
    assert runs[1].compiled
    assert torch.allclose(*(torch.tensor(r.losses) for r in runs), rtol=1e-3)
