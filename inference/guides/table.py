"""Fit several guides to one posterior and put what they are worth side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..draws import measures
from ..draws.density import missing_density, missing_spread
from ..draws.psis import LEAST
from ..draws.sampler import joint_log_weights
from ..elbo import Estimator, Trace, estimator_of
from ..estimate import Estimate
from ..executors import spread
from ..pairs.arguments import checked_arguments
from ..pairs.gate import admit
from ..pairs.options import check_options
from ..results.result import Result
from ..results.table import Table
from ..training.fitting import fit
from ..training.run import Run
from ..training.saved import Saved
from .make import make_guide, model_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class GuideRow:
    """One guide's fit.

    Attributes:
        guide: its name.
        elbo, elbo_se: E_q[log p(x, z) - log q(z)] and its standard error, nats.
        evidence, evidence_se: log of the mean importance weight, and its standard error, nats: an
            estimate of log p(x).
        khat: Pareto k-hat of the joint weights.
        ess: effective number of the draws.
        draws: their number.
        seconds: of the fit.
        note: what else to know; what is None above has no estimate, and here it says why.
    """

    guide: str
    draws: int
    seconds: float
    note: str = ""
    elbo: float | None = None
    elbo_se: float | None = None
    evidence: float | None = None
    evidence_se: float | None = None
    khat: float | None = None
    ess: float | None = None


class GuideTable(Result, dict[str, GuideRow]):
    """Name -> row, best ELBO first; `str()` is a table.

    Attributes:
        runs: name -> the fitted `Run`.
        failed: name -> why a guide could not be fitted.
    """

    file_name: ClassVar[str] = "guides"

    def __init__(self, rows: Sequence[GuideRow], runs: dict[str, Run], failed: dict[str, str]):
        order = sorted(rows, key=lambda r: math.inf if r.elbo is None else -r.elbo)
        super().__init__({r.guide: r for r in order})
        self.runs, self.failed = runs, failed

    @property
    def best(self) -> Run:
        """The run of the highest ELBO."""
        return self.runs[next(iter(self))]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Name -> the row as a dictionary."""
        return {n: dataclasses.asdict(r) for n, r in self.items()}

    def to_dataframe(self) -> Any:
        """A pandas DataFrame, one row for each guide."""
        import pandas

        return pandas.DataFrame(self.to_dict().values()).set_index("guide")

    def table(self) -> Table:
        """A guide to a line."""
        head = ("guide", "ELBO (nats)", "log evidence (nats)", "k-hat", "ESS", "seconds", "")
        rows = []
        for r in self.values():
            tail = "–" if r.khat is None else "equal" if r.khat == -math.inf else f"{r.khat:.2f}"
            numbers = (Estimate(r.elbo, r.elbo_se), Estimate(r.evidence, r.evidence_se))
            rows.append([
                r.guide, *(e.number(3) if e else "–" for e in numbers), tail,
                "–" if r.ess is None else f"{r.ess:.0f} of {r.draws}", f"{r.seconds:.1f}", r.note,
            ])  # fmt: skip
        return Table(head, rows, left=(0, len(head) - 1))

    def picture(self) -> Figure | None:
        """The ELBO of each guide with two standard errors."""
        from ..judging.pictures import panels

        known = [r for r in self.values() if r.elbo is not None]
        if len(known) < 2:
            return None
        figure, (axes,) = panels(5.4, 0.9 + 0.3 * len(known))
        elbo = [r.elbo for r in known if r.elbo is not None]
        at = range(len(known))[::-1]
        axes.errorbar(elbo, list(at), xerr=[2 * (r.elbo_se or 0.0) for r in known], fmt="o")
        axes.set_yticks(list(at), [r.guide for r in known])
        axes.set_xlabel("ELBO, nats, two standard errors")
        return figure

    def lines_below(self) -> list[str]:
        """The guides that could not be fitted, and why."""
        return [f"{n}: not fitted. {why}" for n, why in self.failed.items()]


