"""How a Pyro pair is fitted and judged."""
