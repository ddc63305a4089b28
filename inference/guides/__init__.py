"""Guides to choose from, for any model, and a table that compares their fits."""

from .make import KINDS, make_guide
from .packed import laplace
from .table import GuideRow, GuideTable, fit_guides
