"""How good a fitted pair is on data it has not seen: bounds, their parts, active units, k-hat."""

from .evaluation import Evaluation
from .evaluating import evaluate
from .surgery import Surgery

__all__ = ["Evaluation", "Surgery", "evaluate"]
