"""How a Pyro pair is fitted and judged: any Pyro model and guide, the zoo's or yours."""

from . import elbo, optim
from .evaluate import evaluate
from .fit import fit
from .weights import log_weights

__all__ = ["elbo", "evaluate", "fit", "log_weights", "optim"]
