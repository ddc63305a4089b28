"""Fit and judge a Pyro pair: any Pyro model and guide, the zoo's or yours.

Each name below is imported when it is first used, so that `import inference` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import elbo as elbo
    from . import optim as optim
    from .draws.datatree import to_datatree as to_datatree
    from .draws.datatree import write_datatree as write_datatree
    from .draws.prediction import predict as predict
    from .guides import fit_guides as fit_guides
    from .guides import make_guide as make_guide
    from .guides import posterior as posterior
    from .judging.calibration import calibrate as calibrate
    from .judging.comparison import compare as compare
    from .judging.diagnosis import diagnose as diagnose
    from .judging.evaluation import evaluate as evaluate
    from .networks.recurrence import scan as scan
    from .pairs.inspection import check as check
    from .training.fitting import fit as fit
    from .training.many import fit_many as fit_many
    from .training.saved import load_run as load_run
    from .weights import log_weights as log_weights

_HOMES = {
    "calibrate": "judging.calibration",
    "check": "pairs.inspection",
    "compare": "judging.comparison",
    "diagnose": "judging.diagnosis",
    "elbo": "",
    "evaluate": "judging.evaluation",
    "fit": "training.fitting",
    "fit_guides": "guides",
    "fit_many": "training.many",
    "load_run": "training.saved",
    "log_weights": "weights",
    "make_guide": "guides",
    "optim": "",
    "posterior": "guides",
    "predict": "draws.prediction",
    "scan": "networks.recurrence",
    "to_datatree": "draws.datatree",
    "write_datatree": "draws.datatree",
}
__all__ = list(_HOMES)
__version__ = "0.3.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    if not home:
        return importlib.import_module(f".{name}", __name__)
    return getattr(importlib.import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
