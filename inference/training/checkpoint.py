"""A run <-> a folder of safetensors and JSON. Nothing is ever pickled.

A folder holds `config.json` (how the run was made and where it stands), `history.csv`, `losses.csv`
and `state.safetensors` (parameters, buffers, optimiser state, random state, order of the batches).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .run import History, Run
from .update import Variables

FORMAT = 1


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
    if not folder.exists():
        with whole_folder(folder) as inside:
            _write(run, inside, config)
    elif (folder / "state.safetensors").exists():
        raise FileExistsError(f"{folder} holds a run already. Name a new folder.")
    else:
        _write(run, folder, config)
    return folder


def _write(run: Run, folder: Path, config: dict[str, Any]) -> None:
    v = run.variables
    tensors: dict[str, torch.Tensor] = {}
    for group, items in (
        ("params", v.params),
        ("buffers", v.buffers),
        ("best", run.best_params or {}),
        ("batches", run.batches or {}),
    ):
        tensors |= {f"{group}/{k}": t for k, t in items.items()}
    for key, slots in v.optim.items():
        tensors |= {f"optim/{key}/{i}": t for i, t in enumerate(slots)}
    tensors["count"] = v.count
    if run.random_state is not None:
        tensors["random_state"] = run.random_state
    save_file(
        {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()},
        folder / "state.safetensors",
    )
    meta = {
        "format": FORMAT,
        "steps": int(v.count),
        "unit": run.unit,
        "seed": run.seed,
        "estimator": repr(run.estimator),
        "optimiser": repr(run.update.optimiser) if run.update else None,
        "seconds": round(run.seconds, 3),
        "compiled": run.compiled,
        "compile_seconds": round(run.compile_seconds, 3),
        "eager_because": run.eager_because,
        "stopped": run.stopped,
        "best": run.best,
        "best_step": run.best_step,
        "full_sizes": run.pair_.full_sizes,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(meta, indent=2) + "\n")
    (folder / "history.csv").write_text(run.history.to_csv())
    (folder / "losses.csv").write_text("loss\n" + "".join(f"{x:.9g}\n" for x in run.losses))


def config(folder: str | Path) -> dict[str, Any]:
    """What `config.json` of a run folder says.

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
    if meta.get("format", 0) > FORMAT:
        raise ValueError(f"{path} has format {meta['format']}, this version reads {FORMAT}.")
    return meta


def load(folder: str | Path, start: Callable[[], Run]) -> Run:
    """Read a run back: its parameters, history and everything needed to go on.

    Args:
        folder: written by `save`.
        start: makes an unfitted run of the same pair (`inference.training.start`).

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
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in stored.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = tensor.to(
            "cpu" if group in ("batches", "random_state") else run.device
        )
    _same(groups.get("params", {}), run.pair_.params, folder)
    optim: dict[str, list[torch.Tensor]] = {}
    for name in sorted(
        groups.get("optim", {}), key=lambda n: (n.split("/")[0], int(n.split("/")[1]))
    ):
        optim.setdefault(name.split("/")[0], []).append(groups["optim"][name])
    optim["count"] = [c.long() for c in optim.get("count", ())]
    run.variables = Variables(
        {k: groups["params"][k] for k in run.pair_.params},
        {k: groups["buffers"][k] for k in run.pair_.buffers},
        optim,
        groups["count"][""].long(),  # earlier versions counted in float32
    )
    run.best_params = groups.get("best") or None
    run.batches = groups.get("batches") or None
    run.random_state = groups["random_state"][""] if "random_state" in groups else None
    for key in ("seconds", "compiled", "compile_seconds", "eager_because", "stopped", "best",
                "best_step", "unit", "seed"):  # fmt: skip
        setattr(run, key, meta.get(key, getattr(run, key)))
    run.pair_.full_sizes = meta.get("full_sizes", {})
    run.history = _history((folder / "history.csv").read_text())
    run.losses = [float(x) for x in (folder / "losses.csv").read_text().split()[1:]]
    return run.finish()


def _same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], folder: Path) -> None:
    shapes = {k: tuple(v.shape) for k, v in found.items()}
    wanted = {k: tuple(v.shape) for k, v in expected.items()}
    if shapes != wanted:
        wrong = sorted(k for k in {*shapes, *wanted} if shapes.get(k) != wanted.get(k))
        first = wrong[0]
        raise ValueError(
            f"{folder}: {len(wrong)} parameters do not fit the pair, first {first!r}: expected "
            f"{wanted.get(first, 'none')}, found {shapes.get(first, 'none')}. Build the pair with "
            "the options in config.json."
        )


def _history(text: str) -> History:
    lines = [line.split(",") for line in text.strip().splitlines()]
    rows = [
        {k: float(v) for k, v in zip(lines[0], row) if v != "" and not math.isnan(float(v))}
        for row in lines[1:]
    ]
    return History(rows)
