"""Recurrences: the same states as a loop over time, in operations that do not grow with it."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from inference import log_weights, scan

X = torch.sin(torch.arange(37, dtype=torch.float64))
RATE = torch.tensor([[0.9], [-0.4], [1.1]], dtype=torch.float64)  # (K, 1)

STEPS = {  # a step, and whether it is affine in the state
    "moving average": (lambda e, x: x - RATE * e, True),
    "variance": (lambda h, x: 0.1 + 0.2 * x**2 + RATE / 2 * h, True),
    "torch's names": (lambda s, x: torch.sub(x, torch.mul(RATE, s)).neg().div(2.0), True),
    "a ratio": (lambda s, x: -(s - x) / RATE / 3, True),
    "time dependent": (lambda s, x: x * s + 1.0, True),
    "forgets": (lambda s, x: x + RATE, True),
    "logistic": (lambda s, x: 0.5 * s * (1 - s) + x / 10, False),
    "squashed": (lambda s, x: torch.tanh(s + RATE * x), False),
    "inverse": (lambda s, x: 1.0 / (2.0 + s * s) + x, False),
}


def looped(step, state, x):
    """A plain loop over (K, 1) states."""
    states = []
    for t in range(x.shape[-1]):
        state = step(state, x[..., t : t + 1])
        states.append(state.expand(3, 1))
    return torch.cat(states, -1)


@pytest.mark.parametrize("name", STEPS)
def test_states_and_gradients_are_the_loops(name):
    step, _ = STEPS[name]
    ours, theirs = (X.clone().requires_grad_() for _ in range(2))
    states, truth = scan(step, 0.3, ours), looped(step, X.new_tensor(0.3), theirs)
    torch.testing.assert_close(states.expand(3, -1), truth, rtol=1e-12, atol=1e-12)
    (states * X).expand(3, -1).sum().backward()
    (truth * X).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)


class _Counted(TorchDispatchMode):
    made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.made += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", STEPS)
def test_only_what_is_not_affine_takes_operations_for_every_time(name):
    step, affine = STEPS[name]
    made = []
    for times in (64, 128):
        with _Counted() as counted:
            scan(step, 0.3, torch.zeros(times, dtype=torch.float64))
        made.append(counted.made)
    assert (made[1] - made[0] < 32) is affine


def test_a_state_of_several_parts():
    """Two lags: the last column of powers of the companion matrix."""
    x = torch.zeros(30, dtype=torch.float64)
    x[0] = 1.0
    value, _ = scan(lambda s, x: (1.2 * s[0] - 0.5 * s[1] + x, s[0]), (0.0, 0.0), x)
    roots = torch.linalg.eigvals(torch.tensor([[1.2, -0.5], [1.0, 0.0]], dtype=torch.float64))
    power = torch.arange(
        1, 31
    )  # Σ r^(t+1) / (r - r'): partial fractions of 1 / (1 - 1.2 L + .5 L²)
    truth = ((roots[0] ** power - roots[1] ** power) / (roots[0] - roots[1])).real
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-12)


def test_each_batch_of_vmap_has_its_own():
    rates = RATE[:, 0]

    def states(rate):
        return scan(lambda s, x: rate * s + x, 0.0, X)

    together, singly = torch.vmap(states)(rates), torch.stack([states(r) for r in rates])
    torch.testing.assert_close(together, singly, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "inputs", [(), (X, X[1:]), (torch.tensor(1.0),), (X[:0],), ([1.0, 2.0],)], ids=len
)
def test_inputs_without_one_number_of_times_are_refused(inputs):
    with pytest.raises(ValueError, match="expected inputs with one number of times T >= 1"):
        scan(lambda s, *x: s, 0.0, *inputs)


def test_another_number_of_states_is_refused():
    with pytest.raises(ValueError, match="the state has 1 parts, step made 2"):
        scan(lambda s, x: (s, x), 0.0, X)


def arma(y):
    """ARMA(1, 1) as in posteriordb's arma11."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    with pyro.plate("time", len(y)):
        last = torch.cat([mu + 0 * y[:1], 0 * mu + y[:-1]], -1)
        errors = scan(lambda e, r: r - theta * e, 0.0, y - mu - phi * last)
        pyro.sample("y", dist.Normal(y - errors, 0.3), obs=y)


def test_an_arma_model_under_particles_has_its_likelihood_per_time():
    drawn = {}

    def guide(y):
        for name in ("mu", "phi", "theta"):
            drawn[name] = pyro.sample(name, dist.Normal(X.new_tensor(0.2), 0.3))

    weights = log_weights(arma, guide, X, particles=3)
    truth = torch.zeros(3, len(X), dtype=torch.float64)
    for k in range(3):
        mu, phi, theta = (drawn[n][k] for n in ("mu", "phi", "theta"))
        last, error = mu, 0.0
        for t, y in enumerate(X):
            mean = mu + phi * last + theta * error
            last, error = y, y - mean
            truth[k, t] = -0.5 * (error / 0.3) ** 2 - math.log(0.3 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(weights.model["y"].log_prob, truth, rtol=1e-11, atol=1e-11)
