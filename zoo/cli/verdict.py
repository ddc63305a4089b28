"""`zoo check`, `diagnose`, `compare`: is a pair right, to be trusted, by which estimator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inference.pairs.arguments import rows_of, take_rows
from inference.training.folders import whole_folder
from inference.training.run import Run
from zoo.data import DataSet

from .inputs import NamedSet, arguments_of
from .options import estimator
from .output import say
from .own import is_own
from .runs import fitted_pair, require_writable


def check(subject: str, options: Sequence[str], rows: int) -> int:
    """Print what is wrong with a pair on some rows of its data; 1 where it has errors.

    Args:
        subject: a name of the catalogue, or FILE:NAME; `options`: its own and those of the data.
        rows: of the training data.
    """
    from inference import check as look

    from .fit import any_card, fit_command, prepare

    command = fit_command(any_card(subject), prepare)
    _, data, model = command.main(list(options), standalone_mode=False)
    args = arguments_of(model, data, "train")
    found = look(model, *take_rows(args, slice(rows)))
    say(found)
    return int(any(f.level == "error" for f in found))


def diagnose(
    subject: str, rows: int, out: str | None, pair: str | None, fitting: Sequence[str]
) -> None:
    """Print the verdict on a run and put it on its page; with `out`, into a new folder too.

    Args:
        subject: a run folder; or a model's name or FILE:NAME, which is then fitted first.
        rows, out: test data to look at; a new folder.
        pair: FILE:NAME, of a run of one's own pair; `fitting`: options of `zoo fit`, for a model.
    """
    from inference.judging.diagnosis import diagnose as examine

    from ..report import include_diagnosis, require_page

    folder, pair = _run_of(subject, fitting, pair)
    plan, data, run = fitted_pair(folder, rows, pair)
    target = _new(out)
    require_writable(folder)
    require_page(folder)
    args, about = _seen(run, data, rows)
    found = examine(run, *args, image_shape=data.image_shape, seed=plan.seed)
    say(found)
    page = include_diagnosis(found, folder, f"On {about}.")
    if target is not None:
        with whole_folder(target) as inside:
            found.to_json(inside / "diagnosis.json")
            found.plot(inside)
        say(target)
    say(page)


def compare(
    subject: str, specs: Sequence[str], rows: int, draws: int, fitting: Sequence[str],
    pair: str | None = None,
) -> None:  # fmt: skip
    """Print bias, variance, signal-to-noise and cost of estimators and put them on a run's page.

    Args:
        subject: a run folder; or a model's name or FILE:NAME, which is then fitted first.
        specs: estimators.
        rows, draws: of `inference.compare`.
        fitting: options of `zoo fit`, for a model.
        pair: FILE:NAME, of a run of one's own pair.
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
    folder, pair = _run_of(subject, fitting, pair)
    plan, data, run = fitted_pair(folder, rows, pair)
    require_writable(folder)
    require_page(folder)
    args, about = _seen(run, data, rows)
    found = measure(run, args, estimators, draws=draws, seed=plan.seed)
    say(found)
    say(include_comparison(found, folder, f"On {about}, {draws:,} draws."))


def _seen(run: Run, data: DataSet, rows: int) -> tuple[tuple, str]:
    """The arguments that a run is looked at with, and what they are."""
    if getattr(data, "whole", False):
        return arguments_of(None, data, "test"), "all data"
    pair = run.pair if not isinstance(data, NamedSet) else None
    args = take_rows(arguments_of(pair, data, "test"), slice(rows))
    return args, f"the first {rows_of(args):,} test rows"


def _run_of(
    subject: str, fitting: Sequence[str], pair: str | None = None
) -> tuple[Path, str | None]:
    """Return the run folder `subject` and its pair, or fit a model of this name first."""
    from .fit import any_card, fit_command

    if Path(subject).exists():
        if fitting:
            raise ValueError(
                f"{' '.join(fitting)}: options of a fit, but {subject} is fitted already. Leave "
                "them out, or name a model instead of a run."
            )
        return Path(subject), pair
    if not is_own(subject) and ("/" in subject or subject.startswith(".")):
        raise FileNotFoundError(f"{subject}: there is no such run folder. zoo fit makes one.")
    entry = any_card(subject)
    if not {"elbo"} & set(entry.trainers):
        raise ValueError(
            f"{entry.name} is trained by {' or '.join(entry.trainers)}: it has no guide whose "
            "estimators could be compared."
        )
    chosen = ["--trainer", "elbo"] if len(entry.trainers) > 1 else []
    folder = fit_command(entry).main([*chosen, *fitting], standalone_mode=False)
    return folder, subject if is_own(subject) else None


def _new(out: str | None) -> Path | None:
    if out is None:
        return None
    target = Path(out).expanduser()
    if target.exists():
        raise ValueError(f"--out: {target} exists already. Name a folder that does not.")
    require_writable(target.parent)
    return target
