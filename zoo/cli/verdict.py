"""`zoo diagnose` and `zoo compare`: can this posterior be trusted, and which estimator suits it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inference.checkpoint import whole_folder

from .build import arguments_of
from .options import estimator
from .runs import fitted_pair, require_writable


def diagnose(folder: str, rows: int, out: str | None) -> None:
    """Print the verdict on a run and put it on its page; with `out`, into a new folder too."""
    from inference.diagnose import diagnose as examine
    from inference.report import include, parts

    plan, data, run = fitted_pair(folder, rows)
    target = _new(out)
    require_writable(Path(folder))
    parts(folder)  # there is a page
    args = tuple(a[:rows] for a in arguments_of(run.pair, data, "test"))
    found = examine(run, *args, image_shape=data.image_shape, seed=plan.seed)
    print(found)
    seen = min(rows, len(data.test))
    page = include(found, folder, f"On the first {seen:,} test rows.")
    if target is not None:
        with whole_folder(target) as inside:
            found.to_json(inside / "diagnosis.json")
            found.plot(inside)
        print(target)
    print(page)


def compare(folder: str, specs: Sequence[str], rows: int, draws: int, out: str | None) -> None:
    """Print bias, variance, signal-to-noise and cost of estimators; with `out`, draw them too."""
    from inference.compare import compare as measure

    estimators = [estimator(spec) for spec in specs]
    plan, data, run = fitted_pair(folder, rows)
    target = _new(out)
    args = tuple(a[:rows] for a in arguments_of(run.pair, data, "test"))
    found = measure(run, args, estimators, draws=draws, seed=plan.seed)
    print(found)
    if target is not None:
        with whole_folder(target) as inside:
            found.save(inside)
        print(target)


def _new(out: str | None) -> Path | None:
    if out is None:
        return None
    target = Path(out).expanduser()
    if target.exists():
        raise ValueError(f"--out: {target} exists already. Name a folder that does not.")
    require_writable(target.parent)
    return target
