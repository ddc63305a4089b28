"""Run folders: judged, drawn, written whole or not at all, and read back."""

from __future__ import annotations

import itertools
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from inference import evaluate
from inference.draws.datatree import write_datatree
from inference.ratios import density_ratio
from inference.training import checkpoint
from inference.training.checkpoint import whole_folder
from inference.training.run import Run
from inference.training.state import History
from zoo.cards import TRAINERS, Card, card
from zoo.data import DataSet, load

from ..report import Metric, Report, Subject, metrics, pictures, write
from .build import arguments_of, build, restored
from .train import Fitted, of_run

DRAWS, POSTERIOR_ROWS = 200, 100  # of posterior.nc


@dataclass(frozen=True)
class Plan:
    """The model, data and options of a run, kept in `config.json`.

    Attributes:
        command: as typed.
        card: of the model.
        options: of the model.
        data, root, pixels, seed: what `zoo.data.load` was asked for.
        trainer, settings: which, and its keyword arguments.
        particles, test_rows: how it is judged.
        resumed: the folder it went on from.
    """

    command: str
    card: Card
    options: Mapping[str, Any]
    data: str
    trainer: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    root: str | None = None
    pixels: str = "none"
    seed: int = 0
    particles: int = 500
    test_rows: int = 1_000
    resumed: str | None = None

    def config(self) -> dict[str, Any]:
        """Return the content of `config.json`."""
        libraries = ("torch", "pyro-ppl", "pyro-zoo")
        versions = {"python": platform.python_version()}
        return {
            "command": self.command,
            "model": self.card.name,
            "options": dict(self.options),
            "data": {"name": self.data, "root": self.root, "pixels": self.pixels},
            "seed": self.seed,
            "trainer": self.trainer,
            "settings": dict(self.settings),
            "judged": {"particles": self.particles, "test_rows": self.test_rows},
            "resumed": self.resumed,
            "versions": versions | {name: _version(name) for name in libraries},
        }

    @staticmethod
    def of(config: Mapping[str, Any]) -> Plan:
        """Return the plan that a `config.json` describes."""
        listed = {k: tuple(v) if isinstance(v, list) else v for k, v in config["options"].items()}
        return Plan(
            config["command"], card(config["model"]), listed, config["data"]["name"],
            config["trainer"], config["settings"], config["data"]["root"],
            config["data"]["pixels"], config["seed"], **config["judged"],
            resumed=config["resumed"],
        )  # fmt: skip

    def load(self, download: bool = False) -> DataSet:
        """Return the data set."""
        return load(self.data, self.root, download, pixels=self.pixels, seed=self.seed)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


# ---------------------------------------------------------------- reading and writing


def place(plan: Plan, out: str | None) -> Path:
    """Return the folder to write: `out`, or the next free `runs/MODEL-DATA-NNN`.

    Raises:
        ValueError: it exists, or cannot be written.
    """
    if out is not None:
        target = Path(out).expanduser()
        if target.exists():
            raise ValueError(f"--out: {target} exists already. Name a folder that does not.")
    else:
        stem = f"{plan.card.name}-{Path(plan.data).stem}"
        numbered = (Path("runs") / f"{stem}-{n:03d}" for n in itertools.count(1))
        target = next(p for p in numbered if not p.exists())
    require_writable(target.parent)
    return target


def require_writable(folder: Path) -> None:
    """Raise ValueError unless a folder can be made inside `folder`; leave nothing behind."""
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    probe = folder / ".probe"
    try:
        probe.mkdir(parents=True)
        probe.rmdir()
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written ({error.strerror}). Choose another place with --out."
        ) from error
    finally:
        for p in made:  # the deepest first
            if p.is_dir():
                p.rmdir()


