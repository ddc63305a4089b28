"""Fit several guides to one posterior and put what they are worth side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..draws.psis import GOOD, ess, khat
from ..elbo import Estimator, Trace, estimator_of
from ..pairs.arguments import as_arguments, check_signature, check_values
from ..pairs.options import check_options
from ..randomness import forked
from ..training.fitting import fit
from ..training.run import Run
from ..weights import log_weights, no_validation
from .make import make_guide
from .packed import LaplaceGuide, laplace

CHUNK = 100_000  # draws times rows of the data in one run


@dataclass(frozen=True)
class GuideRow:
    """One guide's fit.

    Attributes:
        guide: its name.
        elbo, elbo_se: E_q[log p(x, z) - log q(z)] and its standard error, nats.
        evidence, evidence_se: log of the mean importance weight, and its standard error, nats: an
            estimate of log p(x), to be trusted as far as k-hat allows.
        khat: Pareto k-hat of the joint weights.
        ess: effective number of the draws.
        draws: their number.
        seconds: of the fit.
        note: what else to know.
    """

    guide: str
    elbo: float
    elbo_se: float
    evidence: float
    evidence_se: float
    khat: float
    ess: float
    draws: int
    seconds: float
    note: str = ""


class GuideTable(Mapping[str, GuideRow]):
    """Name -> row, best ELBO first; `str()` is a table.

    Attributes:
        runs: name -> the fitted `Run`.
        failed: name -> why a guide could not be fitted.
    """

    def __init__(self, rows: Sequence[GuideRow], runs: dict[str, Run], failed: dict[str, str]):
        order = sorted(rows, key=lambda r: -r.elbo if math.isfinite(r.elbo) else math.inf)
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

    def __str__(self) -> str:
        head = ("guide", "ELBO (nats)", "log evidence (nats)", "k-hat", "ESS", "seconds", "")
        lines = [head]
        for r in self._rows.values():
            lines.append((
                r.guide, _pm(r.elbo, r.elbo_se), _pm(r.evidence, r.evidence_se),
                f"{r.khat:.2f}" if not math.isnan(r.khat) else "–",
                f"{r.ess:.0f} of {r.draws}" if math.isfinite(r.ess) else "–",
                f"{r.seconds:.1f}", r.note,
            ))  # fmt: skip
        wide = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = "\n".join(
            "  ".join(f"{cell:<{w}}" if i in (0, len(head) - 1) else f"{cell:>{w}}"
                      for i, (cell, w) in enumerate(zip(line, wide))).rstrip()
            for line in lines
        )  # fmt: skip
        return "\n".join([table, *(f"{n}: not fitted. {why}" for n, why in self.failed.items())])

    __repr__ = __str__  # what a notebook shows


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
    check_options({"draws": 25}, draws=draws, steps=steps, lr=lr, seed=seed, **options)
    elbo = estimator_of(elbo, lambda: Trace(8))
    if callable(getattr(model, "model", None)) and callable(getattr(model, "guide", None)):
        model = model.model
    args = check_signature(model, as_arguments(data))
    check_values(args)
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


def joint_log_weights(run: Run, args: tuple, draws: int, seed: int = 0) -> Tensor:
    """log p(x, z) - log q(z) over all data, for S draws of all latents: (S,)."""
    rows = max([len(a) for a in args if torch.is_tensor(a) and a.dim()], default=1)
    chunk = max(1, min(draws, CHUNK // rows))
    args = tuple(a.to(run.device) if torch.is_tensor(a) else a for a in args)
    out, pair = [], run.pair_
    with forked(seed), torch.no_grad(), no_validation(), run.bind():
        for start in range(0, draws, chunk):
            weights = log_weights(
                pair.model, pair.guide, *args, particles=min(chunk, draws - start),
                nesting=pair.nesting, vectorized=run.estimator.vectorized,
            )  # fmt: skip
            out.append(weights.elbo())
    return torch.cat(out).double()


def _row(name: str, run: Run, args: tuple, draws: int, seed: int) -> GuideRow:
    log_w = joint_log_weights(run, args, draws, seed)
    if _is_point(run, args):
        nan = math.nan
        note = f"a point: log p(x, z) = {float(log_w[0]):.2f}"
        return GuideRow(name, nan, nan, nan, nan, nan, nan, draws, run.seconds, note)
    mean = torch.logsumexp(log_w, 0) - math.log(draws)
    relative = torch.exp(log_w - mean)  # w / mean(w)
    tail = float(khat(log_w))
    return GuideRow(
        name, float(log_w.mean()), float(log_w.std()) / math.sqrt(draws), float(mean),
        float(relative.std()) / math.sqrt(draws), tail, float(ess(log_w)), draws, run.seconds,
        _warning(tail),
    )  # fmt: skip


def _warning(tail: float) -> str:
    """The verdict of k-hat on the evidence: weights have 1 / k-hat moments."""
    if tail > GOOD:
        return f"k-hat above {GOOD}: do not trust the evidence"
    return "k-hat above 0.5: the evidence's error is larger than stated" if tail > 0.5 else ""


def _is_point(run: Run, args: tuple) -> bool:
    """Tell whether the guide gives one point, not draws."""
    pair = run.pair_
    args = tuple(a.to(run.device) if torch.is_tensor(a) else a for a in args)
    with forked(), torch.no_grad(), no_validation(), run.bind():
        weights = log_weights(pair.model, pair.guide, *args, nesting=pair.nesting)
    return not any(q.free for q in weights.guide.values() if not q.observed)


def _named(model: Callable, guides: Any) -> dict[str, Any]:
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


def _pm(value: float, se: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f} ± {se:.3f}"
