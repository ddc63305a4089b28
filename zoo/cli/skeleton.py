"""`zoo new NAME`: a pair to start from, data to try it on, and a test that knows the answer."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

REGRESSION = '''"""{title}: a linear regression of y on the columns of x.

zoo posterior {stem}.py:model --data {stem}.csv      # guide, start, rate, end and verdict are found
zoo fit {stem}.py:model --data {stem}.csv --guide full-rank --steps 2000 --lr 0.01
"""

import pyro
import pyro.distributions as dist


def model(x, y=None):
    """y_i ~ N(intercept + x_i slope, noise): change this into your own.

    Arguments are columns of the data, by name; x is all columns that no other argument takes.
    """
    intercept = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0).expand([x.shape[-1]]).to_event(1))
    noise = pyro.sample("noise", dist.HalfNormal(10.0))
    with pyro.plate("data", len(x)):
        mean = intercept + (x * slope.unsqueeze(-2)).sum(-1)
        pyro.sample("y", dist.Normal(mean, noise), obs=y)
'''

REGRESSION_TEST = '''"""The posterior of {stem}.py finds the line that made {stem}.csv."""

from pathlib import Path

import pandas as pd
import torch
from {stem} import model

from inference import posterior

TABLE = pd.read_csv(Path(__file__).with_name("{stem}.csv"))
X = torch.tensor(TABLE[["height", "age"]].values, dtype=torch.float32)
Y = torch.tensor(TABLE["y"].values, dtype=torch.float32)


def test_the_posterior_holds_the_truth():
    found = posterior(model, X, Y, seconds=30)
    assert found.trust, found
    slope = found.datatree.posterior["slope"]
    mean, sd = slope.mean(("chain", "draw")), slope.std(("chain", "draw"))
    assert (abs(mean - [2.0, -1.0]) < 4 * sd).all()  # the slopes that the data were drawn with
'''

AUTOENCODER = '''"""{title}: a latent for each datum, with an encoder that infers it.

zoo check {stem}.py:Pair --data digits
zoo fit {stem}.py:Pair --data digits --latent-dim 4 --steps 5000
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Pair(nn.Module):
    """z_i ~ N(0, I),  x_i | z_i ~ N(decoder(z_i), noise): change this into your own.

    Args:
        data_dim: the number of values of a datum.
        latent_dim: width of the latent.
        hidden: width of both networks.
    """

    def __init__(self, data_dim: int, latent_dim: int = 2, hidden: int = 64):
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = nn.Sequential(
            nn.Linear(data_dim, hidden), nn.Tanh(), nn.Linear(hidden, 2 * latent_dim)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, hidden), nn.Tanh(), nn.Linear(hidden, data_dim)
        )
        self.log_noise = nn.Parameter(torch.zeros(()))

    def model(self, x, size=None):
        """p(z) p(x | z) for a batch x (B, D) of `size` data."""
        pyro.module("pair", self)
        with pyro.plate("data", size or len(x), subsample=x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            noise = self.log_noise.exp()
            pyro.sample("x", dist.Normal(self.decoder(z), noise).to_event(1), obs=x)

    def guide(self, x, size=None):
        """q(z | x)."""
        pyro.module("pair", self)
        with pyro.plate("data", size or len(x), subsample=x):
            mean, log_sd = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, log_sd.exp()).to_event(1))
'''

AUTOENCODER_TEST = '''"""The pair of {stem}.py has no errors, and training raises its bound."""

import torch
from {stem} import Pair

from inference import check, fit

X = torch.randn(256, 1, generator=torch.Generator().manual_seed(0)) * torch.ones(1, 6)


def test_the_pair_is_right():
    assert not [f for f in check(Pair(6), X) if f.level == "error"]


def test_training_raises_the_bound():
    first, last = (fit(Pair(6), (X,), steps=n, lr=0.01, progress=False).elbo for n in (1, 400))
    assert last > first + 1.0  # nats per datum: six equal columns need one latent
'''

KINDS = {
    "regression": (REGRESSION, REGRESSION_TEST),
    "autoencoder": (AUTOENCODER, AUTOENCODER_TEST),
}


def write(name: str, kind: str) -> str:
    """Write the files into the working directory; what to type next.

    Raises:
        ValueError: it is no name of a module, no kind; a file is there already.
    """
    stem = re.sub(r"\.py$", "", name).replace("-", "_")
    if not stem.isidentifier() or keyword.iskeyword(stem):
        raise ValueError(f"new: expected a name such as my_pair, got {name!r}.")
    if kind not in KINDS:
        raise ValueError(f"--kind: expected {' or '.join(KINDS)}, got {kind!r}.")
    pair, test = KINDS[kind]
    files = {f"{stem}.py": pair, f"test_{stem}.py": test}
    files = {n: text.replace("{stem}", stem).replace("{title}", stem.replace("_", " ").capitalize())
             for n, text in files.items()}  # fmt: skip
    if kind == "regression":
        files[f"{stem}.csv"] = _line()
    if there := [n for n in files if Path(n).exists()]:
        raise ValueError(f"new: {there[0]} exists already. Choose another name.")
    for n, text in files.items():
        Path(n).write_text(text, encoding="utf-8")
    first = re.findall(r"^zoo .*", files[f"{stem}.py"], re.M)[0].split("#")[0].strip()
    return f"{', '.join(files)}: written. Next:\n  {first}\n  python -m pytest test_{stem}.py"


def _line() -> str:
    """Sixty rows of y = 1 + 2 height - age + noise, as a CSV."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    y = 1 + x @ [2.0, -1.0] + 0.5 * rng.normal(size=60)
    rows = "\n".join(f"{a:.3f},{b:.3f},{c:.3f}" for (a, b), c in zip(x, y))
    return f"height,age,y\n{rows}\n"