@contextmanager
def new_folder(target: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Make a folder that appears whole; under the next free name where `target` is taken."""
    final = target
    for n in itertools.count(2):
        if not final.exists():
            break
        final = target.with_name(f"{target.name}-{n}")
    with whole_folder(final) as inside:
        yield inside, [final]


def save(plan: Plan, data: DataSet, fitted: Fitted, target: Path) -> tuple[Path, list[Metric]]:
    """Judge a fit, draw it, and write its folder."""
    report = judge(plan, data, fitted)
    with new_folder(target) as (inside, (final,)):
        if fitted.run is not None:
            checkpoint.save(fitted.run, inside, **plan.config())
            _posterior(inside, plan, data, fitted)
        else:
            config = {**plan.config(), "stopped": fitted.stopped, "steps": fitted.done,
                      "seconds": round(fitted.seconds, 3), "unit": fitted.unit}  # fmt: skip
            (inside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            (inside / "history.csv").write_text(fitted.history.to_csv())
            save_file(_tensors(fitted.model), inside / "params.safetensors")
        own = [{"metric": vars(m)} for m in fitted.metrics]
        if own or fitted.notes:
            extra = {"metrics": [o["metric"] for o in own], "notes": fitted.notes}
            (inside / "trainer.json").write_text(json.dumps(extra, indent=2) + "\n")
        write(report, inside)
    return final, list(report.metrics)


def read(folder: str | Path) -> tuple[Plan, DataSet, Fitted]:
    """Read a run folder: its plan, its data, and what was fitted.

    Raises:
        FileNotFoundError: there is no run, or a file of it is missing.
        ValueError: a file is damaged.
    """
    folder = Path(folder)
    config = checkpoint.config(folder)
    if "model" not in config:
        raise ValueError(f"{folder} was not written by `zoo fit`: config.json names no model.")
    plan = Plan.of(config)
    data = plan.load()
    model = build(plan.card, plan.options, data, plan.seed)
    if plan.trainer in ("elbo", "likelihood"):
        run = restored(folder, model, data, plan.settings, plan.seed)
        fitted = of_run(run)
    else:
        fitted = Fitted(
            _filled(model, folder / "params.safetensors"),
            History.from_csv((folder / "history.csv").read_text()),
            config["unit"], config["seconds"], config["steps"], config["steps"],
            config["stopped"],
        )  # fmt: skip
    fitted.steps = plan.settings.get("steps", fitted.steps)
    if (folder / "trainer.json").is_file():
        extra = json.loads((folder / "trainer.json").read_text())
        fitted.metrics = [Metric(**m) for m in extra["metrics"]]
        fitted.notes = extra["notes"]
    return plan, data, fitted


def fitted_pair(folder: str | Path, rows: int) -> tuple[Plan, DataSet, Run]:
    """Read a run folder that holds a fitted pair, to be looked at on some rows.

    Raises:
        ValueError: no rows, or the run was trained without an ELBO.
    """
    if rows < 1:
        raise ValueError(f"--rows: expected at least 1, got {rows}.")
    plan, data, fitted = read(folder)
    if fitted.run is None:
        raise ValueError(f"{folder} was trained by {plan.trainer}: there is no guide to look at.")
    return plan, data, fitted.run


def _tensors(model: Any) -> dict[str, torch.Tensor]:
    if isinstance(model, nn.Module):
        return {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    return {"data": model.data.cpu().contiguous()}


def _filled(model: Any, path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent}: the run has no parameters (looked for {path}).")
    try:
        stored = load_file(path)
        if isinstance(model, nn.Module):
            model.load_state_dict(stored)
    except Exception as error:
        raise ValueError(f"{path} is damaged: {error}. Fit again, or restore the file.") from error
    return model


def _posterior(folder: Path, plan: Plan, data: DataSet, fitted: Fitted) -> None:
    """`posterior.nc`: draws of the latents of a few test data, with their densities."""
    args = tuple(a[:POSTERIOR_ROWS] for a in arguments_of(fitted.model, data, "test"))
    groups = ("posterior", "log_likelihood")
    write_datatree(
        folder / "posterior.nc", fitted.run, *args, draws=DRAWS, groups=groups, seed=plan.seed
    )  # fmt: skip


# ---------------------------------------------------------------- judging


def judge(plan: Plan, data: DataSet, fitted: Fitted) -> Report:
    """Return the report of a fit: its metrics, pictures and facts."""
    subject = Subject(
        fitted.model, data, fitted.history, fitted.unit, seed=plan.seed, bound=plan.card.bound,
        kept=fitted.run.best_step if fitted.run is not None else None,
    )  # fmt: skip
    own_bound = subject.offers("elbo")
    if fitted.run is not None and plan.card.bound and not own_bound:
        args = tuple(a[: plan.test_rows] for a in arguments_of(fitted.model, data, "test"))
        subject.evaluation = evaluate(
            fitted.run, *args, particles=plan.particles, seed=plan.seed
        )  # fmt: skip
    if plan.trainer == "adversarial":
        x = torch.cat([data.test, data.valid])[: plan.test_rows * 4].cpu()  # neither was trained on
        subject.ratio = density_ratio(x, subject.call("sample", len(x)), seed=plan.seed)
    shape = data.image_shape
    kind = "×".join(map(str, shape[1:])) + " images" if shape else f"rows of {data.data_dim}"
    notes = list(fitted.notes)
    if fitted.stopped:
        notes.insert(0, f"Stopped at step {fitted.done:,} of {fitted.steps:,}: {fitted.stopped}.")
    measured = [*metrics(subject), *fitted.metrics]
    return Report(
        title=f"{plan.card.name} on {data.name}",
        subtitle=f"{plan.card.summary[0].upper()}{plan.card.summary[1:]} ({plan.card.paper}).",
        command=plan.command,
        metrics=measured if plan.card.bound else [*fitted.metrics, *metrics(subject, bound=False)],
        pictures=pictures(subject),
        facts={
            "Model": _facts(plan.options),
            "Data": {
                "set": data.name, "kind": kind, "pixels": data.pixels,
                "train / valid / test": " / ".join(
                    f"{len(x):,}" for x in (data.train, data.valid, data.test)
                ),
            },
            "Training": {
                "by": _trained_by(plan), **_facts(plan.settings), "seed": plan.seed,
                **_pace(fitted),
            },
        },
        notes=notes,
    )  # fmt: skip


def _trained_by(plan: Plan) -> str:
    if plan.trainer == "elbo" and not plan.card.bound:
        return "stochastic gradients of its loss, which is no bound on log p(x)"
    return TRAINERS[plan.trainer]


def _facts(options: Mapping[str, Any]) -> dict[str, str]:
    from .options import shown

    return {k.replace("_", " "): shown(v) for k, v in options.items() if v is not None}


def _pace(fitted: Fitted) -> dict[str, str]:
    pace = {"seconds": f"{fitted.seconds:.1f}"}
    if fitted.done and fitted.seconds:
        pace = {"steps done": f"{fitted.done:,}", **pace,
                "steps per second": f"{fitted.done / fitted.seconds:,.0f}"}  # fmt: skip
    if fitted.compiled is not None:
        pace["step"] = "compiled" if fitted.compiled else "eager"
    return pace
