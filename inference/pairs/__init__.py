"""Pairs: a model and a guide, checked, as a pure function of their parameters."""
