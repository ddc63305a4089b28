"""Judgements of a pair by its draws: evaluation, diagnosis, comparison of estimators, calibration."""
