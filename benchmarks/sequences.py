"""A hidden Markov model of 1,000 times and 4 states, whole runs: ours, and NumPyro's scan."""

from __future__ import annotations

import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal

from inference import fit

from . import numpyro_peers

TIMES, STATES, STEPS = 1_000, 4, 1_000
FEW = 10  # steps of the model with a site for each time, each of which takes seconds


def data(times=TIMES):
    generator = torch.Generator().manual_seed(0)
    k, x = 0, []
    for stay in torch.rand(times, generator=generator).tolist():
        k = k if stay < 0.9 else (k + 1) % STATES
        x.append(2.0 * k)
    return torch.tensor(x) + torch.randn(times, generator=generator)


def parameters():
    alpha = torch.ones(STATES) + 8.0 * torch.eye(STATES)
    move = pyro.sample("move", dist.Dirichlet(alpha).to_event(1))
    centre = 2.0 * torch.arange(STATES, dtype=torch.float)
    mean = pyro.sample("mean", dist.Normal(centre, 1.0).to_event(1))
    return move, mean


def by_markov(x):
    """As Pyro's tutorials write it: one site for each time, enumerated along `pyro.markov`."""
    move, mean = parameters()
    k = 0
    for t in pyro.markov(range(len(x))):
        infer = {"enumerate": "parallel"}
        k = pyro.sample(f"k_{t}", dist.Categorical(move[..., k, :]), infer=infer)
        pyro.sample(f"x_{t}", dist.Normal(mean[..., k], 1.0), obs=x[t])


def at_once(x):
    """As one distribution of the sequence."""
    move, mean = parameters()
    start = move[..., 0, :].log()
    seen = dist.Normal(mean.unsqueeze(-2), 1.0)
    hmm = dist.DiscreteHMM(start, move.unsqueeze(-3).log(), seen, duration=len(x))
    pyro.sample("x", hmm, obs=x)


def lines(steps=STEPS, times=TIMES):
    """The table, line by line: seconds of a whole run, compiling included, by the clock and CPU."""
    x = data(times)
    yield f"\nhidden Markov model, {times:,} times, {STATES} states, {steps:,} steps, whole runs"
    yield f"  {'':<38} {'seconds':>9} {'CPU':>9} {'loss, nats':>12}"
    for name, model, made in (("DiscreteHMM", at_once, steps), ("pyro.markov", by_markov, FEW)):
        guide = AutoNormal(pyro.poutine.block(model, expose=["move", "mean"]))
        clock, cpu = time.perf_counter(), time.process_time()
        run = fit(model, guide, x, steps=made, lr=0.02, progress=False, check=False)
        spent = time.perf_counter() - clock, time.process_time() - cpu
        loss = sum(run.losses[-50:]) / len(run.losses[-50:])
        how = f"{made:,} steps, {'compiled' if run.compiled else 'eager'}"
        yield f"  {f'fit, {name} ({how})':<38} {spent[0]:9.1f} {spent[1]:9.1f} {loss:12.1f}"
    for name, run_peer in numpyro_peers.hidden_markov(x, STATES, steps).items():
        clock, cpu = time.perf_counter(), time.process_time()
        loss = run_peer()
        spent = time.perf_counter() - clock, time.process_time() - cpu
        yield f"  {name:<38} {spent[0]:9.1f} {spent[1]:9.1f} {loss:12.1f}"
