"""A stand-in for CUDA graphs, with which a CPU goes the way of a GPU."""

import torch

from inference.graph import Captured
from inference.training import steps


def again(body):
    """Instead of a captured graph: the replay makes the launches once more."""
    with torch.no_grad():
        body()
    return body


def use(monkeypatch):
    """Compiled steps are captured, as on a GPU, by the stand-in."""
    monkeypatch.setattr(steps, "on_cuda", lambda t: True)
    monkeypatch.setattr(steps, "Captured", lambda *args: Captured(*args, record=again))
