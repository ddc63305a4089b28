"""Ratios of our steps against named peers, interleaved in one run. See `python -m benchmarks -h`."""
