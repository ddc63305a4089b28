"""Tables as people have them: read by name, prepared, split; refused in words."""

from .frame import ENDINGS, Column, Frame, read_array, read_frame, read_named, shown
from .prepare import CATEGORICAL, MISSING, agreed, matrix, prepared, usable

__all__ = [
    "CATEGORICAL",
    "ENDINGS",
    "MISSING",
    "Column",
    "Frame",
    "agreed",
    "matrix",
    "prepared",
    "read_array",
    "read_frame",
    "read_named",
    "shown",
    "usable",
]
