"""1,000 gradients of an estimator: in batches, as `inference.compare` draws them, and singly."""

from __future__ import annotations

import pyro
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from inference import elbo
from inference.judging.comparison.gradients import Gradients
from inference.pairs.pair import Pair
from inference.testing.toys import LinearGaussian
from zoo.data import load
from zoo.vae import VAE

from .bayes import S, Y, schools
from .timing import Row

DRAWS = 1_000


def batched(model, guide, args, estimator, compile):
    """A contender, and the seconds that compiling took."""
    sampler = Gradients(Pair(model, guide, args), estimator, args, draws=DRAWS, compile=compile)

    def run(n):
        calls = -(-n // sampler.replicates)
        for i in range(calls):
            sampler(i)
        return calls * sampler.replicates

    return run


def one_by_one(model, guide, args, loss, module):
    """Pyro's `loss_and_grads` in a loop, gradients set to zero in between."""
    state = {"params": {}, "constraints": {}}
    store = pyro.get_param_store()

    def run(n):
        with store.scope(state):
            for _ in range(n):
                loss.loss_and_grads(model, guide, *args)
                for p in module.parameters():
                    p.grad = None
        return n

    return run


def row(name, model, guide, module, args, ours, theirs, least):
    """Ours compiled and not, and Pyro's loop, on copies of one pair."""
    return Row(
        f"gradients for compare: {name}",
        {
            "drawn in batches, compiled": batched(model, guide, args, ours, True),
            "drawn in batches": batched(model, guide, args, ours, False),
            "pyro loss_and_grads in a loop": one_by_one(model, guide, args, theirs, module),
        },
        [(("pyro loss_and_grads in a loop",), least)],
        steps=DRAWS,
    )


def schools_row(device):
    args = Y.to(device), S.to(device)
    guide = AutoNormal(schools)
    guide(*args)
    guide.to(device)
    return row(f"eight schools, AutoNormal, {device}", schools, guide, guide, args,
               elbo.Trace(), Trace_ELBO(), 20.0)  # fmt: skip


def linear_row(device):
    toy = LinearGaussian().float().to(device)
    x = toy.data().float().to(device)
    theirs = RenyiELBO(0, 8, max_plate_nesting=1, vectorize_particles=True)
    return row(f"linear-Gaussian, IWAE-8, {device}", toy.model, toy.guide, toy, (x,),
               elbo.IWAE(8), theirs, 20.0)  # fmt: skip


def vae_row(device, particles):
    torch.manual_seed(0)
    digits = load("digits")
    vae = VAE(digits.data_dim).to(device)
    x = digits.train[:64].to(device)
    if particles == 1:
        ours, theirs = elbo.Trace(), Trace_ELBO()
    else:
        ours = elbo.IWAE(particles)
        theirs = RenyiELBO(0, particles, max_plate_nesting=1, vectorize_particles=True)
    return row(f"digits VAE 64-200-200-8, B = 64, K = {particles}, {device}", vae.model, vae.guide,
               vae, (x,), ours, theirs, 20.0)  # fmt: skip


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
ROWS = {
    f"compare-{name}-{device}": (lambda make=make, device=device: make(device))
    for device in DEVICES
    for name, make in {
        "schools": schools_row,
        "linear": linear_row,
        "vae": lambda device: vae_row(device, 1),
        "vae-iwae": lambda device: vae_row(device, 8),
    }.items()
}
