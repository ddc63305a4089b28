"""Guides to choose from, for any model, and a table that compares their fits."""

from .climbing import Posterior, posterior
from .make import KINDS, make_guide
from .table import GuideRow, GuideTable, fit_guides

__all__ = ["KINDS", "GuideRow", "GuideTable", "Posterior", "fit_guides", "make_guide", "posterior"]
