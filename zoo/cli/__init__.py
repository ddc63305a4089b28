"""The command `zoo`: a model or a pair of one's own, fitted, judged, compared.

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
    "list", "new", "check", "fit", "posterior", "report", "sample", "complete", "edit", "diagnose",
    "compare", "curve", "leaderboard", "runs", "export", "push", "pull",
)  # of the commands in the help; others follow  # fmt: skip


class Commands(typer.core.TyperGroup):
    """The commands in the order in which one needs them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return [*ORDER, *sorted(set(self.commands) - set(ORDER))]


app = typer.Typer(
    cls=Commands, help="A model zoo for Pyro: fit a model, judge it, look at it.",
    no_args_is_help=True, add_completion=True, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


def _show_version(asked: bool) -> None:
    if asked:
        from zoo import __version__

        print(f"zoo {__version__}")
        raise typer.Exit()


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="say which")
    ] = False,
) -> None:
    """A model zoo for Pyro: fit a model or a pair of your own, judge it, look at it."""


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
Own = Annotated[str | None, explained("FILE:NAME, for a run of a pair of your own")]


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="of the pair: a file name.py and a test are written")],
    kind: Annotated[str, explained("regression, or autoencoder", "regression")] = "regression",
) -> None:
    """Write a skeleton of a pair of your own, with its test and data to try it on."""
    from .skeleton import write

    print(write(name, kind))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def check(
    ctx: typer.Context,
    subject: Annotated[str, typer.Argument(metavar="MODEL", help="a name, or FILE:NAME")],
    rows: Annotated[int, explained("training data to look at", "64")] = 64,
) -> None:
    """Find what is wrong with a pair before it is fitted: cause, line, mend.

    Other options are those of zoo fit MODEL.

    Example: zoo check my_pair.py:Pair --data my.csv
    """
    from .verdict import check

    raise Done(check(subject, ctx.args, rows))


@app.command("posterior")
def posterior_(
    model: Annotated[str, typer.Argument(metavar="FILE:NAME", help="a model: a function")],
    data: Annotated[str, explained("a table, or a .json or .npz of named values")],
    seconds: Annotated[float, explained("the budget", "60")] = 60.0,
    draws: Annotated[int, explained("from the posterior", "4000")] = 4_000,
    drop: Annotated[str, explained("columns to leave out, with commas between")] = "",
    seed: Annotated[int, explained("of everything random", "0")] = 0,
    out: Annotated[str | None, explained("a new folder", "runs/posterior-MODEL-DATA-001")] = None,
) -> None:
    """Find the posterior of a model's latents and say whether it can be trusted.

    The model's arguments are columns of the table, by name; x is all columns that are left.

    Example: zoo posterior my_model.py:model --data my.csv
    """
    from .posterior import climb

    climb(model, data, seconds, draws, drop, seed, out)


@app.command()
def report(run: Folder, pair: Own = None) -> None:
    """Judge a run, now or again, and write its figures and page anew."""
    from .output import tell
    from .runs import present, read, require_writable

    folder = Path(run)
    plan, data, fitted = read(folder, pair)
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
    pair: Own = None,
    sampler: Annotated[
        str | None, explained("of a diffusion: ancestral, ddim, flow or langevin", "ancestral")
    ] = None,
) -> None:
    """Draw x from a fitted model: a picture, an array or a table."""
    from .sample import draw

    print(draw(run, n, label, out, seed, pair, sampler))


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
    pair: Own = None,
) -> None:
    """Draw the rest of held-out data given a part of it, and tell log p(rest | part)."""
    from .complete import draw

    print(draw(run, given, rows, n, out, seed, pair))


@app.command()
def edit(
    run: Folder,
    how: Annotated[
        str, explained("interpolate, traverse, attribute, arithmetic or map", "interpolate")
    ] = "interpolate",
    rows: Annotated[
        int, explained("test data, or coordinates to traverse; of a map, all data", "8")
    ] = 8,
    steps: Annotated[int, explained("pictures on the way", "9")] = 9,
    label: Annotated[int | None, explained("whose attribute is added")] = None,
    against: Annotated[int | None, explained("the label that lacks it", "all others")] = None,
    by: Annotated[str, explained("of a map: principal, tsne or umap", "principal")] = "principal",
    out: Annotated[
        str | None, explained("a new .png, .npy or .csv", "RUN-edit.png or .csv")
    ] = None,
    seed: Annotated[int, explained("of whatever is drawn", "0")] = 0,
) -> None:
    """Walk through the latent space of a run: between data, along coordinates, along attributes.

    Example: zoo edit runs/vae-digits-001 --how attribute --label 8 --against 3
    """
    from .editing import edit_run

    print(edit_run(run, how, 500 if how == "map" and rows == 8 else rows, steps, label, against,
                   by, out, seed))  # fmt: skip


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def diagnose(
    ctx: typer.Context,
    subject: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="the folder of a run, or a model to fit now")
    ],
    rows: Annotated[int, explained("test data to look at", "100")] = 100,
    out: Annotated[str | None, explained("also a new folder for figures and JSON")] = None,
    pair: Own = None,
) -> None:
    """Say whether a fitted posterior can be trusted; the evidence goes on the page of the run.

    With the name of a model or FILE:NAME, other options are those of zoo fit MODEL.
    """
    from .verdict import diagnose

    diagnose(subject, rows, out, pair, ctx.args)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def compare(
    ctx: typer.Context,
    subject: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="the folder of a run, or a model to fit now")
    ],
    elbo: Annotated[list[str], explained("an estimator, such as iwae:8; give it several times")],
    rows: Annotated[int, explained("test data to measure on", "64")] = 64,
    draws: Annotated[int, explained("of value and gradient, each", "1000")] = 1_000,
    pair: Own = None,
) -> None:
    """Measure which ELBO estimator suits a fitted pair: bias, variance, signal-to-noise, cost.

    Table, figure and recommendation go on the page of the run.

    With the name of a model, other options are those of zoo fit MODEL.

    Example: zoo compare vae --data mnist --elbo trace --elbo iwae:8
    """
    from .verdict import compare

    compare(subject, elbo, rows, draws, ctx.args, pair)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def curve(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a name, or FILE:NAME")],
    betas: Annotated[str, explained("numbers with commas between", "0.25,0.5,1,2,4")] = (
        "0.25,0.5,1,2,4"
    ),
    out: Annotated[str | None, explained("a new folder", "runs/curve-MODEL")] = None,
) -> None:
    """Fit a model for several β and draw its rate against its distortion.

    Other options are those of zoo fit MODEL.

    Example: zoo curve vae --data mnist --betas 0.5,1,2,4
    """
    from .rate import rate_distortion

    print(rate_distortion(model, betas, ctx.args, out))


