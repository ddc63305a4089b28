"""The models: one file per family of generative models, each a Pyro pair.

Nothing here imports `inference`; a pair is a pair for plain Pyro as well.
"""

__version__ = "0.3.0"