def fit_guides(
    model: Any,
    data: Any,
    guides: Sequence[Any] | Mapping[str, Any] = ("mean-field", "full-rank", "iaf"),
    *,
    elbo: Estimator | None = None,
    steps: int = 2_000,
    lr: float = 1e-2,
    draws: int = 2_000,
    seed: int = 0,
    executor: Executor | None = None,
    **options: Any,
) -> GuideTable:
    """Fit several guides to one posterior, and say what each is worth.

    Args:
        model: a Pyro model, or a pair, whose model is taken.
        data: a tensor or a tuple of the model's arguments.
        guides: names for `make_guide`, (name, options) pairs, or any Pyro guides; or a dictionary
            of those under names of your own.
        elbo: the estimator; `Trace(8)` when None.
        steps, lr: of each fit. The learning rate falls to zero by a cosine, unless `schedule` says
            otherwise.
        draws: S, from which ELBO, evidence, k-hat and ESS are estimated.
        seed: of fits and draws.
        executor: any `concurrent.futures.Executor`, whose workers fit a guide each.
        options: passed to `fit`.

    Returns:
        A `GuideTable`. A guide that cannot be fitted is listed in it with the reason.

    Raises:
        ValueError: an unknown name; fewer than 25 draws; no guide that could be fitted.

    Source: Vehtari et al. 2024, arXiv:1507.02646 (k-hat); Yao et al. 2018, arXiv:1802.02538 (k-hat
    as a judge of variational inference).
    """
    check_options({"draws": LEAST}, draws=draws, steps=steps, lr=lr, seed=seed, **options)
    elbo = estimator_of(elbo, lambda: Trace(8))
    model = model_of(model)
    args = checked_arguments(model, data)
    options = {"schedule": "cosine", "progress": False, **options}
    rows, runs, failed = [], {}, {}
    options |= {"elbo": elbo, "steps": steps, "lr": lr, "seed": seed}
    named = _named(model, guides)
    if executor is None:
        found = [_fitted(model, guide, args, options) for guide in named.values()]
    else:
        calls = [(model, guide, args, options) for guide in named.values()]
        states = spread(executor, _fitted_there, calls, "fit_guides")
        found = [
            s if isinstance(s, str) else fit(model, guide, args, **{**options, "resume": s})
            for guide, s in zip(named.values(), states)
        ]
    for name, run in zip(named, found):
        if isinstance(run, str):
            failed[name] = run
            continue
        runs[name] = run
        rows.append(_row(name, run, args, draws, seed))
    if not rows:
        reasons = "\n".join(f"{n}: {why}" for n, why in failed.items())
        raise ValueError(f"guides: none could be fitted.\n{reasons}")
    return GuideTable(rows, runs, failed)


def _fitted(model: Callable, guide: Any, args: tuple, options: dict[str, Any]) -> Run | str:
    """One guide's fit, or why there is none."""
    try:
        return fit(model, guide, args, **options)
    except ValueError as error:
        return str(error)


def _fitted_there(model: Callable, guide: Any, args: tuple, options: dict[str, Any]) -> Saved | str:
    """The same in another process: the run's state, without its pair."""
    run = _fitted(model, guide, args, options)
    return run if isinstance(run, str) else Saved.of_run(run)


def _row(name: str, run: Run, args: tuple, draws: int, seed: int) -> GuideRow:
    pair = admit(run, args)
    log_w = joint_log_weights(pair, draws, seed)[:, None]  # (K, 1)
    with pair.ready(seed):
        two = pair.weights(2)
    if because := missing_density(two):
        note = f"{because}: log p(x, z) = {float(log_w[0]):.2f}"
        return GuideRow(name, draws, run.seconds, note)
    evidence = measures.evidence(log_w)
    khat: float | None = float(measures.khat(log_w))
    if same := missing_spread(two):
        evidence, khat = Estimate.none(same), None
    note = evidence.because
    if khat is not None and not note and khat > 0.5:
        note = "k-hat above 0.5: the evidence's error is larger than stated"
    elbo, size = measures.elbo(log_w), float(measures.ess(log_w))
    values = elbo.value, elbo.se, evidence.value, evidence.se, khat, size
    return GuideRow(name, draws, run.seconds, note, *values)


def _named(model: Callable, guides: Any) -> dict[str, Any]:
    """Name -> guide, made where a name or a (name, options) pair was given."""
    if isinstance(guides, str):
        guides = [guides]
    if not guides:
        raise ValueError("guides: expected at least one name or Pyro guide, got none.")
    given = guides.items() if isinstance(guides, Mapping) else ((None, g) for g in guides)
    out = {}
    for i, (name, guide) in enumerate(given):
        if isinstance(guide, (str, tuple)):
            kind, options = (guide, {}) if isinstance(guide, str) else guide
            words = ", ".join(f"{k}={v}" for k, v in options.items())
            out[name or (f"{kind} ({words})" if words else kind)] = make_guide(
                kind, model, **options
            )
        elif callable(guide):
            own = getattr(guide, "__name__", None) or f"{type(guide).__name__} {i}"
            out[name or own] = guide
        else:
            raise ValueError(
                f"guides: expected names, (name, options) or Pyro guides, got {guide!r}."
            )
    return out
