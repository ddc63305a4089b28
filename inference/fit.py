"""The loop around the step: batches, schedule, validation, early stop, resume."""

from __future__ import annotations

import dataclasses
import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro.optim
import torch
from torch import Tensor, nn

from .check import refuse_errors
from .elbo import Estimator, Trace
from .optim import Adam, Optimiser
from .pair import Pair, own_copy
from .progress import Progress
from .run import History, Run
from .step import CompiledStep, EagerStep, ForeignStep, Update, Variables, at_step, matmul_precision
from .trace import TraceFailure
from .weights import log_weights, no_validation

BATCH = 128  # for data sets, when no batch size is given
WORTH_COMPILING = 30.0  # seconds of eager steps ahead; see `python -m benchmarks`, "pays from"
SMALL, WORTH_UNROLLING = 2_000, 50_000  # parameters, steps: eight updates in one graph


def fit(
    model: Callable | nn.Module,
    guide: Any = None,
    data: Any = None,
    *,
    elbo: Estimator | None = None,
    steps: int = 5_000,
    lr: float = 1e-3,
    batch_size: int | None = None,
    optimiser: Any = None,
    schedule: str | Callable[[Tensor], Tensor] = "constant",
    clip: float | None = None,
    valid: Any = None,
    valid_every: int | None = None,
    patience: int | None = None,
    compile: bool | str = "auto",
    repeats: int | None = None,
    device: str | torch.device = "auto",
    autocast: bool = False,
    tf32: bool = False,
    seed: int = 0,
    progress: bool | Progress = True,
    check: bool = True,
    callbacks: Sequence[Callable[[Run], Any]] = (),
    resume: Run | None = None,
) -> Run:
    """Fit a pair: maximise a bound on log p(x) by stochastic gradients.

    `fit(pair, data)` for a module with methods `model` and `guide`, `fit(model, guide, data)` for
    any two Pyro callables. The pair given is not changed: the run owns a copy of its modules and
    its own parameter store.

    Args:
        data: a tensor, a tuple of arguments, or a data set with `train` (and `valid`).
        elbo: the estimator, by default `Trace()`.
        steps: updates to make; with `resume`, updates in all.
        lr: learning rate of the default optimiser (Adam).
        batch_size: rows per step, of every tensor that shares the first one's leading dimension;
            None takes all of a tensor, and 128 rows of a data set.
        optimiser: from `inference.optim`; or a function `params -> torch.optim.Optimizer`, or a
            `pyro.optim` optimiser, which run eagerly only.
        schedule: "constant", "linear" or "cosine" (both to zero), or a function of the step count,
            a tensor, that returns a factor.
        clip: largest norm of the gradient of the loss (in the unit of the history).
        valid: held-out data, like `data`; the parameters kept are then those of the best value.
        valid_every: steps between validations.
        patience: stop after so many validations without a better value.
        compile: True, False, or "auto": when the run is long enough to earn it.
        repeats: updates per call of the compiled step; None chooses.
        device: "auto" (CUDA where there is one), or a torch device.
        autocast: bfloat16 where autocast allows it.
        tf32: TensorFloat-32 matrix products on CUDA.
        seed: of everything that is random in the run.
        progress: show a progress bar (plain lines in a pipe).
        check: look at the pair first, and refuse one with errors (`inference.check`).
        callbacks: called with the run after each validation or log interval; one that returns
            True stops the run.
        resume: go on from this run.

    Returns:
        A `Run`: the fitted pair, its parameters, its history in nats.

    Raises:
        ValueError: the data or an option is out of range; the pair has an error; the loss is not
            finite at the first step (with the site), or becomes so later.
    """
    pair = model if data is None else getattr(model, "__self__", None)
    if data is None:
        model, guide, data = _halves(model, guide)
    elbo = Trace() if elbo is None else elbo
    optimiser = Adam(lr) if optimiser is None else optimiser
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}.")
    where = pick_device(device)
    transform = getattr(data, "transform", None)
    args, held_out = _arguments(model, data, valid)
    for validate in (getattr(pair, "validate", None),):  # a zoo pair knows its own range of data
        if callable(validate):
            change = _batch_transform(data, transform)
            with torch.random.fork_rng(devices=[]):
                validate(*(args if change is None else change(args)))  # as a step will see them
    args = tuple(_to(a, where) for a in args)
    held_out = None if held_out is None else tuple(_to(a, where) for a in held_out)
    if hasattr(data, "train") and batch_size is None:
        batch_size = min(BATCH, len(args[0]))
    batches = Batches(args, batch_size, seed)

    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        if resume is None:
            if check:
                refuse_errors(
                    model, guide, batches.example(), size=batches.size, elbo=elbo, device=where
                )
            run = start(model, guide, batches.example(), batches.size, elbo, where, seed)
        else:
            run = dataclasses.replace(resume, stopped=None)
        foreign = None if isinstance(optimiser, Optimiser) else _foreign(optimiser)
        update = Update(
            run.pair_, elbo, Adam(lr) if foreign else optimiser, run.divide, clip,
            _batch_transform(data, transform), run.kwargs, autocast,
            schedule=_schedule(schedule, steps),
        )  # fmt: skip
        run.update = update
        if resume is None:
            run.variables = Variables.start(run.pair_, update.optimiser)
        if run.random_state is not None:
            torch.random.set_rng_state(run.random_state)
        _refuse_infinite(run, batches.example())
        bar = (
            progress
            if isinstance(progress, Progress)
            else Progress(steps, run.unit, bool(progress))
        )
        if foreign is not None and compile is not False:
            run.eager_because = f"{foreign!r} is not an optimiser of inference.optim"
            bar.note(f"eager steps: {run.eager_because}")
        loop = _Loop(run, update, batches, steps, compile, repeats, bar, callbacks, foreign)
        loop.lr.fill_(update.optimiser.lr)
        loop.validation(held_out, valid_every, patience)
        with matmul_precision(tf32):
            loop.go()
        run.random_state = torch.random.get_rng_state()
    return run.finish()


