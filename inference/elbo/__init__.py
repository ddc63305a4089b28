"""ELBO estimators: each turns log weights into a bound in nats and a gradient.

Every class here is a `pyro.infer.ELBO`: `pyro.infer.SVI(model, guide, optim, loss=elbo.IWAE(8))`
works, and so does `inference.fit(..., elbo=elbo.IWAE(8))`. To add one, write `bound`, and
`surrogate` where the gradient is not the bound's own; `inference.testing.check_estimator` says
whether it is right.

| estimator | value | gradient |
|---|---|---|
| `Trace` | ELBO | total derivative; score function at sites that need it |
| `MeanField` | ELBO, divergences in closed form | total derivative |
| `STL` | ELBO | path derivative |
| `Score` | ELBO | score function at every site |
| `Enum` | ELBO, discrete guide sites averaged exactly | total derivative |
| `Beta` | tempered, annealed, with free bits | total derivative |
| `IWAE`, `MIWAE`, `CIWAE`, `Renyi` | K-sample bounds | total derivative |
| `DReG` | IWAE | doubly reparameterised for the guide |
| `VIMCO`, `OVIS` | IWAE | score function with leave-one-out bounds, or further draws |
| `GDReG` | IWAE | doubly reparameterised for normal priors too |
| `DisARM`, `Rebar` | ELBO | discrete sites by antithetic draws, by relaxed control variates |
| `GumbelSoftmax` | ELBO | discrete sites by a relaxed path: biased |
| `Taylor` | ELBO | path derivative less what is linear about the guide's mean |
| `Sobol` | another estimator's | the same at quasi-Monte Carlo draws |
| `WakeSleep`, `ThermodynamicVI` | K-sample bounds | none of a bound |
| `ForwardKL`, `CUBO` | minus KL(p to q), minus an upper bound | guide only |
| `MMD`, `TotalCorrelation` | another estimator's, less a named penalty | its own |
"""

from .additive import STL, Beta, Enum, MeanField, Score, Trace
from .base import Estimator, analytic_kl, estimator_of, kl_by_site, score_function
from .discrete import DisARM, GumbelSoftmax, Rebar
from .multisample import CIWAE, IWAE, MIWAE, OVIS, VIMCO, DReG, Renyi
from .paths import GDReG, Sobol, Taylor
from .penalty import MMD, TotalCorrelation
from .wake import CUBO, ForwardKL, ThermodynamicVI, WakeSleep

__all__ = [
    "CIWAE",
    "CUBO",
    "IWAE",
    "MIWAE",
    "MMD",
    "OVIS",
    "STL",
    "VIMCO",
    "Beta",
    "DReG",
    "DisARM",
    "Enum",
    "Estimator",
    "ForwardKL",
    "GDReG",
    "GumbelSoftmax",
    "MeanField",
    "Rebar",
    "Renyi",
    "Score",
    "Sobol",
    "Taylor",
    "ThermodynamicVI",
    "TotalCorrelation",
    "Trace",
    "WakeSleep",
    "analytic_kl",
    "estimator_of",
    "kl_by_site",
    "score_function",
]
