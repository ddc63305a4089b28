"""Fit several guides to one posterior and put what they are worth side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..draws import measures
from ..draws.density import missing_density, missing_spread
from ..draws.psis import LEAST, ess
from ..draws.sampler import joint_log_weights
from ..elbo import Estimator, Trace, estimator_of
from ..estimate import Estimate
from ..pairs.arguments import checked_arguments
from ..pairs.gate import admit
from ..pairs.options import check_options
from ..results.result import Result
from ..results.table import Table
from ..training.fitting import fit
from ..training.run import Run
from .make import make_guide
from .packed import LaplaceGuide, laplace


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
    elbo: float | None
    elbo_se: float | None
    evidence: float | None
    evidence_se: float | None
    khat: float | None
    ess: float | None
    draws: int
    seconds: float
    note: str = ""


class GuideTable(Result, Mapping[str, GuideRow]):
    """Name -> row, best ELBO first; `str()` is a table.

    Attributes:
        runs: name -> the fitted `Run`.
        failed: name -> why a guide could not be fitted.
    """

    file_name: ClassVar[str] = "guides"

    def __init__(self, rows: Sequence[GuideRow], runs: dict[str, Run], failed: dict[str, str]):
        order = sorted(rows, key=lambda r: math.inf if r.elbo is None else -r.elbo)
        self._rows = {r.guide: r for r in order}
        self.runs, self.failed = runs, failed

    def __getitem__(self, name: str) -> GuideRow:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def best(self) -> Run:
        """The run of the highest ELBO."""
        return self.runs[next(iter(self._rows))]

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Name -> the row as a dictionary."""
        return {n: dataclasses.asdict(r) for n, r in self._rows.items()}

    def to_dataframe(self) -> Any:
        """A pandas DataFrame, one row for each guide."""
        import pandas

        return pandas.DataFrame(self.to_dict().values()).set_index("guide")

    def table(self) -> Table:
        """A guide to a line."""
        head = ("guide", "ELBO (nats)", "log evidence (nats)", "k-hat", "ESS", "seconds", "")
        rows = []
        for r in self._rows.values():
            tail = "–" if r.khat is None else "equal" if r.khat == -math.inf else f"{r.khat:.2f}"
            numbers = (Estimate(r.elbo, r.elbo_se), Estimate(r.evidence, r.evidence_se))
            rows.append([
                r.guide, *(e.number(3) if e else "–" for e in numbers), tail,
                "–" if r.ess is None else f"{r.ess:.0f} of {r.draws}", f"{r.seconds:.1f}", r.note,
            ])  # fmt: skip
        return Table(head, rows, left=(0, len(head) - 1))

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
    if callable(getattr(model, "model", None)) and callable(getattr(model, "guide", None)):
        model = model.model
    args = checked_arguments(model, data)
    options = {"schedule": "cosine", "progress": False, **options}
    made = _named(model, guides)
    rows, runs, failed = [], {}, {}
    for name, guide in made.items():
        try:
            run = fit(model, guide, args, elbo=elbo, steps=steps, lr=lr, seed=seed, **options)
            if isinstance(run.pair_.guide, LaplaceGuide):
                run = laplace(run, args)
        except ValueError as error:
            failed[name] = str(error)
            continue
        runs[name] = run
        rows.append(_row(name, run, args, draws, seed))
    if not rows:
        reasons = "\n".join(f"{n}: {why}" for n, why in failed.items())
        raise ValueError(f"guides: none could be fitted.\n{reasons}")
    return GuideTable(rows, runs, failed)


def _row(name: str, run: Run, args: tuple, draws: int, seed: int) -> GuideRow:
    pair = admit(run, args)
    log_w = joint_log_weights(pair, draws, seed)[:, None]  # (K, 1)
    with pair.ready(seed):
        two = pair.weights(2)
    if because := missing_density(two):
        note = f"{because}: log p(x, z) = {float(log_w[0]):.2f}"
        return GuideRow(name, None, None, None, None, None, None, draws, run.seconds, note)
    elbo, evidence = measures.elbo(log_w), measures.evidence(log_w)
    tail, note = measures.pareto_khat(log_w), evidence.because
    if same := missing_spread(two):
        tail, evidence, note = None, Estimate.none(same), same
    khat = None if tail is None or isinstance(tail, Estimate) else float(tail)
    if khat is not None and not note and khat > 0.5:
        note = "k-hat above 0.5: the evidence's error is larger than stated"
    size = float(ess(log_w))
    return GuideRow(name, *elbo, *evidence, khat, size, draws, run.seconds, note)


def _named(model: Callable, guides: Any) -> dict[str, Any]:
    if isinstance(guides, str):
        guides = [guides]
    if not guides:
        raise ValueError("guides: expected at least one name or Pyro guide, got none.")
    if not isinstance(guides, Mapping):
        guides = {_name(g, i): g for i, g in enumerate(guides)}
    out = {}
    for name, guide in guides.items():
        if isinstance(guide, str):
            guide = make_guide(guide, model)
        elif isinstance(guide, tuple):
            guide = make_guide(guide[0], model, **guide[1])
        elif not callable(guide):
            raise ValueError(
                f"guides: expected names, (name, options) or Pyro guides, got {guide!r}."
            )
        out[name] = guide
    return out


def _name(guide: Any, position: int) -> str:
    if isinstance(guide, str):
        return guide
    if isinstance(guide, tuple):
        words = ", ".join(f"{k}={v}" for k, v in guide[1].items())
        return f"{guide[0]} ({words})" if words else guide[0]
    return getattr(guide, "__name__", None) or f"{type(guide).__name__} {position}"
