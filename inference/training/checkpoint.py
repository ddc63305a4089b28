"""A run <-> a folder of safetensors and JSON. Nothing is ever pickled.

A folder holds `config.json` (how the run was made and where it stands), `history.csv`, `losses.csv`
and `state.safetensors` (parameters, buffers, optimiser state, random state, order of the batches).
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .. import optim
from ..optim import SGD, Optimiser
from .run import Run
from .state import History, Training, refuse_others
from .update import Variables

FORMAT = 2
TENSORS = ("best_params", "batches", "random_state", "optimiser_state")
APART = ("device", "settings", "variables", "history", "losses")  # by lines of their own
PLAIN = [f.name for f in dataclasses.fields(Training) if f.name not in (*TENSORS, *APART)]


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A new folder that appears at `path` complete, or not at all.

    Yields a temporary sibling to write into; it takes its name when the block ends well and is
    removed when it does not.

    Raises:
        FileExistsError: there is something at `path` already.
        PermissionError: its parent cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(
            f"{path} exists already; a run never overwrites another. Name a new one."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        inside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise PermissionError(
            f"{path.parent} cannot be written ({error.strerror}). Choose another folder."
        ) from error
    try:
        os.chmod(inside, 0o755)
        yield inside
        if path.exists():
            raise FileExistsError(
                f"{path} was made by somebody else meanwhile; nothing was written."
            )
        os.rename(inside, path)
    except BaseException:
        shutil.rmtree(inside, ignore_errors=True)
        raise


def save(run: Run, folder: str | Path, **config: Any) -> Path:
    """Write a run into an existing folder, or into a new one, whole.

    Args:
        run: what `fit` returned.
        folder: where; if it does not exist it appears complete or not at all.
        config: anything JSON can hold, added to `config.json` (how to build the pair again).

    Raises:
        FileExistsError: the folder holds a run already.
    """
    folder = Path(folder)
    if (folder / "state.safetensors").exists():
        raise FileExistsError(f"{folder} holds a run already. Name a new folder.")
    tensors: dict[str, torch.Tensor] = {}
    shape = _packed({**vars(run.variables), **{k: getattr(run, k) for k in TENSORS}}, tensors, "")
    optimiser = run.settings.get("optimiser")
    known = {k: v for k, v in run.settings.items() if isinstance(v, str | int | float | bool)}
    if isinstance(optimiser, Optimiser):
        known["optimiser"] = [type(optimiser).__name__, dataclasses.asdict(optimiser)]
    meta = {
        "format": FORMAT,
        "steps": run.steps,
        "unit": run.unit,
        "estimator": repr(run.estimator),
        "optimiser": repr(optimiser),
        "run": known,
        "state": shape,
        **{k: getattr(run, k) for k in PLAIN},
        **config,
    }
    with nullcontext(folder) if folder.exists() else whole_folder(folder) as inside:
        save_file(tensors, inside / "state.safetensors")
        (inside / "config.json").write_text(json.dumps(meta, indent=2) + "\n")
        (inside / "history.csv").write_text(run.history.to_csv())
        (inside / "losses.csv").write_text("loss\n" + "".join(f"{x!r}\n" for x in run.losses))
    return folder


def _packed(value: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """Nested dictionaries and lists as JSON, their tensors put aside under names."""
    if torch.is_tensor(value):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        items = [[k, _packed(v, tensors, f"{name}/{k}".strip("/"))] for k, v in value.items()]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        return {"list": [_packed(v, tensors, f"{name}/{i}") for i, v in enumerate(value)]}
    return {"value": value}


def _unpacked(packed: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    """Restore what `_packed` took apart."""
    if "tensor" in packed:
        return tensors[packed["tensor"]]
    if "dict" in packed:
        return {k: _unpacked(v, tensors) for k, v in packed["dict"]}
    return packed["value"] if "value" in packed else [_unpacked(v, tensors) for v in packed["list"]]


def config(folder: str | Path) -> dict[str, Any]:
    """Read the `config.json` of a run folder.

    Raises:
        FileNotFoundError: there is no run in this folder.
        ValueError: the file is damaged, or of a later version.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no run here (looked for {path}).")
    try:
        meta = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}. Fit again, or restore the file.") from error
    if meta.get("format", FORMAT) != FORMAT:  # what was trained without a loop has none
        raise ValueError(
            f"{path} has format {meta['format']}, this version reads {FORMAT}. Fit again, or "
            "use the version of the library that wrote it."
        )
    return meta


def load(folder: str | Path, start: Callable[[], Run]) -> Run:
    """Read a run back: its parameters, history and everything needed to go on.

    Args:
        folder: written by `save`.
        start: makes an unfitted run of the same pair (`inference.training.run.new_run`).

    Raises:
        FileNotFoundError: a file of the run is missing.
        ValueError: the parameters in the folder are not those of the pair (names, shapes).
    """
    folder = Path(folder)
    meta = config(folder)
    path = folder / "state.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: the run has no parameters (looked for {path}).")
    try:
        stored = load_file(path)
    except Exception as error:
        raise ValueError(f"{path} is damaged: {error}. Fit again, or restore the file.") from error
    run = start()
    state = _unpacked(meta["state"], stored)
    empty = Variables.start(run.pair_, SGD())
    saved = Variables(**{name: state[name] for name in vars(empty)})
    refuse_others(dataclasses.replace(saved, optim=empty.optim), empty, str(folder))
    run.variables = saved.like([t.to(run.device) for t in saved.flat()])
    for key, value in [*((k, state[k]) for k in TENSORS), *((k, meta[k]) for k in PLAIN)]:
        setattr(run, key, value)
    run.best_params = run.best_params and {k: t.to(run.device) for k, t in run.best_params.items()}
    run.settings = {**meta["run"], "elbo": run.estimator}
    if "optimiser" in meta["run"]:
        name, options = meta["run"]["optimiser"]
        listed = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        run.settings["optimiser"] = getattr(optim, name)(**listed)
    run.unit = meta["unit"]
    run.history = History.from_csv((folder / "history.csv").read_text())
    run.losses = [float(x) for x in (folder / "losses.csv").read_text().split()[1:]]
    run.write_back()
    return run
