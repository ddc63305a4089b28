"""The command `zoo`: list, fit, report, sample, complete, diagnose, compare, mixture.

A new command is a function under `@app.command()`. The options of `zoo fit MODEL` come from the
signatures of the model and of its trainers (`options`), so that a new model needs a card only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .fit import Done, Ended, Models, go_on
from .options import explained

ORDER = (
    "list",
    "fit",
    "report",
    "sample",
    "complete",
    "diagnose",
    "compare",
)  # of the commands in the help; others follow


class Commands(typer.core.TyperGroup):
    """The commands in the order in which one needs them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return [*ORDER, *sorted(set(self.commands) - set(ORDER))]


app = typer.Typer(
    cls=Commands, help="A model zoo for Pyro: fit a model, judge it, look at it.",
    no_args_is_help=True, add_completion=False, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

fit_app = typer.Typer(
    cls=Models, invoke_without_command=True, rich_markup_mode="rich",
    subcommand_metavar="MODEL [OPTIONS]",
)  # fmt: skip
fit_app.callback()(go_on)
app.add_typer(fit_app, name="fit")


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="models, data or estimators")] = "models",
) -> None:
    """Show the catalogue: models, data sets or ELBO estimators.

    In a pipe: one line each, with tabs between the columns.
    """
    from .catalogue import show

    show(what)


Folder = Annotated[str, typer.Argument(metavar="RUN", help="the folder of a run")]


@app.command()
def report(run: Folder) -> None:
    """Judge a run, now or again, and write its figures and page anew."""
    from .output import tell
    from .runs import present, read, require_writable

    folder = Path(run)
    plan, data, fitted = read(folder)
    require_writable(folder)
    tell(present(plan, data, fitted, folder).metrics, folder / "report.html")


@app.command()
def sample(
    run: Folder,
    n: Annotated[int, explained("how many draws", "64", "--n", "-n")] = 64,
    label: Annotated[int | None, explained("for a conditional model", "each in turn")] = None,
    out: Annotated[
        str | None, explained("a new .png, .npy or .csv", "RUN-samples.png or .csv")
    ] = None,
    seed: Annotated[int, explained("of the draws", "0")] = 0,
) -> None:
    """Draw x from a fitted model: a picture, an array or a table."""
    from .sample import draw

    print(draw(run, n, label, out, seed))


@app.command()
def complete(
    run: Folder,
    given: Annotated[
        str, explained("left, right, top or bottom half, or columns such as 1-3,7", "left")
    ] = "left",
    rows: Annotated[int, explained("test data to complete", "8")] = 8,
    n: Annotated[int, explained("how many draws of each", "64", "--n", "-n")] = 64,
    out: Annotated[
        str | None, explained("a new .png, .npy or .csv", "RUN-completions.png or .csv")
    ] = None,
    seed: Annotated[int, explained("of the draws", "0")] = 0,
) -> None:
    """Draw the rest of held-out data given a part of it, and tell log p(rest | part)."""
    from .complete import draw

    print(draw(run, given, rows, n, out, seed))


@app.command()
def diagnose(
    run: Folder,
    rows: Annotated[int, explained("test data to look at", "100")] = 100,
    out: Annotated[str | None, explained("also a new folder for figures and JSON")] = None,
) -> None:
    """Say whether a fitted posterior can be trusted; the evidence goes on the page of the run."""
    from .verdict import diagnose

    diagnose(run, rows, out)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def compare(
    ctx: typer.Context,
    subject: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="the folder of a run, or a model to fit now")
    ],
    elbo: Annotated[list[str], explained("an estimator, such as iwae:8; give it several times")],
    rows: Annotated[int, explained("test data to measure on", "64")] = 64,
    draws: Annotated[int, explained("of value and gradient, each", "1000")] = 1_000,
) -> None:
    """Measure which ELBO estimator suits a fitted pair: bias, variance, signal-to-noise, cost.

    Table, figure and recommendation go on the page of the run.

    With the name of a model, other options are those of zoo fit MODEL.

    Example: zoo compare vae --data mnist --elbo trace --elbo iwae:8
    """
    from .verdict import compare

    compare(subject, elbo, rows, draws, ctx.args)


@app.command()
def mixture(
    data: Annotated[
        str, explained("a set by name, or a .npy or .csv", "old-faithful")
    ] = "old-faithful",
    root: Annotated[str | None, explained("the folder of the data", "$ZOO_DATA")] = None,
    components: Annotated[int, explained("the most that can be used", "2")] = 2,
    covariance: Annotated[str, explained("full or diagonal", "full")] = "full",
    held_out: Annotated[float, explained("share of the data to judge by", "0.2")] = 0.2,
    restarts: Annotated[int, explained("starts of EM and variational Bayes", "10")] = 10,
    steps: Annotated[int, explained("updates of SVI", "1500")] = 1_500,
    seed: Annotated[int, explained("of everything random", "0")] = 0,
    out: Annotated[
        str | None, explained("a new .png, .svg or .pdf", "runs/mixture-DATA-001.png")
    ] = None,
) -> None:
    """Fit a Gaussian mixture by EM, variational Bayes and SVI, and put them side by side."""
    from .mixture import compare

    compare(data, root, components, covariance, held_out, restarts, steps, seed, out)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 when done, 2 for a mistake of the user's, 130 for Ctrl-C."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit status. A mistake is one line on stderr.

    Set ZOO_TRACEBACK=1 to see where a mistake was found.
    """
    command = typer.main.get_command(app)
    try:
        code = command.main(args=list(argv), prog_name="zoo", standalone_mode=False)
        if code == 130:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except Done as done:
        return done.args[0]
    except Ended as signal:
        return _fail_with("ended by a signal; nothing was written.", 128 + signal.args[0])
    except KeyboardInterrupt:
        return _fail_with("interrupted; nothing was written.", 130)
    except Exception as error:
        if os.environ.get("ZOO_TRACEBACK") or not _is_users(error):
            raise
        message: Any = error.format_message() if hasattr(error, "format_message") else error
        return _fail_with(str(message), 2) if str(message) else 2


def _is_users(error: Exception) -> bool:
    return isinstance(error, ValueError | OSError) or hasattr(error, "format_message")


def _fail_with(text: str, code: int) -> int:
    from .output import visible

    print(visible(f"zoo: {' '.join(text.split())}"), file=sys.stderr)
    return code
