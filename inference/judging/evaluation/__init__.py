"""Quality of a fitted pair on data it has not seen: bounds, their parts, active units, k-hat."""

from .evaluating import evaluate
from .evaluation import Evaluation
from .surgery import Surgery

__all__ = ["Evaluation", "Surgery", "evaluate"]
