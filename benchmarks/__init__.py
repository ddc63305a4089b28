"""Ratios of our steps against named peers, interleaved in one run (`python -m benchmarks -h`)."""