class Batches:
    """Mini-batches of a fixed size, every row once per epoch, in an order that follows the seed.

    Batches run on over the end of an epoch, so that all have one shape.

    Raises:
        ValueError: the batch is larger than the data, or the data holds NaN.
    """

    def __init__(self, args: tuple, batch_size: int | None, seed: int):
        self.args = args
        tensors = [a for a in args if torch.is_tensor(a)]
        for i, a in enumerate(args):
            if torch.is_tensor(a) and a.is_floating_point() and not torch.isfinite(a).all():
                bad = int((~torch.isfinite(a)).sum())
                first = tuple(int(v) for v in (~torch.isfinite(a)).nonzero()[0])
                raise ValueError(
                    f"data: argument {i} has {bad} values that are NaN or infinite, the first at "
                    f"{first}. Drop or impute them, or mask them in the model."
                )
        self.size = len(tensors[0]) if tensors and tensors[0].dim() else None
        if batch_size is not None:
            if self.size is None:
                raise ValueError("batch_size: the data has no tensor with rows to take a batch of.")
            if not 1 <= batch_size <= self.size:
                raise ValueError(
                    f"batch_size: expected 1 .. {self.size} (the rows of the data), "
                    f"got {batch_size}."
                )
        self.whole = batch_size is None or batch_size == self.size
        self.batch_size = self.size if self.whole else batch_size
        self._order = torch.Generator().manual_seed(seed)
        self._queue = torch.empty(0, dtype=torch.long)

    def _sliced(self, a: Any) -> bool:
        return torch.is_tensor(a) and a.dim() > 0 and len(a) == self.size

    def example(self) -> tuple:
        """The first rows, in order."""
        if self.whole:
            return self.args
        return tuple(a[: self.batch_size] if self._sliced(a) else a for a in self.args)

    def next(self, repeats: int = 1) -> tuple[tuple, bool]:
        """A batch, and whether it is shared by all repeats (else it has a leading axis)."""
        if self.whole:
            return self.args, True
        assert self.batch_size is not None and self.size is not None
        need = self.batch_size * repeats
        while len(self._queue) < need:
            order = torch.randperm(self.size, generator=self._order)
            self._queue = torch.cat([self._queue, order])
        index, self._queue = self._queue[:need], self._queue[need:]
        first = next(a for a in self.args if self._sliced(a))
        index = index.to(first.device)
        shape = (repeats, self.batch_size) if repeats > 1 else (self.batch_size,)

        def take(a: Any) -> Any:
            if self._sliced(a):
                return a.index_select(0, index).reshape(*shape, *a.shape[1:])
            return a.expand(repeats, *a.shape) if repeats > 1 and torch.is_tensor(a) else a

        return tuple(take(a) for a in self.args), False

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs to go on with the same order."""
        return {"order": self._order.get_state().clone(), "queue": self._queue}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on where `state` was taken."""
        self._order.set_state(state["order"])
        self._queue = state["queue"]


