"""A posterior without knobs: from a quasi-Newton path up to a flow, until it can be trusted."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..draws.datatree import to_datatree
from ..draws.joint import LogJoint
from ..elbo import STL, Trace
from ..estimate import Estimate
from ..judging.diagnosis import Diagnosis, diagnose
from ..judging.diagnosis.correction import resampled
from ..judging.diagnosis.refereeing import posterior_of
from ..judging.referee.stationary import stays
from ..judging.referee.verdict import Referee, refereed
from ..pairs.arguments import checked_arguments
from ..pairs.gate import admit
from ..pairs.inspection import factorising
from ..pairs.options import check_options, one_of
from ..randomness import forked
from ..results.finding import Finding
from ..training.fitting import fit
from .doubts import evidence as log_evidence
from .doubts import other_modes, supported
from .make import make_guide, model_of
from .paths import CURVED, Normal, Paths, pathfinder
from .result import Posterior, Rung

STEPS = 2_000  # most steps of a rung
LEAST_STEPS = 200  # below which a rung is not begun
RATE = 0.01  # in whitened coordinates, where the posterior is about N(0, I)
PARTICLES = 16


def posterior(
    model: Any,
    *data: Any,
    seconds: float = 60.0,
    draws: int = 4_000,
    seed: int = 0,
    referee: str | None = None,
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
        referee: "nuts" lets the No-U-Turn sampler judge draws that are trusted otherwise: chains
            begun at them, in coordinates that they whiten or in a flow's own noise, for a third of
            the budget or what is left of it.

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
    if referee is not None:
        one_of("referee", referee, ["nuts"])
    begin = time.monotonic()
    model = model_of(model)
    args = checked_arguments(model, data[0] if len(data) == 1 else data)
    with factorising("posterior"):
        joint = LogJoint(model, args)
    paths = pathfinder(joint, seed=seed, deadline=begin + seconds / 3)
    climb = _Way(
        model, args, joint, paths, begin + seconds, seconds, draws, seed, referee is not None
    )
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
    asks: bool
    place: Normal = field(init=False)
    referee: Referee | None = None
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
            more = [f for f in (other_modes(self.paths.draws, drawn),) if f is not None]
            if diagnosis.verdict != "do not trust" and drawn is not None:
                room = min(0.2 * self.seconds, max(1.0, self.left / 2))
                more.append(stays(self.joint, drawn, room, self.seed))
                more.append(supported(diagnosis))
                if self.asks and all(f.good is not False for f in more):
                    more.append(self._refereed(run, drawn))
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

    def _refereed(self, run: Any, drawn: Tensor) -> Finding:
        """Let the No-U-Turn sampler judge draws."""
        room = max(self.seconds / 3, self.left)
        if isinstance(run, tuple):
            finding, self.referee = refereed(self.joint, drawn, seconds=room, seed=self.seed)
            return finding
        with run.bind():
            guide = posterior_of(run.pair_.guide)
            finding, self.referee = refereed(
                self.joint, drawn, guide=guide, seconds=room, seed=self.seed
            )
        return finding

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
        told = [f for f in more if f.good or (f.good is None and f.decides)]
        notes = [f"{f.name}: {f.what}" for f in told] + [self.joint.note]
        notes = [n for n in notes if n]
        evidence = log_evidence(self.joint, diagnosis, self.trusted)
        return Posterior(
            verdict, reasons, tree, evidence, self.rungs, diagnosis, run, self.paths, seconds,
            notes, self.referee,
        )  # fmt: skip
