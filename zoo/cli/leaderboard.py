"""`zoo leaderboard`: models fitted under one budget and ranked on held-out data, with errors."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference import evaluate, fit
from inference.optim import Adam, AdamW
from inference.randomness import forked
from inference.training.folders import reserve, write_whole
from zoo.cards import Card
from zoo.data import DataSet

from ..em import expectation_maximization
from ..report import Picture, Report, Subject, write
from ..report.leaderboard import PARTICLES, Leaderboard, Row
from .build import build, validate
from .columns import with_columns
from .fit import any_card, resolved
from .inputs import arguments_of
from .output import say
from .train import begin_at

SMALL = 2_000  # training rows of a small table
MOST_STEPS, LEAST_STEPS, TRIED = 20_000, 100, 10
BASELINES = {
    "gaussian-mixture (scikit-learn)": "mixture of scikit-learn's, components and shape chosen",
    "independent columns": "each binary column by its share of ones",
}
Chosen = Mapping[str, Any]


FLOWS = ("real-nvp", "maf", "spline-flow")
DENSITIES = (
    "gaussian", "ml-mixture", "kernel-density", "marginals", *FLOWS, "vae", "hierarchical-vae",
    "ladder-vae",
)  # fmt: skip
BINARY = ("made", "vae", "hierarchical-vae", "ladder-vae")


def compare_models(
    data: DataSet, names: Sequence[str], seconds: float, seed: int = 0,
    told: Callable[[str], None] = lambda text: None,
) -> Leaderboard:  # fmt: skip
    """Fit each model within its share of the time, choose its options on validation, and test it.

    Args:
        data: standardised or not; numbers are in the units that it was given in.
        names: of models, in the catalogue or as FILE:NAME.
        seconds: for all of them.
        seed: of everything random.
        told: called with a line for each model.
    """
    binary = is_binary(data)
    everyone: list[Card | str] = [
        *(any_card(n) for n in names),
        *([] if names_only(names) else baselines(data)),
    ]
    begin = time.monotonic()
    rows: list[Row] = []
    order = sorted(everyone, key=lambda c: isinstance(c, Card) and _is_stepped(c))
    for i, entry in enumerate(order):
        left = begin + seconds - time.monotonic()
        share = max(2.0, left / (len(order) - i))
        row = _baseline(entry, data, seed) if isinstance(entry, str) else _row(
            entry, data, share, seed)  # fmt: skip
        rows.append(row)
        said = row.mean.number(2) + " nats" if row.mean else row.why
        told(f"{row.name}: {said} ({row.seconds:.0f} s)")
    rows.sort(key=lambda r: -math.inf if r.mean.value is None else r.mean.value, reverse=True)
    kind = "binary" if binary else "standardised" if data.scale is not None else "as they are"
    about = (f"{data.name}: {len(data.train):,} / {len(data.valid):,} / {len(data.test):,} rows "
             f"of {data.data_dim}, {kind}")  # fmt: skip
    return Leaderboard(about, data.data_dim, rows, ("gaussian", *BASELINES), FLOWS, data.log_det)


def names_only(names: Sequence[str]) -> bool:
    """Tell whether models were named, so that no baseline is added."""
    return not {*names} <= {*DENSITIES, *BINARY, "pixel-cnn"}


def is_binary(data: DataSet) -> bool:
    """Tell whether every value is 0 or 1, as a step sees them."""
    return data.pixels == "dynamic" or bool(((data.train == 0) | (data.train == 1)).all())


def default_names(data: DataSet) -> tuple[str, ...]:
    """The density models that suit the data."""
    if not is_binary(data):
        return tuple(n for n in DENSITIES if n != "real-nvp" or data.data_dim > 1)
    return (*BINARY, "pixel-cnn") if data.image_shape else BINARY


def baselines(data: DataSet) -> list[str]:
    """Names of what every model should beat."""
    mixture, columns = BASELINES
    return [columns] if is_binary(data) else [mixture]


def _is_stepped(entry: Card) -> bool:
    return entry.trainers[0] not in ("closed-form", "em", "variational-bayes")


def candidates(entry: Card, data: DataSet) -> Iterator[tuple[Chosen, float]]:
    """Yield options of a model that are tried on validation, with weight decay, likeliest first."""
    n, small = len(data.train), len(data.train) < SMALL
    if entry.name == "ml-mixture":
        for c, shape in itertools.product((1, 2, 3, 5, 8, 12), ("full", "diagonal")):
            if c * 4 < n:
                yield {"components": c, "covariance": shape}, 0.0
    elif entry.name == "marginals":
        for bins in (40, 20, 10, 5, 3):
            yield {"bins": bins}, 0.0
    elif entry.name in FLOWS:
        more: dict[str, Any] = {"linear": "lu", "hidden": (32, 32) if small else (128, 128)}
        more |= {"layers": 2, "dropout": 0.2} if small else {}
        more |= {"bins": 4 if small else 8} if entry.name == "spline-flow" else {}
        for students in (3, 1) if small else (3, 0):
            yield {**more, "students": students}, 0.1 if small else 1e-4
    elif entry.name == "made":
        for orders, dropout in itertools.product((16, 1), (0.5, 0.2) if small else (0.2, 0.0)):
            yield {"hidden": (500,), "orders": orders, "dropout": dropout}, 0.1 if small else 1e-4
    elif entry.name.endswith("vae") and not data.image_shape:
        wide = min(8, max(2, data.data_dim // 3))
        for latent in sorted({2, wide}):
            key = (
                "latent_dims" if entry.name in ("hierarchical-vae", "ladder-vae") else "latent_dim"
            )
            value: Any = (latent, max(1, latent // 2)) if key == "latent_dims" else latent
            yield {key: value, "hidden": ((32,), (32,)) if key == "latent_dims" else (32, 32)}, 1e-3
    else:
        yield {}, 0.0


def _row(entry: Card, data: DataSet, seconds: float, seed: int) -> Row:
    """The best of a model's candidates on validation, tested."""
    begin, tried = time.monotonic(), list(candidates(entry, data))
    name = entry.name if entry.path.startswith("zoo.") else entry.path.rpartition("/")[2]
    best, kept = Row(name), None
    problems: list[str] = []
    for i, (chosen, decay) in enumerate(tried):
        left = seconds - (time.monotonic() - begin)
        if i and left < seconds / (2 * len(tried)):
            break
        try:
            row, *fitted = _fitted(entry, data, chosen, decay, left / (len(tried) - i), seed)
        except (ValueError, RuntimeError, ArithmeticError, TypeError) as error:
            problems.append(str(error).splitlines()[0])
            continue
        if row.valid > best.valid:
            best, kept = dataclasses.replace(row, name=name), fitted
    if kept is not None:
        best = with_columns(best, *kept)
    best.seconds = time.monotonic() - begin
    best.why = "" if best.values is not None else (problems or ["no estimate"])[0]
    return best


