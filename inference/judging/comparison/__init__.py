"""Choose the estimator for a pair: value, bias, noise and cost of each, measured.

from inference import compare, elbo

found = compare(vae, digits.test[:64], [elbo.Trace(), elbo.IWAE(8), elbo.DReG(8)])
print(found)               # a table, and one estimator recommended in a sentence
found.plot()               # signal-to-noise and variance against K, efficiency, layers
"""

from .measure import compare
from .result import Comparison

__all__ = ["Comparison", "compare"]
