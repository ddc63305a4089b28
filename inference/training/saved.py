"""Runs read back from their folders: every field checked, for any trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint
from .checkpoint import Fields, number, whole
from .iterates import BLOCKS, places
from .state import COPIED, NESTED, PLAIN, History, Training
from .update import Variables

TRAINERS: dict[str, Callable] = {}  # kind of run -> its trainer


@dataclass(kw_only=True, repr=False)
class Saved(Training):
    """The state of a run in a folder, `path`, without its pair: something to `resume` from."""

    of: str
    path: Path | None

    @property
    def kind(self) -> str:
        """The class that it was saved from."""
        return self.of

    @staticmethod
    def of_run(run: Training) -> Saved:
        """The state of a run in memory, without its pair, its options and its folder."""
        own = {k: getattr(run, k) for k in COPIED}
        saved = Saved(
            of=run.kind, path=None, device=run.device, variables=run.variables,
            history=run.history, held=True, **own,
        )  # fmt: skip
        for name in run.further:
            setattr(saved, name, getattr(run, name))
        return saved


def load_run(folder: str | Path, *pair_and_data: Any, **own: Any) -> Any:
    """Read a run back, given what its trainer was given: `load_run(folder, model, guide, data)`.

    Args:
        folder: written by `run.save`, or by a trainer's `folder=`.
        pair_and_data: the pair and the data of `fit`, or what another trainer took.
        own: options of the trainer that a file cannot hold, such as a critic or an estimator of
            your own.

    Returns:
        What the trainer returned: parameters, history and all else, ready to be judged or resumed.

    Raises:
        FileNotFoundError: there is no run.
        ValueError: a file is damaged, or the pair is another.
    """
    saved = read_run(folder)
    saved.held = True
    if saved.kind not in TRAINERS:
        raise ValueError(
            f"{folder} holds a {saved.kind}, whose trainer is not imported. Import it first, as "
            "in: from inference.ratios.adversarial import fit_adversarial."
        )
    return TRAINERS[saved.kind](*pair_and_data, resume=saved, progress=False, **own)


def read_run(folder: str | Path) -> Saved:
    """Read the newest state in a folder that is whole.

    Raises:
        FileNotFoundError: there is none.
        ValueError: none is whole; file, field, what was expected and what came.
    """
    return checkpoint.read(Path(folder), _checked)


def _checked(tensors: dict[str, Tensor], fields: Fields) -> Saved:
    """The state in a file, when every field is what it should be."""
    kind = fields.take("kind", "the name of a result", str.isidentifier)
    state: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    fields.take(
        "state", "nested tensors", lambda v: (state.update(checkpoint.unpacked(v, tensors)), 1)
    )
    nested = Fields(fields.path, state)
    variables = Variables(
        nested.take("params", "tensors by name", _tensors),
        nested.take("buffers", "tensors by name", _tensors),
        nested.take("optim", "lists of tensors by name", _slots),
        nested.take("count", "a whole number in a tensor", _is_count),
    )
    fields.take(
        "settings", "options by name",
        lambda v: (settings.update({k: checkpoint.option_from_json(o) for k, o in v.items()}), 1),
    )  # fmt: skip
    fields.take("history", "rows of numbers", _is_history)
    fields.take("seed", "a whole number", lambda v: whole(v, -(2**63)))
    for name in ("seconds", "compile_seconds"):
        fields.number(name)
    fields.whole("since_best")
    fields.whole("repeats", 1)
    for name in ("eager_because", "not_replayed", "stopped"):
        fields.text(name, optional=True)
    fields.take("compiled", "true or false", lambda v: isinstance(v, bool))
    fields.take("best_step", "a whole number or null", lambda v: v is None or whole(v))
    rows, made = len(fields.values["history"]), nested.take("losses", "float64", _is_losses)
    fields.take("logged", "two lengths", lambda v: _lengths(v, rows, len(made)))
    fields.take("probe", "numbers, or null", _is_probe)
    nested.take(
        "best", "a number, a tensor, or null", lambda v: v is None or number(v) or _tensor(v)
    )
    nested.take("best_params", "tensors by name, or null", lambda v: v is None or _tensors(v))
    nested.take("batches", "the order of the batches, or null", lambda v: v is None or _is_order(v))
    nested.take("random_state", "states of generators, or null", _is_random)
    nested.take("optimiser_state", "a state by name, or null", _is_optimiser)
    nested.take("unlogged", "(n, columns), or null", lambda v: v is None or v.dim() == 2)
    nested.take("iterates", "moments of iterates, or null", lambda v: v is None or _is_stretch(v))
    nested.take("pace", "a rate and what was kept, or null", lambda v: v is None or _is_pace(v))
    plain = {k: fields.values[k] for k in PLAIN}
    saved = Saved(
        of=kind, path=fields.path.parent.resolve(), device=torch.device("cpu"),
        settings=settings, variables=variables,
        history=History([{k: float(v) for k, v in r.items()} for r in fields.values["history"]]),
        losses=made.tolist() if made.dim() == 1 else list(made.numpy()),
        **plain, **{k: state[k] for k in NESTED},
    )  # fmt: skip
    first, last = saved.logged
    saved.logged = first, last
    further = fields.take("further", "whole numbers or null by name", _is_further)
    for name, value in further.items():
        setattr(saved, name, value)
    return saved


def _tensor(v: Any) -> bool:
    return torch.is_tensor(v)


def _tensors(v: Any) -> bool:
    return isinstance(v, dict) and all(isinstance(k, str) and _tensor(t) for k, t in v.items())


def _slots(v: Any) -> bool:
    return isinstance(v, dict) and all(
        isinstance(k, str) and isinstance(s, list) and all(map(_tensor, s)) for k, s in v.items()
    )


def _is_count(v: Any) -> bool:
    return _tensor(v) and v.dim() == 0 and v.dtype == torch.int64 and int(v) >= 0


def _is_losses(v: Any) -> bool:
    return _tensor(v) and v.dtype == torch.float64 and v.dim() in (1, 2)


def _is_history(v: Any) -> bool:
    return isinstance(v, list) and all(
        isinstance(r, dict) and "step" in r and all(map(number, r.values())) for r in v
    )


def _lengths(v: Any, rows: int, losses: int) -> bool:
    return len(v) == 2 and all(map(whole, v)) and v[0] <= rows and v[1] <= losses


def _is_probe(v: Any) -> bool:
    return v is None or (isinstance(v["of"], str) and all(map(number, v["values"])))


def _is_order(v: Any) -> bool:
    torch.Generator().set_state(v["order"])  # RuntimeError where it is no state
    queue, rows = v["queue"], v["rows"]
    inside = queue.dtype == torch.int64 and queue.dim() == 1
    inside = inside and (not len(queue) or (int(queue.min()) >= 0 and int(queue.max()) < rows))
    pinned = isinstance(v["data"], dict) and all(isinstance(t, str) for t in v["data"].values())
    return whole(rows) and inside and pinned and (v["batch_size"] is None or whole(v["batch_size"]))


def _is_random(v: Any) -> bool:
    if v is None:
        return True
    torch.Generator().set_state(v["cpu"])
    return "cuda" not in v or (v["cuda"].dtype == torch.uint8 and v["cuda"].numel() == 16)


def _is_further(v: Any) -> bool:
    return all(n.isidentifier() and (x is None or whole(x)) for n, x in v.items())


def _is_stretch(v: Any) -> bool:
    begun = all(whole(v[k]) for k in ("start", "next")) and whole(v["length"], 1)
    counted = len(v["counts"]) == BLOCKS and all(map(whole, v["counts"]))
    if not (begun and counted and "origin" in v):
        return begun and counted and not any(v["counts"])
    size, seen = len(v["origin"]), v["squares"].shape[1]
    wide = v["sums"].shape == (BLOCKS, size) and v["squares"].shape == (BLOCKS, seen)
    return wide and seen == len(range(0, size, places(size)))


def _is_pace(v: Any) -> bool:
    said, scores = v["said"], v.get("scores")
    numbers = all(number(v[k]) for k in ("rate", "falls"))
    ended = said is None or (
        isinstance(said["good"], bool)
        and isinstance(said["text"], str)
        and isinstance(said["numbers"], dict)
    )
    grouped = scores is None or (_tensor(scores) and scores.dim() == 1 and number(v["stage"]))
    return numbers and v["rate"] > 0 and ended and grouped and _tensors(v["kept"])


def _is_optimiser(v: Any) -> bool:
    return v is None or (
        isinstance(v["name"], str) and all(isinstance(s, dict) for s in v["states"])
    )