def _fitted(
    entry: Card, data: DataSet, chosen: Chosen, decay: float, seconds: float, seed: int
) -> tuple[Row, Subject, Any]:
    """One candidate, fitted and looked at on validation and test; its model, its run."""
    options = resolved(entry, dict(chosen), data)
    model = build(entry, options, data, seed)
    validate(model, data)
    steps = 0
    run = None
    if entry.trainers[0] == "em":
        model.initialise(data.train)
        found = expectation_maximization(
            data.train, model.components, covariance=model.covariance, restarts=4, seed=seed
        )
        model.assign(found.weights, found.means, found.covariances)
        steps = found.n_iter
    elif entry.trainers[0] == "closed-form":
        if hasattr(model, "fit_closed_form"):
            model.fit_closed_form(data.train)
    else:
        run = _trained(model, data, decay, seconds, seed)
        steps = run.steps
        model = run.pair
    subject = Subject(model, data, seed=seed)
    valid, _ = held_out_values(subject, run, "valid")
    values, kind = held_out_values(subject, run, "test")
    of = model.parameters() if hasattr(model, "parameters") else ()
    numbers = sum(p.numel() for p in of)
    told = {**chosen, **({"weight_decay": decay} if decay else {})}
    row = Row(entry.name, values, kind, float(valid.double().mean()), told, numbers, steps)
    return row, subject, run


