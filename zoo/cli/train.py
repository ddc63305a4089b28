"""Each family to its trainer. A trainer's keyword arguments are options of `zoo fit`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference import fit
from inference.optim import AdamW, AveragedAdam
from inference.pairs.arguments import rows_of
from inference.pairs.pair import modules_of
from inference.randomness import forked
from inference.ratios.adversarial import fit_adversarial
from inference.ratios.implicit import fit_implicit
from inference.training.callbacks import Callback
from inference.training.state import History, Training
from zoo.cards import Card
from zoo.data import DataSet, hide_labels

from ..em import expectation_maximization, kmeans_plus_plus, variational_bayes
from ..report import Metric
from .inputs import NamedSet
from .options import estimator
from .own import Halves


@dataclass
class Fitted:
    """A trainer's result: the fitted model, its history, and the trainer's own metrics and notes.

    Attributes:
        model: the trained module or distribution.
        history, unit: losses by step.
        seconds: of training.
        done, steps: updates made and asked for; 0 where there are none.
        stopped: why it ended early, or None.
        metrics: numbers that only the trainer knows.
        notes: sentences that a reader must not miss.
        compiled: whether the compiled step was used; None where there is no step.
        run: what was trained in steps, which can go on.
    """

    model: Any
    history: History = field(default_factory=History)
    unit: str = "nats per datum"
    seconds: float = 0.0
    done: int = 0
    steps: int = 0
    stopped: str | None = None
    metrics: list[Metric] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    compiled: bool | None = None
    run: Any = None


@dataclass(frozen=True)
class Task:
    """The inputs of a trainer.

    Attributes:
        resume: a state to go on from, or (`held`) to be read back as it is.
        folder: where the state is written, at least every so many seconds.
    """

    card: Card
    model: Any
    data: DataSet
    seed: int = 0
    resume: Training | None = None
    folder: Path | None = None
    save_every: float = 60.0

    @property
    def options(self) -> dict[str, Any]:
        """The options of every trainer that makes steps."""
        held = self.resume is not None and self.resume.held
        return {
            "seed": self.seed, "resume": self.resume, "folder": self.folder,
            "save_every": self.save_every, "progress": not held,
        }  # fmt: skip


def by_elbo(
    task: Task,
    *,
    elbo: str = "trace",
    steps: int = 10_000,
    batch_size: int = 128,
    lr: float = 1e-3,
    lr_schedule: str = "constant",
    weight_decay: float = 0.0,
    average: float = 0.0,
    clip: float | None = None,
    valid_every: int | None = None,
    patience: int | None = None,
    compile: str = "auto",
    device: str = "auto",
    not_finite: str = "stop",
    labels: int | None = None,
) -> Fitted:
    """Fit by stochastic gradients of the ELBO.

    Args:
        elbo: the estimator, with its own arguments after a colon: trace, mean-field, beta:4,
            iwae:8, beta:1,warmup=1000. `zoo list estimators` names them all.
        steps: updates of the parameters.
        batch_size: rows in a step.
        lr: learning rate of Adam.
        lr_schedule: constant, linear or cosine (both to zero).
        weight_decay: part of a parameter taken off at each step, times lr (AdamW).
        average: decay of a running mean of the parameters, which is what is kept; 0 keeps the last
            parameters, or those of the best validation. Diffusion needs 0.999.
        clip: largest norm of the gradient; none leaves it.
        valid_every: steps between validations.
        patience: stop after so many validations without a better value.
        compile: the step: yes, no, or auto, where the run is long enough to earn it.
        device: cpu, cuda, cuda:1, or auto, which is CUDA where there is one.
        not_finite: a loss that is not: stop, at the last good state, or skip such steps.
        labels: how many training rows keep their label, as many of each class; by default all.
    """
    if task.resume is None:
        begin_at(task.model, task.data, task.seed)
    given: Any = task.data if labels is None else hide_labels(task.data, labels, task.seed)
    rows: int | None = batch_size
    valid = None
    if isinstance(given, NamedSet):
        valid = None if given.whole else given.given["valid"]
        given = given.given["train"]
        rows = None if batch_size >= rows_of(given) else batch_size
    restart = [RestartCodes(task.data.train, steps)] if hasattr(task.model, "restarted") else ()
    run = fit(
        task.model, given, valid=valid, elbo=estimator(elbo), steps=steps, batch_size=rows, lr=lr,
        optimiser=_optimiser(lr, weight_decay, average),
        schedule=lr_schedule, clip=clip, valid_every=valid_every, patience=patience,
        compile=_compile(compile), device=device, not_finite=not_finite,
        callbacks=restart, **task.options,
    )  # fmt: skip
    if average:
        keep_average(run)
    pair = run.pair if isinstance(task.model, nn.Module) else Halves(run.model, run.guide)
    return _of_run(run, pair, run.unit, steps)


def _optimiser(lr: float, weight_decay: float, average: float) -> Any:
    if not 0 <= average < 1:
        raise ValueError(f"--average: expected a decay from 0 to below 1, got {average}.")
    if average:
        return AveragedAdam(lr, weight_decay=weight_decay, decay=average)
    return AdamW(lr, weight_decay=weight_decay) if weight_decay else None


def keep_average(run: Any) -> None:
    """Let a run end with the mean of its parameters, where its optimiser kept one."""
    means = run.variables.optim.get("average")
    if means is not None and run.steps:
        run.best_params, run.best_step = dict(zip(run.variables.params, means)), run.steps
        run.write_back()


class RestartCodes(Callback):
    """Codebook entries that nothing uses begin again, until four fifths of the steps are made."""

    def __init__(self, x: Tensor, steps: int):
        self.x, self.last = x, 0.8 * steps

    def interval(self, run: Any) -> None:
        """Move the unused entries to encodings of a thousand rows."""
        if run.steps > self.last:
            return
        params = run.variables.params
        rows = self.x[torch.randperm(len(self.x))[:1_000]].to(run.device)
        with run.pair_.bind(params, run.variables.buffers):
            module: Any = modules_of(run.pair_.model)[0]
            params["codebook"].copy_(module.restarted(rows))


def begin_at(model: Any, data: DataSet, seed: int) -> None:
    """Let a model begin at its training data, where it can: components by k-means++, a flow."""
    if not hasattr(model, "initialise"):
        return
    components = getattr(model, "components", 0) or getattr(model, "students", 0)
    with forked(seed):
        x = data.transform(data.train) if data.levels else data.train
    if components:
        model.initialise(x, kmeans_plus_plus(x, components, restarts=1, seed=seed)[0])
    else:
        model.initialise(x)


def _of_run(run: Any, model: Any, unit: str, steps: int) -> Fitted:
    """A trainer's result from a run.

    Raises:
        KeyboardInterrupt: it has made no step.
    """
    if not run.steps:
        raise KeyboardInterrupt
    notes = [] if run.eager_because is None else [f"Eager steps: {run.eager_because}."]
    if run.skipped:
        notes.append(f"{run.skipped:,} steps were left out: loss or gradient was not finite.")
    return Fitted(
        model, run.history, unit, run.seconds, run.steps, max(steps, run.steps), run.stopped,
        notes=notes, compiled=run.compiled, run=run,
    )  # fmt: skip


def in_closed_form(task: Task) -> Fitted:
    """Fit in closed form; a distribution made from its data is fitted already."""
    begin = time.perf_counter()
    model = task.model
    if hasattr(model, "fit_closed_form"):
        model.fit_closed_form(task.data.train)
    return Fitted(model, seconds=time.perf_counter() - begin)


def by_em(task: Task, *, restarts: int = 4, tol: float = 1e-6) -> Fitted:
    """Fit by expectation maximisation.

    Args:
        restarts: starts by k-means++, fitted together; the best is kept.
        tol: nats per datum; a restart stops when an update gains less.
    """
    begin = time.perf_counter()
    model, x = task.model.initialise(task.data.train), task.data.train
    found = expectation_maximization(
        x, model.components, covariance=model.covariance, restarts=restarts, tol=tol,
        seed=task.seed,
    )  # fmt: skip
    model.assign(found.weights, found.means, found.covariances)
    values = [
        Metric("log_likelihood", "log-likelihood of the training data", found.log_likelihood,
               "nats", None, f"{len(x):,} data"),
    ]  # fmt: skip
    notes = [] if found.converged else ["Stopped before the log-likelihood stood still."]
    floored = int(found.floored.sum())
    notes += [f"{floored} components rest on too few distinct data."] if floored else []
    return Fitted(
        model, _rising(found.history, len(x)), "nats per datum", time.perf_counter() - begin,
        found.n_iter, found.n_iter, metrics=values, notes=notes,
    )  # fmt: skip


def by_variational_bayes(task: Task, *, restarts: int = 4, tol: float = 1e-6) -> Fitted:
    """Fit by coordinate ascent of the ELBO.

    Args:
        restarts: starts by k-means++, fitted together; the best is kept.
        tol: nats per datum; a restart stops when an update gains less.
    """
    begin = time.perf_counter()
    model, x = task.model, task.data.train
    model.initialise(x)
    found = variational_bayes(
        x, model.components, covariance=model.covariance, restarts=restarts, tol=tol,
        seed=task.seed, **model.prior(),
    )  # fmt: skip
    model.assign(**vars(found.posterior))
    values = [
        Metric("elbo", "ELBO of the training data", found.elbo, "nats", None,
               f"a lower bound on log p(x), {len(x):,} data"),
        Metric("components_used", "components used", found.components_used,
               f"of {model.components}"),
    ]  # fmt: skip
    notes = [] if found.converged else ["Stopped before the ELBO stood still."]
    return Fitted(
        model, _rising(found.history, len(x)), "nats per datum", time.perf_counter() - begin,
        found.n_iter, found.n_iter, metrics=values, notes=notes,
    )  # fmt: skip


def _rising(objective: Tensor, n: int) -> History:
    """Return an objective that rises, as a loss in nats per datum."""
    loss = (-objective / n).tolist()
    return History([{"step": float(i), "loss": v} for i, v in enumerate(loss, start=1)])


def by_critic(
    task: Task,
    *,
    objective: str = "non-saturating",
    steps: int = 10_000,
    batch_size: int = 256,
    lr: float = 1e-3,
    critic_steps: int | None = None,
    penalty: float | None = None,
    lr_schedule: str = "cosine",
    compile: str = "auto",
    device: str = "auto",
) -> Fitted:
    """Fit a generator against a critic.

    Args:
        objective: non-saturating, minimax, wasserstein, or a divergence: kl, reverse-kl, js,
            pearson, hellinger.
        steps: moves of the generator.
        batch_size: rows of data, and draws, in a step.
        lr: learning rate of both players.
        critic_steps: moves of the critic for one of the generator; 5 for wasserstein, else 1.
        penalty: weight of the critic's gradient penalty; 10 for wasserstein, else 0.5.
        lr_schedule: cosine (to zero) or constant.
        compile: the step: yes, no, or auto, where the run is long enough to earn it.
        device: cpu, cuda, cuda:1, or auto, which is CUDA where there is one.
    """
    model, given = task.model, task.data
    if hasattr(model, "beside"):
        x, y = given.train, given.train_labels
        given = dataclasses.replace(given, train=model.beside(x, y))
    critic = model.critic() if hasattr(model, "critic") else None
    run = fit_adversarial(
        model, given, critic=critic, objective=objective, steps=steps, batch_size=batch_size, lr=lr,
        critic_steps=critic_steps, penalty=penalty, schedule=lr_schedule,
        compile=_compile(compile), device=device, **task.options,
    )  # fmt: skip
    unit = "units of x" if objective == "wasserstein" else "nats"
    return _of_run(run, run.generator, unit, steps)


def by_implicit(
    task: Task,
    *,
    steps: int = 10_000,
    batch_size: int = 256,
    lr: float = 1e-3,
    critic_steps: int = 2,
    compile: str = "auto",
    device: str = "auto",
) -> Fitted:
    """Fit by adversarial variational Bayes.

    Args:
        steps: moves of the pair.
        batch_size: rows in a step.
        lr: learning rate of pair and critic; it falls to zero along a cosine.
        critic_steps: moves of the critic for one of the pair.
        compile: the step: yes, no, or auto, where the run is long enough to earn it.
        device: cpu, cuda, cuda:1, or auto, which is CUDA where there is one.
    """
    run = fit_implicit(
        task.model, task.data, steps=steps, batch_size=batch_size, lr=lr,
        critic_steps=critic_steps, compile=_compile(compile), device=device, **task.options,
    )  # fmt: skip
    return _of_run(run, run.pair, "nats per datum", steps)


def _compile(word: str) -> bool | str:
    words: dict[str, bool | str] = {"yes": True, "no": False, "auto": "auto"}
    if word not in words:
        raise ValueError(f"--compile: expected yes, no or auto, got {word!r}.")
    return words[word]


TRAINERS: dict[str, Callable[..., Fitted]] = {
    "elbo": by_elbo,
    "likelihood": by_elbo,
    "closed-form": in_closed_form,
    "em": by_em,
    "variational-bayes": by_variational_bayes,
    "adversarial": by_critic,
    "implicit": by_implicit,
}
