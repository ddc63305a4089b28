"""The record of a training, and the state from which it can be resumed."""

from __future__ import annotations

import copy
import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from . import checkpoint
from .folders import whole_folder
from .update import Variables


@dataclass
class History:
    """One row per log interval: step, mean loss since the last row, seconds, held-out values.

    `history["loss"]` is a numpy array, NaN where a row lacks the column.
    """

    rows: list[dict[str, float]] = field(default_factory=list)

    def add(self, row: dict[str, float]) -> None:
        """Append a row."""
        self.rows.append(row)

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in the order they first came."""
        return list(dict.fromkeys(k for r in self.rows for k in r))

    def __getitem__(self, column: str) -> np.ndarray:
        return np.array([r.get(column, np.nan) for r in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def to_csv(self) -> str:
        """The table as comma-separated text, every digit kept."""
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return out.getvalue()

    @staticmethod
    def from_csv(text: str) -> History:
        """Read back what `to_csv` wrote."""
        rows = csv.DictReader(io.StringIO(text))
        return History([{k: float(v) for k, v in row.items() if v != ""} for row in rows])


@dataclass(kw_only=True)
class Training:
    """The part that all trainers' results share: how it went, and the state to go on from.

    Attributes:
        device, seed: where it ran, and what everything random in it follows from.
        settings: the trainer's options, which a resumed run takes over.
        variables: parameters, buffers, optimiser state and the number of steps made.
        history: a row per log interval and validation: step, losses, seconds, held-out values.
        losses: every step's loss.
        seconds: of the loop, compiling included; `compile_seconds` of them on compiling.
        compiled: whether the compiled step was used; `eager_because` says why not, and
            `not_replayed` why it is called from Python, once for each update.
        stopped: why the training ended before its last step, or None.
        best, best_step: the best held-out score and its step, None without validation.
        best_params: the tensors kept from that step.
        since_best: validations since then.
        batches, random_state, optimiser_state: of the order of the batches, of torch's random
            numbers, and of an optimiser of torch or Pyro.
        repeats: updates in one call of the compiled step.
        unlogged: values of the steps since the last row that an interval ended, and `logged` the
            lengths of history and losses there: a run that goes on takes back what came since.
        probe: the values of one update from here on the first rows, and of what; another pair has
            others.
        iterates: averages and spreads of the parameters over a stretch of the last steps, from
            which `Run.converged` follows.
        pace: of `steps="auto"`: the rate, what was kept, and how it ended.
        held: read back to be looked at: a trainer makes no step.
    """

    further: ClassVar[tuple[str, ...]] = ()  # further fields of a subclass that its state needs

    device: torch.device
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    variables: Variables = None  # type: ignore[assignment]
    history: History = field(default_factory=History)
    losses: list = field(default_factory=list)
    seconds: float = 0.0
    compiled: bool = False
    compile_seconds: float = 0.0
    eager_because: str | None = None
    not_replayed: str | None = None
    stopped: str | None = None
    best: Any = None
    best_step: int | None = None
    best_params: dict[str, Tensor] | None = None
    since_best: int = 0
    batches: dict[str, Any] | None = None
    random_state: dict[str, Tensor] | None = None
    optimiser_state: dict[str, Any] | None = None
    repeats: int = 1
    unlogged: Tensor | None = None
    logged: tuple[int, int] = (0, 0)
    probe: dict[str, Any] | None = None
    iterates: dict[str, Any] | None = None
    pace: dict[str, Any] | None = None
    held: bool = False

    @property
    def kind(self) -> str:
        """The name of the class, which says by what trainer it was made."""
        return type(self).__name__

    @property
    def skipped(self) -> int:
        """Number of steps that changed nothing, for loss or gradient was not finite."""
        return sum(x != x for x in self.losses) if self.kind != "Runs" else 0

    @property
    def steps(self) -> int:
        """Number of steps made."""
        return int(self.variables.count)

    def log(self, values: Tensor, columns: Sequence[str], shown: int) -> dict[str, float]:
        """Means of the values of some steps (n, columns), and their losses added to `losses`."""
        self.losses.extend(values[:, shown].tolist())
        return dict(zip(columns, values.nanmean(0).tolist()))

    def kept(self) -> dict[str, Tensor]:
        """The tensors that a validation judges, and of which the best are kept."""
        return self.variables.params

    @property
    def final(self) -> dict[str, Tensor]:
        """The tensors that are kept: of the best validation, else the last."""
        return self.kept() if self.best_params is None else self.best_params

    def keep_best(self, score: Tensor) -> None:
        """Keep the present parameters where their score, () or one per fit, is the best so far."""
        before = torch.as_tensor(-math.inf if self.best is None else self.best).to(score)
        better = score > before  # never where the score is NaN
        self.since_best += 1
        if not bool(better.any()):
            return
        self.best_params = {
            k: torch.where(better.reshape(better.shape + (1,) * (p.dim() - better.dim())), p, q)
            for (k, p), q in zip(self.kept().items(), self.final.values())
        }
        best = torch.where(better, score, before)
        self.best = best if best.dim() else float(best)
        self.best_step, self.since_best = self.steps, 0

    def go_on_from(self, other: Training | None, steps: int | None) -> None:
        """Take over a copy of the state of another training, if any, for so many steps in all.

        Args:
            steps: None where the training ends by itself.

        Raises:
            TypeError: it is no result of the same trainer.
            ValueError: it has made them already, or its variables are others than those here
                (names, shapes, optimiser).
        """
        if other is None:
            return
        if other.kind != self.kind:
            raise TypeError(
                f"resume: expected a {self.kind} that the same trainer returned, got {other.kind}."
            )
        if steps is not None and steps <= other.steps and not other.held:
            raise ValueError(
                f"steps: the run has made {other.steps:,} of them; ask for more in all, as in "
                f"steps={2 * other.steps}."
            )
        if self.seed != other.seed:
            raise ValueError(
                f"seed: the run's random numbers go on from seed {other.seed}, got {self.seed}. "
                "Leave seed= out, or begin anew: fit(run.model, run.guide, data)."
            )
        refuse_others(other.variables, self.variables, "resume: the run")
        kept = {k: _like(t) for k, t in self.kept().items()}
        if other.best_params is not None and kept != {
            k: _like(t) for k, t in other.best_params.items()
        }:
            raise ValueError(
                "resume: the best parameters of the run do not fit the pair. Give the pair that "
                "was fitted, with its options."
            )
        self.variables.assign(other.variables)
        self.history = History([dict(row) for row in other.history.rows])
        for name in (*COPIED, *self.further):
            setattr(self, name, copy.deepcopy(getattr(other, name, None)))
        self.held = other.held
        if self.best_params is not None:
            self.best_params = {k: t.to(self.device) for k, t in self.best_params.items()}

    def save(self, folder: str | Path) -> Path:
        """Write the run's state, whole, into a folder without one, or a new one.

        `inference.load_run(folder, model, guide, data)` reads it back, and `resume=folder` goes on
        from it.

        Raises:
            FileExistsError: the folder holds a run already.
        """
        folder = Path(folder)
        if (folder / checkpoint.STATE).exists():
            raise FileExistsError(f"{folder} holds a run already. Name a new folder.")
        if folder.is_dir():
            self.write(folder)
        else:
            with whole_folder(folder) as inside:
                self.write(inside)
        return folder

    def write(self, folder: Path) -> None:
        """Write the state into a folder, in place of the one before, which is kept beside it."""
        tensors: dict[str, Tensor] = {}
        losses = torch.as_tensor(np.array(self.losses), dtype=torch.float64)
        nested = {k: getattr(self, k) for k in NESTED} | {"losses": losses}
        checkpoint.write(folder, tensors, {
            "kind": self.kind,
            "state": checkpoint.packed({**vars(self.variables), **nested}, tensors),
            "settings": {k: checkpoint.option_as_json(v) for k, v in self.settings.items()},
            "history": self.history.rows,
            "further": {k: getattr(self, k) for k in self.further},
            **{k: getattr(self, k) for k in PLAIN},
        })  # fmt: skip


NESTED = (
    "best",
    "best_params",
    "batches",
    "random_state",
    "optimiser_state",
    "unlogged",
    "iterates",
    "pace",
)  # fields that hold tensors; all others but these are plain
_APART = ("device", "settings", "variables", "history", "held")
COPIED = tuple(f.name for f in dataclasses.fields(Training) if f.name not in _APART)
PLAIN = tuple(n for n in COPIED if n not in (*NESTED, "losses"))


def refuse_others(found: Variables, expected: Variables, who: str) -> None:
    """Raise ValueError unless two sets of variables have the same names, shapes and types."""
    for kind in ("params", "buffers"):
        got, want = ({k: _like(t) for k, t in getattr(v, kind).items()} for v in (found, expected))
        wrong = sorted(k for k in {*got, *want} if got.get(k) != want.get(k))
        if wrong:
            raise ValueError(
                f"{who}: {len(wrong)} {'parameters' if kind == 'params' else 'buffers'} do not fit "
                f"the pair, first {wrong[0]!r}: expected {want.get(wrong[0], 'none')}, found "
                f"{got.get(wrong[0], 'none')}. Give the pair that was fitted, with its options."
            )
    slots, wanted = (
        {k: list(map(_like, s)) for k, s in v.optim.items()} for v in (found, expected)
    )
    if slots != wanted:
        raise ValueError(
            f"{who}: the state of its optimiser ({', '.join(sorted(slots))}) is of no use to "
            f"the one given ({', '.join(sorted(wanted))}). Leave optimiser= out, or begin "
            "anew from its parameters: fit(run.model, run.guide, data, optimiser=...)."
        )


def _like(t: Tensor) -> str:
    """Shape and type of a tensor, in words."""
    return f"{tuple(t.shape)}" + ("" if t.dtype == torch.float32 else f" {t.dtype}")


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators, of the CPU and of a CUDA device."""
    state = {"cpu": torch.random.get_rng_state()}
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Put torch's generators back to where `random_state` saw them."""
    torch.random.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def all_random_states(of_ranks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The states of several ranks as one: those of rank 0 under their names, others numbered."""
    found = dict(of_ranks[0])
    for rank, state in enumerate(of_ranks[1:], 1):
        found |= {f"{name} {rank}": t for name, t in state.items() if " " not in name}
    return found


def own_random_state(state: Mapping[str, Tensor] | None, rank: int) -> dict[str, Tensor] | None:
    """The part of one rank, or None where there is none."""
    if state is None:
        return None
    tail = f" {rank}" if rank else ""
    kinds = ("cpu", "cuda")
    return {k: state[k + tail] for k in kinds if k + tail in state} or None
