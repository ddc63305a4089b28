"""A run folder on a model hub: pushed with a card made of its numbers, pulled without running it.

Only files of these names travel, in both directions, and never a page: it is made anew from its
data, so that no script of a stranger's is opened. Paths of the machine stay there.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from inference.training.checkpoint import BEFORE
from inference.training.folders import STATE, read_whole, whole_folder, write_whole
from inference.training.saved import read_run

from ..report.page import make
from .card import model_card

NAMES = (
    "config.json", "metrics.json", "history.csv", "diagnosis.json", "comparison.json",
    "posterior.json", "command.txt", "posterior.nc", STATE,
)  # fmt: skip
INSIDE = {
    "page": re.compile(r"[\w-]{1,80}\.(json|png)"), "figures": re.compile(r"[\w-]{1,80}\.png")
}  # fmt: skip
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
PATHS = ("name", "root", "train", "valid", "test")  # fields of `data` that may be paths


def push(folder: str | Path, repo: str, public: bool = False, endpoint: str | None = None) -> str:
    """Push a run folder to a model hub; its address there.

    Draws, figures and numbers travel with the parameters, and show the data that they are of.

    Args:
        folder: of a run, with its page.
        repo: OWNER/NAME; made where it is missing.
        public: whether a new one can be seen by all.
        endpoint: of the hub; by default $HF_ENDPOINT, else huggingface.co.

    Raises:
        ImportError: huggingface_hub is missing.
        ValueError: no such name, a damaged run, or one that has no page.
        ConnectionError: the hub refused it or cannot be reached.
    """
    folder = Path(folder)
    _check_name(repo)
    files = _files(folder)
    if "page/report.json" not in files:
        raise ValueError(f"{folder}: there is no page to make a card of. zoo report {folder}")
    if STATE in files and "Fitted" not in _kind(folder):
        read_run(folder)  # whole, every field checked
    hub, errors = _hub(endpoint)
    with tempfile.TemporaryDirectory() as inside:
        for name in files:
            path = Path(inside) / name
            path.parent.mkdir(exist_ok=True)
            data = read_whole(folder / name)
            path.write_bytes(_without_paths(data) if name == "config.json" else data)
        (Path(inside) / "README.md").write_text(model_card(folder, repo), encoding="utf-8")
        try:
            hub.create_repo(repo, private=not public, exist_ok=True)
            said = hub.upload_folder(
                repo_id=repo, folder_path=inside, commit_message="A run of pyro-zoo"
            )
        except errors as error:
            raise ConnectionError(f"push: the hub did not take {repo}: {_first(error)}") from error
    return str(said.repo_url if hasattr(said, "repo_url") else said)


def pull(repo: str, out: str | Path | None = None, endpoint: str | None = None) -> Path:
    """Pull a run from a model hub into a new folder, every field of its state checked.

    Args:
        repo: OWNER/NAME.
        out: the folder; by default `runs/NAME`.
        endpoint: as for `push`.

    Raises:
        ImportError: huggingface_hub is missing.
        FileExistsError: the folder is there already.
        ValueError: no such name; what is there is no run, or a damaged one.
        ConnectionError: the hub has none, or cannot be reached.
    """
    _check_name(repo)
    hub, errors = _hub(endpoint)
    target = Path("runs") / repo.partition("/")[2] if out is None else Path(out).expanduser()
    with whole_folder(target) as inside, tempfile.TemporaryDirectory() as outside:
        wanted = [*NAMES, *(f"{name}/*" for name in INSIDE)]
        try:
            hub.snapshot_download(repo, local_dir=outside, allow_patterns=wanted)
        except errors as error:
            raise ConnectionError(f"pull: {repo}: {_first(error)}") from error
        files = _files(Path(outside))
        for name in files:
            path = inside / name
            path.parent.mkdir(exist_ok=True)
            write_whole(path, read_whole(Path(outside) / name))
        if "page/report.json" not in files:
            raise ValueError(f"{repo}: expected a run of pyro-zoo, found no page/report.json.")
        if STATE in files and "Fitted" not in _kind(inside):
            read_run(inside)
        make(inside)
    return target


def _files(folder: Path) -> list[str]:
    """The files of a run folder that travel."""
    found = [n for n in NAMES if (folder / n).is_file()]
    if STATE not in found and (folder / BEFORE).is_file():
        raise ValueError(f"{folder}: expected {STATE}, found only the state before. Resume it.")
    for name, good in INSIDE.items():
        if (folder / name).is_dir():
            found += sorted(f"{name}/{p.name}" for p in (folder / name).iterdir()
                            if p.is_file() and good.fullmatch(p.name))  # fmt: skip
    return found


def _kind(folder: Path) -> str:
    """The header of a state, which names what it holds: "Fitted" was not trained in steps."""
    data = read_whole(folder / STATE)
    end = 8 + int.from_bytes(data[:8], "little")
    return "Fitted" if rb"\"kind\": \"Fitted\"" in data[8:end] else ""


def _without_paths(config: bytes) -> bytes:
    """`config.json` with the names of data files alone: folders of a machine say nothing here."""
    values = json.loads(config)

    def bare(value: Any) -> Any:
        return Path(value).name if isinstance(value, str) and "/" in value else value

    data = dict(values.get("data") or {})
    table = dict(data.get("table") or {})
    values["data"] = {
        **{k: bare(v) if k in PATHS else v for k, v in data.items()},
        "root": None, "table": {k: bare(v) if k in PATHS else v for k, v in table.items()},
    }  # fmt: skip
    where, colon, name = str(values.get("model", "")).rpartition(":")
    if colon:
        values["model"] = f"{bare(where)}:{name}"
    if values.get("resumed"):
        values["resumed"] = bare(values["resumed"])
    return f"{json.dumps(values, indent=2)}\n".encode()


def _hub(endpoint: str | None) -> tuple[Any, tuple[type[Exception], ...]]:
    """The hub's own client, and its errors."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError("push and pull take huggingface_hub: pip install 'pyro-zoo[hub]'.") \
            from error  # fmt: skip
    return HfApi(endpoint=endpoint), (HfHubHTTPError, LocalEntryNotFoundError, OSError)


def _check_name(repo: str) -> None:
    if not REPO.fullmatch(repo):
        raise ValueError(f"expected OWNER/NAME on the hub, such as me/my-run, got {repo!r}.")


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
