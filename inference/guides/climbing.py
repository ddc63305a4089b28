"""A posterior without knobs: from a quasi-Newton path up to a flow, until it can be trusted."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import xarray as xr
from torch import Tensor

from ..draws import measures
from ..draws.datatree import to_datatree
from ..draws.psis import GOOD, psis
from ..elbo import STL, Trace
from ..estimate import Estimate
from ..judging.diagnosis import Diagnosis, diagnose
from ..judging.diagnosis.correction import resampled
from ..pairs.arguments import checked_arguments
from ..pairs.gate import admit
from ..pairs.options import check_options
from ..randomness import forked
from ..results.finding import Finding
from ..results.result import Result
from ..results.table import Table
from ..training.fitting import fit
from ..weights.sites import is_flat
from .joint import LogJoint
from .make import make_guide, model_of
from .paths import CURVED, Normal, Paths, pathfinder
from .stationary import stays

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 2_000  # most steps of a rung
LEAST_STEPS = 200  # below which a rung is not begun
RATE = 0.01  # in whitened coordinates, where the posterior is about N(0, I)
PARTICLES = 16
UNSEEN = 0.02  # of the posterior's mass, seen from the paths, that the draws may miss


@dataclass(frozen=True)
class Rung:
    """One guide on the way up.

    Attributes:
        guide: its kind.
        steps: of its fit; 0 for the path's own Gaussian.
        elbo: in nats.
        khat: of its weights, None where it was not judged.
        seconds: of the fit and the verdict.
        said: the verdict, or why there is none.
    """

    guide: str
    steps: int
    elbo: Estimate
    khat: float | None
    seconds: float
    said: str


@dataclass(repr=False)
class Posterior(Result):
    """Draws from a posterior, whether they can be trusted, and what it took.

    Attributes:
        verdict: "trust", "trust the corrected posterior" (`datatree` holds the corrected draws), or
            "do not trust".
        reasons: why it is not to be trusted, in sentences; empty where it is.
        datatree: the draws, importance-corrected where that could be relied on; as `to_datatree`.
        evidence: log p(x), nats, or why there is no estimate.
        rungs: the guides tried, in order; the last is the one that `datatree` comes from, unless
            none is trusted: then it comes from the one of the highest ELBO.
        diagnosis: of that guide; None where the budget left no time for one.
        run: its fit, or the pair (model, guide) of a Gaussian that was not fitted; for `diagnose`,
            `to_datatree`, `predict`.
        paths: where the quasi-Newton paths led.
        seconds: in all.
    """

    verdict: str
    reasons: list[str]
    datatree: xr.DataTree = field(repr=False)
    evidence: Estimate
    rungs: list[Rung]
    diagnosis: Diagnosis | None = field(repr=False)
    run: Any = field(repr=False)
    paths: Paths = field(repr=False)
    seconds: float
    notes: list[str] = field(default_factory=list)

    file_name: ClassVar[str] = "posterior"

    @property
    def trust(self) -> bool:
        """True where `datatree` can be taken for draws from the posterior."""
        return self.verdict != "do not trust"

    def lines_above(self) -> list[str]:
        """The verdict, its reasons, and the evidence."""
        head = "Trust this posterior." if self.trust else "Do not trust this posterior, because"
        how = self.diagnosis and self.diagnosis.correction
        if self.trust and how:
            head = f"Trust this posterior (draws corrected by {how})."
        return [head, *(f"  - {r}" for r in self.reasons), f"log evidence {self.evidence}", ""]

    def table(self) -> Table:
        """A guide to a line."""
        rows = [
            [r.guide, str(r.steps), r.elbo.number(2) if r.elbo else "–",
             "–" if r.khat is None else f"{r.khat:.2f}", f"{r.seconds:.1f}", r.said]
            for r in self.rungs
        ]  # fmt: skip
        head = ("guide", "steps", "ELBO (nats)", "k-hat", "seconds", "")
        return Table(head, rows, left=(0, 5))

    def lines_below(self) -> list[str]:
        """Notes, and the time."""
        return [*self.notes, f"{self.seconds:.1f} s in all."]

    def to_dict(self) -> dict[str, Any]:
        """Verdict, evidence and rungs as plain Python."""
        return {
            "verdict": self.verdict, "trust": self.trust, "reasons": self.reasons,
            "evidence": self.evidence, "rungs": self.rungs, "notes": self.notes,
            "seconds": self.seconds,
            "diagnosis": self.diagnosis and self.diagnosis.to_dict(),
        }  # fmt: skip

    @property
    def level(self) -> str:
        """Of the verdict."""
        levels = {"trust": "good", "trust the corrected posterior": "fair"}
        return levels.get(self.verdict, "bad")

    def picture(self) -> Figure | None:
        """That of the diagnosis."""
        return self.diagnosis.picture() if self.diagnosis else None

    def figures(self) -> dict[str, Figure]:
        """Those of the diagnosis."""
        return self.diagnosis.figures() if self.diagnosis else {}


def posterior(
    model: Any, *data: Any, seconds: float = 60.0, draws: int = 4_000, seed: int = 0
) -> Posterior:
    """Find the posterior of a model's latents, and say whether it can be trusted.

    Paths up the log joint give a Gaussian; where its draws, importance-corrected or as they are,
    cannot be trusted, a guide begins from it, and the next one from the best so far:

        up to 200 latents     pathfinder → full rank → affine flow
        more                  pathfinder → mean-field → low rank → affine flow

    (Mean-field has no fewer steps than full rank, and where the latter is affordable it can only
    be worse.) A rung ends by `diagnose`; the way ends where it trusts, or the budget is spent.

    Args:
        model: a Pyro model whose latents are continuous, or discrete and can be summed out; or a
            pair, whose model is taken. It learns no parameters.
        data: its arguments.
        seconds: the budget; what began may take a little more.
        draws: in the DataTree.
        seed: of everything random.

    Returns:
        A `Posterior`. `str()` is the verdict, the evidence and the rungs.

    Raises:
        ValueError: the log joint is not finite at any start; a latent is discrete and cannot be
            summed out; the model learns parameters, or has no latents.
        TypeError: arguments that do not fit the model.

    Source: Zhang et al. 2022, arXiv:2108.03782; Yao et al. 2018, arXiv:1802.02538; Paananen et al.
    2021, arXiv:1906.00980.
    """
    if not seconds > 0:
        raise ValueError(f"seconds: expected a positive budget, got {seconds}; the default is 60.")
    check_options({"draws": 25}, draws=draws, seed=seed)
    begin = time.monotonic()
    model = model_of(model)
    args = checked_arguments(model, data[0] if len(data) == 1 else data)
    joint = LogJoint(model, args)
    paths = pathfinder(joint, seed=seed, deadline=begin + seconds / 3)
    climb = _Way(model, args, joint, paths, begin + seconds, seconds, draws, seed)
    climb.rise(begin)
    return climb.reached(time.monotonic() - begin)


@dataclass
class _Way:
    """The way up: the best guide so far, and where the next one begins."""

    model: Callable
    args: tuple
    joint: LogJoint
    paths: Paths
    deadline: float
    seconds: float
    draws: int
    seed: int
    place: Normal = field(init=False)
    rungs: list[Rung] = field(default_factory=list)
    best: tuple[float, Any, Diagnosis | None, list[Finding]] | None = None
    trusted: bool = False
    spent: bool = False

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def rise(self, begin: float) -> None:
        """Climb until a rung is trusted or the budget is spent."""
        self.place = self.paths.best
        kinds = ["full-rank", "iaf"] if self.joint.dim <= CURVED else [
            "mean-field", "low-rank", "iaf"]  # fmt: skip
        guide = make_guide("full-rank", self.model, *self.args, start=self.place)
        elbo = Estimate(self.place.elbo, self.place.elbo_se)
        judging = time.monotonic()
        if self.left <= 0:
            self._step("pathfinder", 0, elbo, begin, (self.model, guide), None)
            self.spent = True
            return
        pair = self.model, guide
        self._step("pathfinder", 0, elbo, begin, pair, self._judged(*pair))
        cost = time.monotonic() - judging
        modes = self.best is not None and any(f.name == "other modes" for f in self.best[3])
        if modes and not self.paths.improper and self.joint.dim <= CURVED and self.left > cost:
            began = time.monotonic()
            pair = self.model, make_guide("full-rank", self.model, *self.args, start=self.paths)
            self._step("mixture", 0, None, began, pair, self._judged(*pair))
        for i, kind in enumerate(kinds):
            if self.trusted or self.paths.improper:
                return
            began = time.monotonic()
            room = (self.left - cost) / (1 if i == len(kinds) - 1 else 3)
            guide = make_guide(kind, self.model, *self.args, start=self.place)
            together = admit(self.model, guide, self.args).way != "loop"
            particles = PARTICLES if together else 1
            estimator = (Trace if kind == "iaf" else STL)(particles, vectorized=together)
            steps = self._affordable(room, estimator, guide)
            if steps < LEAST_STEPS:
                self.spent = True
                return
            try:
                run = fit(
                    self.model, guide, self.args, elbo=estimator, steps=steps, lr=RATE,
                    schedule="cosine", seed=self.seed, progress=False, check=False,
                    compile=False, callbacks=[lambda _: self.left < cost],
                )  # fmt: skip
            except ValueError as why:
                said = f"not fitted: {str(why).splitlines()[0]}"
                none = Estimate.none("it could not be fitted")
                self.rungs.append(Rung(kind, 0, none, None, time.monotonic() - began, said))
                continue
            self._step(kind, run.steps, None, began, run, self._judged(run))

    def _affordable(self, room: float, estimator: Any, guide: Any) -> int:
        """The steps that fit into so many seconds."""
        tried = fit(
            self.model, guide, self.args, elbo=estimator, steps=5, lr=1e-9, progress=False,
            check=False, compile=False,
        ).history["seconds"]  # fmt: skip
        return min(STEPS, int(room / ((tried[-1] - tried[0]) / (len(tried) - 1))))

    def _judged(self, *pair: Any) -> Diagnosis:
        seed = self.seed + len(self.rungs)
        with warnings.catch_warnings():  # flat priors are named where the evidence is
            warnings.filterwarnings("ignore", "no prior groups")
            return diagnose(*pair, self.args, draws=self.draws, gap=0, seed=seed)

    def _step(
        self, kind: str, steps: int, elbo: Estimate | None, began: float, run: Any,
        diagnosis: Diagnosis | None,
    ) -> None:  # fmt: skip
        """Note what a rung said; keep the trusted one, or else that of the highest ELBO."""
        said, khat, more = "not judged: the budget was spent", None, []
        if diagnosis is not None:
            numbers = diagnosis["importance weights"].numbers
            khat = numbers.get("khat")
            khat = float(khat) if isinstance(khat, float) else None
            if "elbo" in numbers and numbers["elbo"] is not None:
                elbo = Estimate(numbers["elbo"], numbers["elbo_se"])
            drawn = self._drawn(run, diagnosis)
            more = [f for f in (self._unseen(drawn),) if f is not None]
            if diagnosis.verdict != "do not trust" and drawn is not None:
                room = min(0.2 * self.seconds, max(1.0, self.left / 2))
                more.append(stays(self.joint, drawn, room, self.seed))
                more.append(_supported(diagnosis))
            bad = [f for f in more if f.good is False]
            passed = diagnosis.verdict != "do not trust" and not self.paths.improper
            self.trusted = passed and not bad
            said = diagnosis.verdict if self.trusted else "do not trust: "
            if not self.trusted:
                bad = [f for f in (*diagnosis.findings, *more) if f.decides and f.good is False]
                bad = bad or [Finding.of("improper", self.paths.improper)]
                said += ", ".join(f.name for f in bad)
        elbo = elbo or Estimate.none("its weights have none")
        value = elbo.value if elbo.value is not None and math.isfinite(elbo.value) else -math.inf
        self.rungs.append(Rung(kind, steps, elbo, khat, time.monotonic() - began, said))
        if self.trusted or self.best is None or value > self.best[0]:
            self.best = value, run, diagnosis, more
            if diagnosis is not None and not self.trusted:
                self._begin_from(run)

    def _begin_from(self, run: Any) -> None:
        """Let the next guide begin at this one's mean and covariance."""
        u = self._guided(run)
        if u is None or len(u) < 4 * self.joint.dim:
            return
        centred = u - u.mean(0)
        scale, bad = torch.linalg.cholesky_ex(centred.T @ centred / (len(u) - 1))
        if not bad and self.joint.dim <= CURVED:
            self.place = Normal(u.mean(0), scale)

    def _guided(self, run: Any) -> Tensor | None:
        """Draws of a guide on the real line, (S, D), in the order of the log joint's latents."""
        pair = admit(*(run if isinstance(run, tuple) else (run,)), self.args)
        if pair.way == "loop":
            return None
        with pair.ready(self.seed):
            weights = pair.weights(min(4_000, max(100, 2**24 // max(1, self.joint.dim))))
        (latent,) = (t for n, t in weights.guide.items() if n.endswith("_latent"))
        return latent.value.reshape(weights.particles, -1).to(self.joint.dtype)

    def _drawn(self, run: Any, diagnosis: Diagnosis) -> Tensor | None:
        """The draws that would be handed out, on the real line: corrected ones where there are."""
        made = diagnosis.evidence.get("correction")
        joint = made is not None and made.source.names == self.joint.names  # not one per datum
        if joint and diagnosis.corrected is not None:
            assert made is not None
            with forked(self.seed):
                return resampled(made, 4_000)[:, 0].to(self.joint.dtype)
        return self._guided(run)

    def _unseen(self, drawn: Tensor | None) -> Finding | None:
        """Find mass that the paths saw and the draws do not reach: another mode.

        The draws from the paths' Gaussians are importance-resampled, so they have the posterior's
        shares of every mode that a path found. Outside is what lies further from the draws' mean,
        in their own covariance, than any of them.
        """
        seen = self.paths.draws
        if drawn is None or len(seen) == 0 or len(drawn) < 2 * self.joint.dim:
            return None
        mean = drawn.mean(0)
        centred = drawn - mean
        low, bad = torch.linalg.cholesky_ex(centred.T @ centred / len(drawn))
        if bad:
            return None

        def distance(u: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(low, (u - mean).T, upper=False).norm(dim=0)

        share = float((distance(seen) > 1.1 * distance(drawn).max()).double().mean())
        if share <= UNSEEN:
            return None
        what = (
            f"about {100 * share:.0f} % of the posterior's mass that the paths found lies where "
            "the draws never are: there is another mode"
        )
        return Finding.of("other modes", what, False, True, {"share": share})

    def reached(self, seconds: float) -> Posterior:
        """The result."""
        assert self.best is not None
        _, run, diagnosis, more = self.best
        reasons: list[str] = []
        verdict = "do not trust"
        if self.trusted and diagnosis is not None:
            verdict = diagnosis.verdict
            if verdict == "trust" and diagnosis.corrected is not None:
                verdict = "trust"
        else:
            reasons += [f"{why}." for why in (self.paths.improper or self.paths.away,) if why]
            if diagnosis is not None:
                reasons += diagnosis.reasons + [
                    f"{f.name}: {f.what}" for f in more if f.good is False
                ]
            if self.spent:
                reasons.append(
                    f"the budget was spent after {seconds:.1f} s, before another guide could be "
                    "tried; give more: seconds=..."
                )
        if diagnosis is None:
            pair = run if isinstance(run, tuple) else (run,)
            tree = to_datatree(*pair, self.args, draws=self.draws, seed=self.seed)
        else:
            tree = diagnosis.datatree if diagnosis.corrected is None else diagnosis.corrected
        notes = [f"{f.name}: {f.what}" for f in more if f.good] + [self.joint.note]
        notes = [n for n in notes if n]
        evidence = self._evidence(diagnosis)
        return Posterior(
            verdict, reasons, tree, evidence, self.rungs, diagnosis, run, self.paths, seconds, notes
        )

    def _evidence(self, diagnosis: Diagnosis | None) -> Estimate:
        """log p(x) of the trusted draws' weights."""
        weights = self.joint.weights(torch.zeros(1, self.joint.dim, dtype=self.joint.dtype))
        flat = [n for n, t in weights.model.items() if is_flat(t.fn)]
        if flat:
            return Estimate.none(f"the prior of {', '.join(flat)} is improper")
        if not self.trusted or diagnosis is None:
            return Estimate.none("the posterior is not trusted")
        made = diagnosis.evidence.get("correction")
        if made is None:
            return Estimate.none("its weights could not be judged")
        raw = made.raw  # (S, B)
        each = [measures.evidence(raw[:, [b]]) for b in range(raw.shape[1])]
        if lost := [e for e in each if not e]:
            return Estimate.none(lost[0].because)
        error = math.hypot(*(e.se or 0.0 for e in each))
        return Estimate(sum(e.value for e in each if e.value is not None), error)


def _supported(diagnosis: Diagnosis) -> Finding:
    """Check that the weights carry spreads too: k-hat of w (z - mean)², in the latents' own space.

    Weights good enough for a mean may not be so for the variance of a latent with a heavy tail.

    Source: Vehtari et al. 2024, arXiv:1507.02646, section 3.2 (k-hat of w h for a function h).
    """
    made = diagnosis.evidence.get("correction")
    if made is None:
        return Finding.of("spreads", "their weights could not be looked at.")
    weight = made.log_weight  # (S, B), smoothed and normalised
    heaviest, where = -math.inf, ""
    for name, value in made.source.values(made.u).items():
        z = value.reshape(len(value), -1).double()
        w = weight if weight.shape[1] == z.shape[1] else weight[:, :1]
        centred = (z - (w.exp() * z).sum(0)).abs().clamp(min=1e-300)
        raw = made.raw if w is weight else made.raw[:, :1]
        k = float(psis(raw + 2 * centred.log())[1].max())
        if k > heaviest:
            heaviest, where = k, name
    text = f"k-hat of w (z - mean)² is at most {heaviest:.2f} ({where}; limit {GOOD})."
    return Finding.of("spreads", text, heaviest <= GOOD, True, {"khat": heaviest})
