"""What every pair of the zoo must do, whatever it models: one call for the tests beside it."""

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from inference.pairs.pair import Pair
from inference.weights import log_weights, no_validation


def check_pair(pair, x, latents, unlearned=()):
    """Sites, shapes, particles, mini-batch scale, gradients, tracing, plain Pyro.

    `latents` are the names of the guide's sites; `unlearned` are parameters without a gradient.
    """
    n, k = x.shape[0], 3
    weights = log_weights(pair.model, pair.guide, x, particles=k)
    assert set(weights.guide) == set(latents)
    assert set(latents) <= set(weights.model) and weights.model["x"].observed
    assert weights.log_weight().squeeze().shape == (k, n)
    assert torch.isfinite(weights.log_weight()).all()
    assert [p.name for p in weights.plates] == ["data"]

    half = log_weights(pair.model, pair.guide, x, 2 * n)
    assert half.scale == 2.0

    as_traced, as_run = (_loss_and_grads(pair, x, k, traced) for traced in (True, False))
    eps = torch.finfo(x.dtype).eps
    for name, grad in as_run.items():
        tolerance = 1e3 * eps * max(1.0, grad.abs().max().item())  # sums of up to 1e3 terms
        assert torch.allclose(as_traced[name], grad, rtol=0, atol=tolerance), name
        assert grad.abs().max() > 0 or name.endswith(tuple(unlearned) or "\0"), name

    loss = SVI(pair.model, pair.guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(x)
    assert torch.isfinite(torch.tensor(loss))


def check_gradient(pair, x):
    """The gradient against a central difference along it, in float64, with the same noise."""
    x = x.double()
    pair = pair.double()
    params = [p for p in pair.parameters() if p.requires_grad]

    def loss():
        pyro.set_rng_seed(1)
        return -log_weights(pair.model, pair.guide, x, particles=2).elbo().mean()

    grads = torch.autograd.grad(loss(), params, materialize_grads=True)
    norm = sum((g**2).sum() for g in grads).sqrt()
    moved = []
    for sign in (1, -1):
        for p, g in zip(params, grads):
            p.data += sign * 1e-5 * g / norm
        moved.append(loss().item())
        for p, g in zip(params, grads):
            p.data -= sign * 1e-5 * g / norm
    # truncation is h² times the third derivative; rounding is eps |loss| / h
    assert abs((moved[0] - moved[1]) / 2e-5 - norm) < 1e-5 * norm


def _loss_and_grads(module, x, particles, traced):
    pair = Pair(module.model, module.guide, (x,))
    names = list(pair.params)

    def run(params, x):
        params = [p.detach().requires_grad_() for p in params]
        with pair.bind(dict(zip(names, params)), pair.buffers):
            weights = log_weights(
                module.model, module.guide, x, particles=particles, nesting=pair.nesting
            )
            loss = -weights.elbo().mean()
        return loss, torch.autograd.grad(loss, params, materialize_grads=True)

    values = list(pair.params.values())
    with no_validation():
        if traced:
            run = make_fx(run, tracing_mode="fake", _allow_non_fake_inputs=True)(values, x)
        pyro.set_rng_seed(1)
        loss, grads = run(values, x)
    return {"loss": loss, **dict(zip(names, grads))}


class Labelled(nn.Module):
    """A conditional pair given its labels, as a pair of x alone."""

    def __init__(self, pair, y):
        super().__init__()
        self.pair, self.y = pair, y

    def model(self, x, size=None):
        self.pair.model(x, self.y, size)

    def guide(self, x, size=None):
        self.pair.guide(x, self.y, size)
