"""`zoo diagnose` and `zoo compare`: can this posterior be trusted, and which estimator suits it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inference.training.folders import whole_folder
from zoo.cards import card

from .build import arguments_of
from .options import estimator
from .output import say
from .runs import fitted_pair, require_writable


def diagnose(folder: str, rows: int, out: str | None) -> None:
    """Print the verdict on a run and put it on its page; with `out`, into a new folder too."""
    from inference.judging.diagnosis import diagnose as examine

    from ..report import include_diagnosis, require_page

    plan, data, run = fitted_pair(folder, rows)
    target = _new(out)
    require_writable(Path(folder))
    require_page(Path(folder))
    args = tuple(a[:rows] for a in arguments_of(run.pair, data, "test"))
    found = examine(run, *args, image_shape=data.image_shape, seed=plan.seed)
    say(found)
    seen = min(rows, len(data.test))
    page = include_diagnosis(found, folder, f"On the first {seen:,} test rows.")
    if target is not None:
        with whole_folder(target) as inside:
            found.to_json(inside / "diagnosis.json")
            found.plot(inside)
        say(target)
    say(page)


def compare(
    subject: str, specs: Sequence[str], rows: int, draws: int, fitting: Sequence[str]
) -> None:
    """Print bias, variance, signal-to-noise and cost of estimators and put them on a run's page.

    Args:
        subject: a run folder, or the name of a model, which is then fitted first.
        specs: estimators.
        rows, draws: of `inference.compare`.
        fitting: options of `zoo fit`, for a model.
    """
    from inference.judging.comparison import compare as measure

    from ..report import include_comparison, require_page

    if len(specs) < 2:
        raise ValueError(
            "compare: name two estimators or more, as in --elbo trace --elbo iwae:8; zoo list "
            "estimators shows them all."
        )
    estimators = [estimator(spec) for spec in specs]
    if draws < 4:
        raise ValueError(f"--draws: expected at least 4, got {draws}.")
    if rows < 1:
        raise ValueError(f"--rows: expected at least 1, got {rows}.")
    folder = _run_of(subject, fitting)
    plan, data, run = fitted_pair(folder, rows)
    require_writable(folder)
    require_page(Path(folder))
    args = tuple(a[:rows] for a in arguments_of(run.pair, data, "test"))
    found = measure(run, args, estimators, draws=draws, seed=plan.seed)
    say(found)
    seen = min(rows, len(data.test))
    say(include_comparison(found, folder, f"On the first {seen:,} test rows, {draws:,} draws."))


def _run_of(subject: str, fitting: Sequence[str]) -> Path:
    """Return the run folder `subject`, or fit a model of this name and return its folder."""
    from .fit import fit_command

    if Path(subject).exists():
        if fitting:
            raise ValueError(
                f"{' '.join(fitting)}: options of a fit, but {subject} is fitted already. Leave "
                "them out, or name a model instead of a run."
            )
        return Path(subject)
    if "/" in subject or subject.startswith("."):
        raise FileNotFoundError(f"{subject}: there is no such run folder. zoo fit makes one.")
    entry = card(subject)
    if not {"elbo"} & set(entry.trainers):
        raise ValueError(
            f"{entry.name} is trained by {' or '.join(entry.trainers)}: it has no guide whose "
            "estimators could be compared."
        )
    chosen = ["--trainer", "elbo"] if len(entry.trainers) > 1 else []
    return fit_command(entry).main([*chosen, *fitting], standalone_mode=False)


def _new(out: str | None) -> Path | None:
    if out is None:
        return None
    target = Path(out).expanduser()
    if target.exists():
        raise ValueError(f"--out: {target} exists already. Name a folder that does not.")
    require_writable(target.parent)
    return target
