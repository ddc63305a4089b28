"""What draws say of a pair: evaluation, diagnosis, comparison of estimators, calibration."""
