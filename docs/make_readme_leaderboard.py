"""The leaderboard of the README: held-out log p(x) of density models on sets of scikit-learn.

What `zoo leaderboard` finds on each set goes into docs/leaderboard.json, and as a table into the
README. `python docs/make_readme_leaderboard.py --minutes 3` takes that long for each set.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from zoo.cards import CARDS
from zoo.cli.leaderboard import compare_models, default_names, dequantised
from zoo.data import DataSet, load

ROOT = Path(__file__).resolve().parent.parent
FOUND = ROOT / "docs" / "leaderboard.json"
START, END = "<!-- leaderboard -->\n", "\n<!-- /leaderboard -->"


def sets(seed: int = 0) -> dict[str, DataSet]:
    """The sets by the heads of their columns: tables standardised, digits with pixels drawn."""
    from sklearn.datasets import load_breast_cancer, load_iris, load_wine

    tables = {"iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer}
    out = {
        name: dequantised(load(read(as_frame=True).data), seed)[0].standardised()
        for name, read in tables.items()
    }
    return {**out, "digits, binary": load("digits", pixels="dynamic", seed=seed)}


def table(kept: dict[str, Any]) -> str:
    """The table of the README and its budget, from what is in the file."""
    found = kept["sets"]
    named = {name: {r["model"]: r for r in board["rows"]} for name, board in found.items()}
    heads = [f"{name} ({board['dims']})" for name, board in found.items()]
    every = dict.fromkeys(m for rows in named.values() for m in rows)
    order = sorted(every, key=lambda m: [*CARDS, m].index(m))
    lines = ["| model | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for model in order:
        shown = f"`{model}`" if model in CARDS else model
        cells = [_cell(rows.get(model)) for rows in named.values()]
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    steps = [r["steps"] for b in found.values() for r in b["rows"] if r["options"] and r["steps"]]
    budget = f"{kept['minutes']:g} minutes a set for all models together"
    return "\n".join([*lines, "", f"Budget: {budget}; {min(steps):,} to {max(steps):,} steps."])


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or row["log_px"] is None:
        return ""
    bound = "≥ " if row["kind"] == "≥" else ""
    number = f"{bound}{row['log_px']:.2f} ± {row['log_px_se']:.2f}".replace("-", "−")
    return f"**{number}**" if row["within_error"] else number


def main() -> None:
    """Rank the models, and write file and table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="for each set")
    minutes = parser.parse_args().minutes
    found: dict[str, Any] = {}
    for name, data in sets().items():
        board = compare_models(data, default_names(data), 60 * minutes)
        print(name, board, sep="\n", flush=True)
        found[name] = json.loads(board.to_json())
    kept = {"minutes": minutes, "sets": found}
    FOUND.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(START)
    after = rest.split(END.lstrip("\n"))[1]
    readme.write_text(before + START + table(kept) + END + after)


if __name__ == "__main__":
    main()
