"""`zoo runs`: the folders of runs, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inference.estimate import Estimate
from inference.results.table import Table


def list_runs(root: str) -> str:
    """A table of the run folders in a folder: what was fitted, when it ended, its numbers.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"runs: there is no folder {folder}. zoo fit makes one.")
    here = [folder] if (folder / "config.json").exists() else sorted(folder.iterdir())
    rows = [_line(p) for p in here if p.is_dir() and not p.name.startswith(".")]
    if not any(rows):
        raise FileNotFoundError(f"runs: there is no run in {folder}. zoo fit makes one.")
    head = ["run", "log p(x)", "ELBO", "bits / dim", "verdict", "steps", "command"]
    return str(Table(head, [r for r in rows if r], left=(0, 4, 6)))


def _line(folder: Path) -> list[str]:
    """A line about a folder; empty where it is no run."""
    config, metrics = _json(folder / "config.json"), _json(folder / "metrics.json")
    command = config.get("command")
    if command is None and (folder / "command.txt").is_file():
        command = (folder / "command.txt").read_text(errors="replace").strip()
    if not isinstance(command, str):
        return []

    def number(key: str) -> str:
        value, se = metrics.get(key), metrics.get(f"{key}_se")
        if not isinstance(value, (int, float)):
            return ""
        return Estimate(float(value), se if isinstance(se, float) else None).number(3)

    verdict = _json(folder / "diagnosis.json").get("verdict", "")
    settings = config.get("settings")
    steps = settings.get("steps", "") if isinstance(settings, dict) else ""
    return [
        folder.name, number("log_px"), number("elbo"), number("bits_per_dim"), str(verdict),
        f"{steps:,}" if isinstance(steps, int) else "", command[:200],
    ]  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    """An object in a file, empty where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
