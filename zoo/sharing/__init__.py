"""Give away what was fitted: a run folder by a model hub, an encoder or decoder as one file."""
