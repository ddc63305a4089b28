import pyro.optim
import pytest
import torch

from inference import optim


def run(optimiser, steps=20):
    """Parameters after some updates on fixed gradients, ours and nothing else's."""
    generator = torch.Generator().manual_seed(1)
    params = [torch.randn(4, 3, generator=generator), torch.randn((), generator=generator)]
    state = optimiser.init(params)
    for _ in range(steps):
        grads = [torch.randn(p.shape, generator=generator) for p in params]
        params, state = optimiser.update(params, grads, state, torch.tensor(optimiser.lr))
    return params


def run_torch(make, steps=20):
    generator = torch.Generator().manual_seed(1)
    params = [torch.randn(4, 3, generator=generator), torch.randn((), generator=generator)]
    params = [p.requires_grad_() for p in params]
    optimiser = make(params)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimiser.step()
    return params


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (optim.Adam(0.01), lambda p: torch.optim.Adam(p, 0.01)),
        (optim.Adam(0.01, weight_decay=0.1), lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1)),
        (optim.AdamW(0.01), lambda p: torch.optim.AdamW(p, 0.01)),
        (optim.SGD(0.01), lambda p: torch.optim.SGD(p, 0.01)),
        (optim.SGD(0.01, momentum=0.9), lambda p: torch.optim.SGD(p, 0.01, momentum=0.9)),
        (
            optim.SGD(0.01, momentum=0.9, nesterov=True),
            lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
        ),
        (optim.RMSprop(0.01), lambda p: torch.optim.RMSprop(p, 0.01)),
        (
            optim.ClippedAdam(0.01, clip=0.5, lrd=0.9),
            lambda p: pyro.optim.clipped_adam.ClippedAdam(p, 0.01, clip_norm=0.5, lrd=0.9),
        ),
    ],
    ids=lambda o: repr(o) if isinstance(o, optim.Optimiser) else "",
)
def test_equals_torch(ours, theirs):
    for mine, other in zip(run(ours), run_torch(theirs)):
        torch.testing.assert_close(mine, other.detach(), rtol=1e-5, atol=1e-6)


def test_learning_rate_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        optim.Adam(-1.0)


def test_the_count_passes_the_whole_numbers_of_float32():
    p = [torch.zeros(2)]
    optimiser = optim.Adam(0.1)
    state = {**optimiser.init(p), "count": [torch.tensor(2**24)]}
    _, state = optimiser.update(p, [torch.ones(2)], state, torch.tensor(0.1))
    assert state["count"][0].item() == 2**24 + 1


def test_the_bias_correction_keeps_float32():
    """1 − 0.999^t by powers would lose three digits at the first updates."""
    optimiser = optim.Adam(0.1)
    steps = {}
    for dtype in (torch.float32, torch.float64):
        p = [torch.zeros(1, dtype=dtype)]
        g, lr = [torch.ones(1, dtype=dtype)], torch.tensor(0.1, dtype=dtype)
        state = optimiser.init(p)
        for _ in range(3):
            p, state = optimiser.update(p, g, state, lr)
        steps[dtype] = p[0].item()
    # three updates, each of some ten roundings
    assert steps[torch.float32] == pytest.approx(steps[torch.float64], rel=30 * 2**-24)


def test_the_running_mean_is_plain_at_first_and_leaves_the_steps_alone():
    """With a decay of 0.9 the mean over the first ten steps is plain."""
    optimiser = optim.AveragedAdam(0.1, decay=0.9)
    params, seen = [torch.zeros(3)], []
    state = optimiser.init(params)
    plain, alone = optim.AdamW(0.1, weight_decay=0.0), [torch.zeros(3)]
    other = plain.init(alone)
    for i in range(12):
        grads = [torch.full((3,), float(i - 3))]
        params, state = optimiser.update(params, grads, state, torch.tensor(0.1))
        alone, other = plain.update(alone, grads, other, torch.tensor(0.1))
        seen.append(params[0])
        torch.testing.assert_close(params, alone)
        expected = torch.stack(seen[:10]).mean(0)
        for x in seen[10:]:
            expected = expected + 0.1 * (x - expected)
        torch.testing.assert_close(state["average"][0], expected)