@dataclass
class _Loop:
    run: Run
    update: Update
    batches: Batches
    steps: int
    compile: bool | str
    repeats: int | None
    bar: Progress
    callbacks: Sequence[Callable[[Run], Any]]
    foreign: Any = None
    held_out: tuple | None = None
    valid_every: int = 0
    patience: int | None = None
    lr: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.lr = torch.tensor(1e-3, device=self.run.variables.count.device)
        if self.run.batches is not None:
            self.batches.restore(self.run.batches)

    def validation(self, held_out: tuple | None, every: int | None, patience: int | None) -> None:
        self.held_out = held_out
        self.valid_every = max(1, every or max(100, self.steps // 20)) if held_out else 0
        self.patience = patience

    def go(self) -> None:
        run = self.run
        done = int(run.variables.count)
        log_every = max(1, min(100, self.steps // 50))
        begin, spent = time.perf_counter(), run.seconds
        pending: list[Tensor] = []
        at_log, bad = done, 0
        step: EagerStep | CompiledStep | ForeignStep
        eager: EagerStep | ForeignStep = EagerStep(self.update, run.variables, self.lr)
        if self.foreign is not None:
            eager = ForeignStep(self.update, run.variables, self.foreign)
        step, repeats = eager, 1
        chosen = self.foreign is not None
        warm = time.perf_counter()
        with self.bar:
            try:
                while done < self.steps:
                    if not chosen and (self.compile is True or done - at_log >= 3 or done > 3):
                        each = (time.perf_counter() - warm) / max(1, done - at_log)
                        step, repeats = self._choose(each, self.steps - done)
                        chosen = True
                    use, n = (step, repeats) if done + repeats <= self.steps else (eager, 1)
                    batch, shared = self.batches.next(n)
                    losses = use(batch, shared)
                    pending.append(losses)
                    done += n
                    if done - at_log >= log_every or done >= self.steps:
                        loss = float(torch.cat([p.reshape(-1) for p in pending]).mean())
                        run.losses.extend(torch.cat([p.reshape(-1) for p in pending]).tolist())
                        pending.clear()
                        run.seconds = spent + time.perf_counter() - begin
                        row: dict[str, float] = {"step": done, "loss": loss, "seconds": run.seconds}
                        if not math.isfinite(loss):
                            raise ValueError(_lost(run, done))
                        crossed = self.valid_every and (
                            done // self.valid_every > at_log // self.valid_every
                            or done >= self.steps
                        )
                        if crossed:
                            row |= self._validate()
                            bad = 0 if run.best_step == done else bad + 1
                        run.history.add(row)
                        at_log = done
                        self.bar.update(done, loss, row.get("valid_elbo"))
                        asked = [c(run) for c in self.callbacks]  # every one is called
                        if any(asked):
                            run.stopped = "a callback asked for it"
                            break
                        if self.patience is not None and crossed and bad >= self.patience:
                            run.stopped = f"no better validation in {bad} rounds"
                            break
            except KeyboardInterrupt:
                run.stopped = "interrupted"
                for p in pending:
                    run.losses.extend(p.reshape(-1).tolist())
        run.batches = self.batches.state()
        run.seconds = spent + time.perf_counter() - begin
        run.compiled = bool(step.compiled)
        run.compile_seconds = getattr(step, "seconds", 0.0)

    def _choose(self, each: float, left: int) -> tuple[EagerStep | CompiledStep, int]:
        """The step to use, given an eager step's seconds and how many are left."""
        run = self.run
        eager = EagerStep(self.update, run.variables, self.lr)
        if self.compile is False or (self.compile == "auto" and each * left < WORTH_COMPILING):
            return eager, 1
        numbers = sum(p.numel() for p in run.variables.params.values())
        repeats = self.repeats or (8 if numbers < SMALL and left > WORTH_UNROLLING else 1)
        step = CompiledStep(self.update, run.variables, self.lr, repeats)
        self.bar.note("compiling the step")
        try:
            order = self.batches.state()
            batch, shared = self.batches.next(repeats)
            self.batches.restore(order)
            with torch.random.fork_rng(devices=[self.lr.device] if self.lr.is_cuda else []):
                kept = run.variables.clone()
                step(batch, shared)
                with torch.no_grad():
                    run.variables.assign(kept)
        except TraceFailure as failure:
            run.eager_because = str(failure)
            self.bar.note(f"eager steps: {failure}")
            return eager, 1
        self.bar.note(f"compiled in {step.seconds:.0f} s ({step.nodes} operations)")
        return step, repeats

    def _validate(self) -> dict[str, float]:
        """The held-out value and the un-tempered ELBO, in the unit of the history."""
        run, update = self.run, self.update
        assert self.held_out is not None
        values = held_out_values(run, update.estimator, self.held_out, self.batches.batch_size)
        score = values["bound"]
        if run.best is None or score > run.best:
            run.best, run.best_step = score, int(run.variables.count)
            run.best_params = {k: v.clone() for k, v in run.variables.params.items()}
        return {
            "valid_elbo": values["elbo"],
            **({"valid_bound": score} if score != values["elbo"] else {}),
            **{k: v for k, v in values.items() if k.startswith("kl_")},
        }


def start(
    model: Callable, guide: Callable, example: tuple, size: int | None, elbo: Estimator,
    device: torch.device, seed: int,
) -> Run:  # fmt: skip
    """A run before its first step: its own copy of the pair, and what its plates are told."""
    model, guide = own_copy(model, guide)
    for function in (model, guide):
        for module in _modules(function):
            module.to(device)
    kwargs: dict[str, Any] = {}
    rows = len(example[0]) if torch.is_tensor(example[0]) and example[0].dim() else None
    if size is not None and all("size" in _signature(f) for f in (model, guide)):
        kwargs["size"] = size
    pair = Pair(model, guide, example, kwargs)
    with (
        torch.random.fork_rng(devices=[]), torch.no_grad(), no_validation(),
        pair.bind(pair.params, pair.buffers),
    ):  # fmt: skip
        weights = log_weights(model, guide, *example, nesting=pair.nesting, **kwargs)
    if size is not None and size != rows and not kwargs:
        plates = {p.name: p for _, t in weights.terms() if t.observed for p in t.plates}
        told = [p for p in plates.values() if p.scale != 1]
        data = [p for p in plates.values() if p.size == rows and p.dim == -1] or [
            p for p in plates.values() if p.size == rows
        ]
        if not told and not data:
            raise ValueError(
                f"batch_size: no plate of the model has the {rows} rows of a batch, so the loss "
                "cannot be scaled to all data. Put the observed site in "
                "pyro.plate('data', size, subsample=x), or use batch_size=None."
            )
        if not told:
            pair.full_sizes = {data[0].name: size}
    shared = [p for p in weights.plates if p.dim == -1]
    per_datum = size is not None and bool(shared) and shared[0].size == rows
    return Run(
        pair_=pair, kwargs=kwargs, estimator=elbo, device=device, seed=seed,
        divide=float(size) if per_datum and size else 1.0,
        unit="nats per datum" if per_datum else "nats",
        example=example, variables=None, history=History(),  # type: ignore[arg-type]
    )  # fmt: skip


def held_out_values(
    run: Run, estimator: Estimator, args: tuple, batch_size: int | None
) -> dict[str, float]:
    """The estimator's bound, the ELBO, and the divergence per latent, on held-out rows.

    All in the unit of the run's history; nothing is changed, not even the random state. An annealed
    estimator is taken at the end of its schedule, so that values of different steps compare.
    """
    from .elbo import kl_by_site

    rows = len(args[0])
    chunk = max(batch_size or rows, 1)
    sums: dict[str, float] = {}
    pair, v = run.pair_, run.variables
    kwargs = dict.fromkeys(run.kwargs, rows)
    annealed = torch.tensor(1e9, device=v.count.device)  # a schedule's value at its end
    with torch.random.fork_rng(devices=[]), torch.no_grad(), no_validation():
        torch.manual_seed(run.seed + 1)
        with (
            at_step(estimator, annealed),
            pair.bind(v.params, {k: b.clone() for k, b in v.buffers.items()}),
        ):
            if run.divide == 1.0:
                chunk = rows
            for i in range(0, rows, chunk):
                part = tuple(
                    a[i : i + chunk] if torch.is_tensor(a) and a.dim() and len(a) == rows else a
                    for a in args
                )
                weights = estimator.draw(
                    pair.model, pair.guide, *part, nesting=pair.nesting, **kwargs
                )
                own = weights.scale or 1.0
                values = {"bound": estimator.bound(weights), "elbo": weights.elbo().mean()}
                values |= {f"kl_{n}": kl for n, kl in kl_by_site(weights).items()}
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + float(value) / own
    per = rows if run.divide != 1.0 else 1
    return {k: s / per for k, s in sums.items()}


def pick_device(device: str | torch.device) -> torch.device:
    """The device asked for; "auto" is CUDA where there is one.

    Raises:
        ValueError: there is no such device on this machine.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.zeros(1, device=where)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise ValueError(
            f"device: {device!r} is not on this machine (there is: {there})."
        ) from error
    return where


# ---------------------------------------------------------------- arguments


def _halves(pair: Any, data: Any) -> tuple[Callable, Callable, Any]:
    if not callable(getattr(pair, "model", None)) or not callable(getattr(pair, "guide", None)):
        raise TypeError(
            f"fit: expected a pair with methods `model` and `guide`, or fit(model, guide, data); "
            f"got {type(pair).__name__}."
        )
    if data is None:
        raise TypeError("fit: no data was given: fit(pair, data) or fit(model, guide, data).")
    return pair.model, pair.guide, data


def _arguments(model: Callable, data: Any, valid: Any) -> tuple[tuple, tuple | None]:
    """The pair's arguments, and the held-out ones."""
    if hasattr(data, "train"):
        args: tuple = (data.train,)
        held: tuple | None = (data.valid,) if len(data.valid) else None
        if "y" in _signature(model):
            if data.train_labels is None:
                raise ValueError(f"data: the model needs labels y, and {data.name!r} has none.")
            args += (data.train_labels,)
            held = held and (*held, data.valid_labels)
        return args, held if valid is None else _tuple(valid)
    return _tuple(data), None if valid is None else _tuple(valid)


def _tuple(data: Any) -> tuple:
    if isinstance(data, tuple):
        return tuple(torch.as_tensor(a) if hasattr(a, "__array__") else a for a in data)
    if isinstance(data, Tensor) or hasattr(data, "__array__"):
        return (torch.as_tensor(data),)
    raise TypeError(
        f"data: expected a tensor, a tuple of the pair's arguments, or a data set; got "
        f"{type(data).__name__}."
    )


def _batch_transform(data: Any, transform: Callable | None) -> Callable[[tuple], tuple] | None:
    if transform is None or getattr(data, "pixels", "") != "dynamic":
        return None
    return lambda batch: (transform(batch[0]), *batch[1:])


def _foreign(optimiser: Any) -> Any:
    if isinstance(optimiser, pyro.optim.PyroOptim) or callable(optimiser):
        return optimiser
    raise TypeError(
        "optimiser: expected one of inference.optim (Adam, AdamW, ClippedAdam, SGD, RMSprop), a "
        "function params -> torch.optim.Optimizer, or a pyro.optim optimiser; got "
        f"{type(optimiser).__name__}."
    )


def _schedule(schedule: Any, steps: int) -> Callable[[Tensor], Tensor] | None:
    if callable(schedule):
        return schedule
    if schedule == "constant":
        return None
    if schedule == "linear":
        return lambda count: (1 - count / steps).clamp(min=0.0)
    if schedule == "cosine":
        return lambda count: 0.5 * (1 + torch.cos(math.pi * (count / steps).clamp(max=1.0)))
    raise ValueError(
        f"schedule: expected constant, linear, cosine or a function, got {schedule!r}."
    )


def _signature(function: Callable) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set()


def _modules(function: Callable) -> Iterator[nn.Module]:
    from .pair import modules_of

    yield from modules_of(function)


def _to(a: Any, device: torch.device) -> Any:
    return a.to(device) if torch.is_tensor(a) else a


def _refuse_infinite(run: Run, example: tuple) -> None:
    """Raise ValueError when a site's log density is not finite before the first step."""
    pair, v = run.pair_, run.variables
    with (
        torch.random.fork_rng(devices=[]), torch.no_grad(), no_validation(),
        pair.bind(v.params, {k: b.clone() for k, b in v.buffers.items()}),
    ):  # fmt: skip
        weights = log_weights(pair.model, pair.guide, *example, nesting=pair.nesting, **run.kwargs)
        for sign, term in weights.terms():
            if not torch.isfinite(term.log_prob).all():
                half = "model" if sign > 0 else "guide"
                bad = term.log_prob[~torch.isfinite(term.log_prob)][0]
                value = term.value if torch.is_tensor(term.value) else torch.zeros(())
                raise ValueError(
                    f"site {term.name!r} of the {half}: its log density is {float(bad)} at the "
                    f"first step (values in [{float(value.min()):.3g}, {float(value.max()):.3g}], "
                    f"{type(term.fn).__name__}). Check the site's support and scale, and the data."
                )


def _lost(run: Run, step: int) -> str:
    return (
        f"the loss became NaN or infinite before step {step}. Lower lr, set clip=..., or look at "
        "run.history up to there; inference.check(model, guide, ...) names a site that overflows."
    )