def _trained(model: Any, data: DataSet, decay: float, seconds: float, seed: int) -> Any:
    """A fit of so many seconds, of 100 steps at least, ended by validation, its rate falling."""
    begin_at(model, data, seed)
    batch = min(128, len(data.train))
    optimiser = AdamW(2e-3, weight_decay=decay) if decay else Adam(2e-3)
    common: dict[str, Any] = dict(
        batch_size=batch, optimiser=optimiser, seed=seed, progress=False, check=False
    )
    tried = fit(model, data, steps=TRIED, compile=False, **common)
    pace = tried.history["seconds"]
    each = max(1e-4, (pace[-1] - pace[0]) / max(1, len(pace) - 1)) if len(pace) > 1 else 0.01
    steps = int(min(MOST_STEPS, max(LEAST_STEPS, 0.8 * seconds / each)))
    end = time.monotonic() + seconds

    def late(run: Any) -> bool:
        return run.steps >= LEAST_STEPS and time.monotonic() > end

    return fit(
        model, data, steps=steps, schedule="cosine", valid_every=max(20, steps // 100),
        patience=20, compile="auto", callbacks=[late], **common,
    )  # fmt: skip


def held_out_values(subject: Subject, run: Any, split: str) -> tuple[Tensor, str]:
    """log p(x) of each datum of a split, in the units of the data, or a bound on it; and which."""
    x = getattr(subject.data, split)
    if subject.offers("log_prob") or subject.offers("distribution"):
        with forked(subject.seed):
            values = subject.log_prob(x)
        assert values is not None
        return values.double(), "exact"
    if subject.offers("elbo"):
        return subject.call("elbo", x).double(), "≥"
    args = arguments_of(subject.model, subject.fitted, split)
    found = evaluate(run, *args, particles=PARTICLES, surgery=0, seed=subject.seed)
    if found.log_px_per_datum is None:
        raise ValueError(f"no estimate of log p(x): {found.estimates['log_px'].because}")
    return found.log_px_per_datum.double().cpu() + subject.log_det, "exact" if found.exact else "≥"


def _baseline(name: str, data: DataSet, seed: int) -> Row:
    """Fit a baseline that every model should beat, its options chosen on validation too."""
    begin = time.monotonic()
    if name == "independent columns":
        p = ((data.transform(data.train).sum(0) + 1) / (len(data.train) + 2)).double()
        scores = [torch.distributions.Bernoulli(p).log_prob(x.double()).sum(-1)
                  for x in (data.valid, data.test)]  # fmt: skip
        return Row(name, scores[1], "exact", float(scores[0].mean()), {}, data.data_dim, 0,
                   time.monotonic() - begin)  # fmt: skip
    from sklearn.mixture import GaussianMixture

    best = Row(name)
    x, valid, test = (t.double().numpy() for t in (data.train, data.valid, data.test))
    for c, shape in itertools.product((1, 2, 3, 5, 8, 12), ("full", "tied", "diag")):
        if c * 4 >= len(x):
            continue
        made = GaussianMixture(c, covariance_type=shape, n_init=3, random_state=seed).fit(x)
        score = float(made.score(valid)) + data.log_det
        if score > best.valid:
            values = torch.from_numpy(made.score_samples(test)) + data.log_det
            chosen = {"components": c, "covariance": shape}
            best = Row(name, values, "exact", score, chosen, int(made._n_parameters()))
    best.seconds = time.monotonic() - begin
    return best


def dequantised(data: DataSet, seed: int) -> tuple[DataSet, list[str]]:
    """Add uniform noise to columns of few whole numbers, whose density would have no limit.

    With noise of one unit, log p(x + u) is a lower bound on the log probability of x (Theis et al.
    2016, arXiv:1511.01844, section 3.1). Columns of 0 and 1 alone are left to binary models.

    Returns:
        The set, and the names of these columns.
    """
    x = data.train
    whole = (x == x.round()).all(0)
    few = torch.tensor([len(column.unique()) <= max(2, len(x) // 5) for column in x.mT])
    at = (whole & few).nonzero()[:, 0]
    if not len(at):
        return data, []
    generator = torch.Generator().manual_seed(seed)
    splits: dict[str, Any] = {}
    for split in ("train", "valid", "test"):
        rows = getattr(data, split).clone()
        rows[:, at] += torch.rand(len(rows), len(at), generator=generator)
        splits[split] = rows
    names = data.columns or tuple(str(d + 1) for d in range(data.data_dim))
    return dataclasses.replace(data, **splits), [names[int(d)] for d in at]


def run_leaderboard(
    data: DataSet, models: str, minutes: float, seed: int, out: str | None, typed: Sequence[str],
    standardise: bool,
) -> Path:  # fmt: skip
    """Compare models on a set, and write the page and `leaderboard.json`; their folder.

    Raises:
        ValueError: a model that is not there or has no density; a folder that exists.
    """
    if not minutes > 0:
        raise ValueError(f"--minutes: expected a positive number, got {minutes:g}.")
    names = tuple(n.strip() for n in models.split(",") if n.strip()) or default_names(data)
    for entry in map(any_card, names):
        if not entry.bound or entry.trainers[0] == "adversarial":
            raise ValueError(f"--models: {entry.name} has no density that could be compared.")
    noisy: list[str] = []
    if not is_binary(data) and not data.image_shape:
        data, noisy = dequantised(data, seed)
        data = data.standardised() if standardise else data
    stem = f"leaderboard-{Path(data.name).stem}"
    folders: Any = [Path(out).expanduser()] if out else (
        Path("runs") / f"{stem}-{n:03d}" for n in itertools.count(1))  # fmt: skip
    command = shlex.join(typed)
    try:
        folder = reserve(folders, {"command.txt": f"{command}\n".encode()})
    except FileExistsError:
        raise ValueError(f"--out: {out} exists already. Name a folder that does not.") from None
    begin = time.monotonic()
    found = compare_models(data, names, 60 * minutes, seed, lambda t: say(t, error=True))
    say(found)
    notes = [f"Dequantised by uniform noise: {', '.join(noisy)}."] if noisy else []
    cells = found.table()
    report = Report(
        title=f"Leaderboard on {data.name}",
        subtitle=found.lines_above()[0],
        command=command,
        pictures=[Picture("behind", "Against the best",
                          "Paired over the test data; blue: within two standard errors of the "
                          "best.", found.drawing(), wide=True)],
        facts={"Data": {"rows": found.data, "standardised": "by training means and deviations, "
                        "undone in every number" if data.scale is not None else "no"},
               "Budget": {"minutes": f"{minutes:g}", "taken": f"{time.monotonic() - begin:.0f} s",
                          "seed": seed, "options": "chosen on validation"}},
        notes=[*notes, *found.lines_below()],
        tables={"Held-out log p(x), nats per datum": cells},
    )  # fmt: skip
    write(report, folder)
    write_whole(folder / "leaderboard.json", found.to_json().encode())
    say(folder / "report.html")
    return folder
