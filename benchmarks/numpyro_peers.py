"""The same models in NumPyro: `jit(svi.update)`, and `lax.scan` over it. Optional."""

from __future__ import annotations

import functools

try:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as nd
    from jax.example_libraries import stax
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

    HERE = True
except ImportError:
    HERE = False

CHUNK = 200  # steps in one scan


def optional(make):
    """No contenders where NumPyro is not installed."""

    @functools.wraps(make)
    def wrapped(*args, **kwargs):
        return make(*args, **kwargs) if HERE else {}

    return wrapped


def contenders(model, guide, args, loss, lr=1e-3, scan=True):
    svi = SVI(model, guide, numpyro.optim.Adam(lr), loss)
    start = svi.init(jax.random.PRNGKey(0), *args)
    update = jax.jit(svi.update)
    state = {"update": start, "scan": start}

    @jax.jit
    def many(s):
        return jax.lax.scan(lambda c, _: svi.update(c, *args), s, None, length=CHUNK)

    def run_update(n):
        s = state["update"]
        for _ in range(n):
            s, loss = update(s, *args)
        jax.block_until_ready(loss)
        state["update"] = s
        return n

    def run_scan(n):  # whole chunks only
        s = state["scan"]
        for _ in range(max(1, n // CHUNK)):
            s, losses = many(s)
        jax.block_until_ready(losses)
        state["scan"] = s
        return max(1, n // CHUNK) * CHUNK

    out = {"numpyro update": run_update}
    if scan:
        out["numpyro scan"] = run_scan
    return out


def _mlp(widths):
    layers = []
    for w in widths[:-1]:
        layers += [stax.Dense(w), stax.Tanh]
    return stax.serial(*layers, stax.Dense(widths[-1]))


@optional
def vae(x, particles=1):
    x = jnp.asarray(x.numpy())
    enc, dec = _mlp((200, 200, 100)), _mlp((200, 200, 784))

    def model(x):
        decode = numpyro.module("dec", dec, (50,))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", nd.Normal(jnp.zeros(50), 1.0).to_event(1))
            numpyro.sample("x", nd.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x):
        encode = numpyro.module("enc", enc, (784,))
        with numpyro.plate("data", len(x)):
            mean, log_sd = jnp.split(encode(x), 2, -1)
            numpyro.sample("z", nd.Normal(mean, jnp.exp(log_sd)).to_event(1))

    loss = Trace_ELBO() if particles == 1 else numpyro.infer.RenyiELBO(0.0, particles)
    return contenders(model, guide, (x,), loss, scan=particles == 1)


@optional
def hierarchy(x):
    x = jnp.asarray(x.numpy())
    q1, q2 = _mlp((200, 200, 200)), _mlp((100, 100, 100))
    p1, p0 = _mlp((100, 100, 200)), _mlp((200, 200, 784))

    def normal(h):
        mean, log_sd = jnp.split(h, 2, -1)
        return nd.Normal(mean, jnp.exp(log_sd)).to_event(1)

    def model(x):
        d1, d0 = numpyro.module("p1", p1, (50,)), numpyro.module("p0", p0, (100,))
        with numpyro.plate("data", len(x)):
            z2 = numpyro.sample("z2", nd.Normal(jnp.zeros(50), 1.0).to_event(1))
            z1 = numpyro.sample("z1", normal(d1(z2)))
            numpyro.sample("x", nd.Bernoulli(logits=d0(z1)).to_event(1), obs=x)

    def guide(x):
        e1, e2 = numpyro.module("q1", q1, (784,)), numpyro.module("q2", q2, (100,))
        with numpyro.plate("data", len(x)):
            z1 = numpyro.sample("z1", normal(e1(x)))
            numpyro.sample("z2", normal(e2(z1)))

    return contenders(model, guide, (x,), Trace_ELBO())


@optional
def schools(y, s, full_rank):
    y, s = jnp.asarray(y.numpy()), jnp.asarray(s.numpy())

    def model(y, s):
        mu = numpyro.sample("mu", nd.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", nd.HalfCauchy(5.0))
        with numpyro.plate("J", 8):
            z = numpyro.sample("z", nd.Normal(0.0, 1.0))
            numpyro.sample("y", nd.Normal(mu + tau * z, s), obs=y)

    guide = (AutoMultivariateNormal if full_rank else AutoNormal)(model)
    return contenders(model, guide, (y, s), Trace_ELBO(), lr=0.01)


@optional
def mixture(x, components):
    try:
        from numpyro.contrib.funsor import config_enumerate
        from numpyro.infer import TraceEnum_ELBO
    except ImportError:
        return {}
    x = jnp.asarray(x.numpy())

    @config_enumerate
    def model(x):
        weights = numpyro.sample("weights", nd.Dirichlet(jnp.ones(components)))
        with numpyro.plate("components", components):
            means = numpyro.sample("means", nd.Normal(jnp.zeros(2), 3.0).to_event(1))
            scales = numpyro.sample("scales", nd.LogNormal(jnp.zeros(2), 1.0).to_event(1))
        with numpyro.plate("data", len(x)):
            k = numpyro.sample("k", nd.Categorical(weights))
            numpyro.sample("x", nd.Normal(means[k], scales[k]).to_event(1), obs=x)

    guide = AutoNormal(numpyro.handlers.block(model, hide=["k"]))
    return contenders(model, guide, (x,), TraceEnum_ELBO(max_plate_nesting=1), lr=0.01)


@optional
def hidden_markov(x, states, steps):
    """Name -> a whole run of SVI, the states summed out by a scan; its loss at the end, nats."""
    x = jnp.asarray(x.numpy())

    def forward(move, mean):
        def at(log_alpha, x_t):
            log_alpha = jax.nn.logsumexp(log_alpha[:, None] + jnp.log(move), 0)
            return log_alpha + nd.Normal(mean, 1.0).log_prob(x_t), None

        first = jnp.log(move[0]) + nd.Normal(mean, 1.0).log_prob(x[0])
        return jax.nn.logsumexp(jax.lax.scan(at, first, x[1:])[0])

    def model():
        alpha = jnp.ones(states) + 8.0 * jnp.eye(states)
        move = numpyro.sample("move", nd.Dirichlet(alpha).to_event(1))
        centre = 2.0 * jnp.arange(float(states))
        mean = numpyro.sample("mean", nd.Normal(centre, 1.0).to_event(1))
        numpyro.factor("x", forward(move, mean))

    def run():
        svi = SVI(model, AutoNormal(model), numpyro.optim.Adam(0.02), Trace_ELBO())
        losses = svi.run(jax.random.PRNGKey(0), steps, progress_bar=False).losses
        return float(losses[-50:].mean())

    return {"numpyro, forward by lax.scan": run}
