"""Judgements of a pair by its draws: evaluation, diagnosis, comparison, calibration."""
