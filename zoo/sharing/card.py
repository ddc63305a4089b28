"""The card of a run on a model hub: what it is, of which data, its numbers, its verdict."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from inference.training.checkpoint import Fields
from inference.training.folders import STATE, read_whole


def model_card(folder: str | Path, repo: str) -> str:
    """Markdown from the JSON files of a run folder.

    Args:
        folder: of a run, with its page.
        repo: OWNER/NAME, under which it will be found.

    Raises:
        FileNotFoundError: the folder has no page.
        ValueError: its data are damaged.
    """
    folder = Path(folder)
    path = folder / "page" / "report.json"
    said = Fields(path, json.loads(read_whole(path)))
    title = said.text("title")
    metrics = said.take("metrics", "numbers with labels", lambda v: all("number" in m for m in v))
    name = repo.partition("/")[2]
    parts = [
        "---\nlibrary_name: pyro-zoo\ntags:\n- pyro\n- variational-inference\n---",
        f"# {_plain(title)}", _plain(said.text("subtitle")), _code("sh", said.text("command")),
    ]  # fmt: skip
    facts = said.values.get("facts", {}).get("Data", {})
    if facts:
        parts += ["## Data", "\n".join(f"- {_plain(k)}: {_plain(v)}" for k, v in facts.items())]
    rows = [[m["label"], m["number"], m.get("unit", ""), m.get("note", "")] for m in metrics]
    if rows:
        parts += ["## Numbers", _table(["", "value ± standard error", "unit", ""], rows)]
    for table in said.values.get("tables", []):
        parts += [f"## {_plain(table['title'])}", _table(table["head"], table["rows"])]
    if verdict := _verdict(folder):
        parts += ["## Verdict", verdict]
    for picture in said.values.get("pictures", [])[:1]:
        parts.append(f"![{_plain(picture['caption'])}](figures/{picture['name']}.png)")
    how = f"pip install 'pyro-zoo[command,hub]'\nzoo pull {repo}"
    if (folder / STATE).exists():
        how += f"\nzoo sample runs/{name}      # draws; zoo report judges it anew"
    parts += ["## How to load it", _code("sh", how)]
    if (folder / STATE).exists():
        parts.append(
            "In Python, with the model that was fitted and its data: "
            f'`inference.load_run("runs/{name}", model, guide, data)`. No code of this folder is '
            "run. Data of one's own are looked for by their name in the present folder."
        )
    return "\n\n".join(p for p in parts if p) + "\n"


def _verdict(folder: Path) -> str:
    """The verdict of `diagnosis.json` with its reasons, or nothing."""
    path = folder / "diagnosis.json"
    if not path.exists():
        return "Not diagnosed." if (folder / STATE).exists() else ""
    found = Fields(path, json.loads(read_whole(path)))
    reasons = found.values.get("reasons", [])
    lines = [f"**{_plain(found.text('verdict'))}**", *(f"- {_plain(r)}" for r in reasons)]
    return "\n\n".join(lines[:1]) + "\n\n" * bool(reasons) + "\n".join(lines[1:])


def _table(head: list[Any], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text.replace('```', '')}\n```" if text else ""


def _plain(text: Any) -> str:
    """A text in one line, with nothing that Markdown or HTML would read as its own."""
    line = " ".join(str(text).split())
    return re.sub(r"[<>|\[\]`]", lambda m: f"&#{ord(m[0])};", line)
