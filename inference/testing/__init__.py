"""Truths for those who add an estimator: toy pairs with known answers, and a check against them."""

from .estimators import check_estimator

__all__ = ["check_estimator"]
