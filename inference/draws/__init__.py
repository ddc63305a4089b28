"""Draws of a fitted pair, in chunks of bounded memory, as one tree of named arrays."""