@app.command("leaderboard")
def leaderboard_(
    data: Annotated[str, explained("a set by name, or a table of your own", "digits")] = "digits",
    models: Annotated[
        str, explained("names with commas between, FILE:NAME too", "every density that suits")
    ] = "",
    minutes: Annotated[float, explained("for all of them together", "10")] = 10.0,
    train: Annotated[str | None, explained("a published split, taken as it is")] = None,
    valid: Annotated[str | None, explained("likewise")] = None,
    test: Annotated[str | None, explained("likewise")] = None,
    standardise: Annotated[str, explained("columns of numbers: yes or no", "yes")] = "yes",
    label: Annotated[str | None, explained("the column of labels, told apart by codes")] = None,
    drop: Annotated[str, explained("columns to leave out, with commas between")] = "",
    missing: Annotated[str, explained("refuse, drop-rows or mean", "refuse")] = "refuse",
    categorical: Annotated[str, explained("refuse, one-hot or drop", "refuse")] = "refuse",
    root: Annotated[str | None, explained("the folder of the data", "$ZOO_DATA")] = None,
    seed: Annotated[int, explained("of everything random", "0")] = 0,
    out: Annotated[str | None, explained("a new folder", "runs/leaderboard-DATA-001")] = None,
) -> None:
    """Rank models by how well they fit held-out data, all under one budget.

    Exact log-likelihood, else a bound; errors are paired over data. One page, one JSON.

    Example: zoo leaderboard --data my.csv --minutes 5
    """
    from zoo.data import load

    from .leaderboard import run_leaderboard

    if standardise not in ("yes", "no"):
        raise ValueError(f"--standardise: expected yes or no, got {standardise!r}.")
    how: dict[str, Any] = {
        "drop": tuple(d.strip() for d in drop.split(",") if d.strip()),
        "label": label, "missing": missing, "categorical": categorical,
        "train": train, "valid": valid, "test": test,
    }  # fmt: skip
    found = load(data, root, seed=seed, **how)
    if found.image_shape:
        found = load(data, root, pixels="dynamic", seed=seed, **how)
    typed = ["zoo", "leaderboard", *([] if train else ["--data", data])]
    given = {"models": models, "train": train, "valid": valid, "test": test, "label": label,
             "drop": drop}  # fmt: skip
    given |= {k: v for k, v in {"missing": missing, "categorical": categorical}.items()
              if v != "refuse"}  # fmt: skip
    given |= {"standardise": "no"} if standardise == "no" else {}
    typed += [w for k, v in given.items() if v for w in (f"--{k}", v)]
    typed += ["--minutes", f"{minutes:g}", *(["--seed", str(seed)] if seed else [])]
    run_leaderboard(found, models, minutes, seed, out, typed, standardise == "yes")


@app.command("runs")
def runs_(
    folder: Annotated[str, typer.Argument(help="a folder of runs, or one run")] = "runs",
) -> None:
    """List the folders of runs with their numbers and verdicts."""
    from .listing import list_runs
    from .output import say

    say(list_runs(folder))


@app.command()
def export(
    run: Folder,
    part: Annotated[str, typer.Argument(help="encoder or decoder")],
    format: Annotated[str, explained("pt2 (torch.export) or onnx", "pt2")] = "pt2",
    out: Annotated[str | None, explained("a new .pt2 or .onnx", "RUN-PART.pt2")] = None,
    pair: Own = None,
) -> None:
    """Write the encoder or decoder of a run as one file that needs no Pyro.

    It takes and returns rows in the units of the data, and is compared with the model first.
    """
    from .share import export_part

    print(export_part(run, part, format, out, pair))


@app.command()
def push(
    run: Folder,
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="on the hub")],
    public: Annotated[bool, explained("a new one can be seen by all")] = False,
) -> None:
    """Push a run to a model hub, with a card made of its numbers and its verdict.

    Its draws and figures show the data that they are of.
    """
    from zoo.sharing.hub import push

    print(push(run, repo, public))


@app.command()
def pull(
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="on the hub")],
    out: Annotated[str | None, explained("a new folder", "runs/NAME")] = None,
) -> None:
    """Pull a run from a model hub. Its state is checked, and nothing of it is run."""
    from zoo.sharing.hub import pull

    print(pull(repo, out))


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
    known = isinstance(error, ValueError | OSError) or hasattr(error, "format_message")
    return known or (isinstance(error, ImportError) and "pip install" in str(error))


def _fail_with(text: str, code: int) -> int:
    from .output import visible

    print(visible(f"zoo: {' '.join(text.split())}"), file=sys.stderr)
    return code
