"""Nothing of a step is left on the CPU when the rest is on CUDA; found without a CUDA device.

Tensors that only claim to be on CUDA (`FakeTensorMode`) go through every model and estimator: the
forward pass, and the optimisers' updates. Where one of them meets a CPU tensor of more than zero
dimensions, torch says so as it would on the device itself.
"""

import itertools

import pytest
import torch
from refusals import refusal
from test_cuda import ESTIMATORS
from torch._subclasses.fake_tensor import FakeTensorMode

from inference import elbo, optim
from inference.pairs.pair import Pair
from inference.testing.toys import LinearGaussian, Nested, Switch
from inference.training.batches import batch_transform
from inference.training.update import Update, Variables
from zoo.cards import CARDS
from zoo.cli.build import build
from zoo.cli.fit import resolved
from zoo.cli.inputs import arguments_of
from zoo.data import load

PAIRS = [n for n, c in CARDS.items() if {"elbo", "likelihood"} & set(c.trainers)]
OPTIMISERS = [optim.Adam(), optim.AdamW(), optim.ClippedAdam(), optim.SGD(), optim.RMSprop()]


def on_cuda(tensor):
    return torch.empty_like(tensor, device="cuda:0")


def step(pair, estimator, args, transform=None, kwargs=None):
    """The loss of one step, which has to be on CUDA."""
    pair = Pair(pair.model, pair.guide, args, kwargs)
    update = Update(pair, estimator, optim.Adam(), transform=transform, kwargs=kwargs or {})
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        pair.params = {k: on_cuda(p) for k, p in pair.params.items()}
        pair.buffers = {k: on_cuda(b) for k, b in pair.buffers.items()}
        v = Variables.start(pair, update.optimiser)
        try:
            loss, _ = update.loss(v.params, v.buffers, v.count, tuple(map(on_cuda, args)))
        except RuntimeError as error:
            if "NVIDIA" in str(error) or "CUDA enabled" in str(error):
                pytest.skip("an operation that only a real device knows")
            raise
        assert loss.device.type == "cuda"


@pytest.mark.parametrize("name", PAIRS)
def test_models(name):
    card = CARDS[name]
    data = load(card.data, pixels=card.pixels if card.data == "digits" else "none")
    model = build(card, resolved(card, {}, data), data, seed=0)
    args = tuple(a[:16] for a in arguments_of(model, data, "train"))
    step(model, elbo.Trace(2), args, batch_transform(data), {"size": len(data.train)})


@pytest.mark.parametrize(
    "estimator, toy",
    [
        (e, k) for e, k in itertools.product(ESTIMATORS, [LinearGaussian, Nested, Switch])
        if not refusal(e, k)
    ],
    ids=lambda v: repr(v) if isinstance(v, elbo.Estimator) else v.__name__,
)  # fmt: skip
def test_estimators(estimator, toy):
    pair = toy()
    step(pair, estimator, (pair.data(),))


@pytest.mark.parametrize("optimiser", OPTIMISERS, ids=lambda o: type(o).__name__)
def test_optimisers(optimiser):
    with FakeTensorMode(), torch.no_grad():
        p, lr = torch.empty(3, device="cuda:0"), torch.empty((), device="cuda:0")
        new, state = optimiser.update([p], [p], optimiser.init([p]), lr)
        assert all(
            t.device.type == "cuda" for t in (*new, *(s for ss in state.values() for s in ss))
        )


def test_a_tensor_left_behind_is_found():
    class Forgetful(LinearGaussian):
        def model(self, x, size=None, keep=True):
            super().model(x + torch.ones(3, dtype=x.dtype), size, keep)

    pair = Forgetful()
    with pytest.raises(Exception, match="DeviceMismatch"):
        step(pair, elbo.Trace(), (pair.data(),))
