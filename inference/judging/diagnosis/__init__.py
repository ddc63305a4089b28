"""A verdict on a fit, with its evidence: trust this posterior, or don't, because ..."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import xarray as xr

from ...draws.arrays import GROUPS, named_arrays
from ...draws.datatree import to_datatree
from ...draws.density import lost_digits, missing_density, missing_spread
from ...draws.psis import LEAST
from ...draws.sampler import sample
from ...pairs.gate import CheckedPair, admit_all
from ...pairs.options import one_of
from ...results.finding import Finding
from ...results.result import Result
from ...results.table import WIDTH, Table
from ...weights.sites import is_flat
from . import checks
from .coordinates import blocks
from .correction import Correction, achieved, against, correct, corrected_tree
from .gap import Gaps, amortization_gap
from .missed_mass import beyond
from .refereeing import refereed_guide
from .tail import good_khat, importance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Diagnosis", "Finding", "amortization_gap", "diagnose"]

WEIGHED = 40_000  # draws for the weights of one joint posterior, where they cost little
SEEN = 100  # draws that show whether a guide has a density, and spread
VALUES = 2**26  # values of sites that a tree may hold, and those draws an eighth of them


def level_of(verdict: str) -> str:
    """Return how good a verdict is: "good", "fair" or "bad"."""
    levels = {"trust": "good", "trust the corrected posterior": "fair"}
    return levels.get(verdict, "bad")


@dataclass(repr=False)
class Diagnosis(Result):
    """A verdict on a fit, and its evidence.

    Attributes:
        verdict: "trust", "trust the corrected posterior" or "do not trust".
        reasons: why it is not "trust".
        findings: all the evidence.
        datatree: draws from the guide (`to_datatree`).
        corrected: draws from the posterior, importance-resampled (and moment-matched where that
            was needed), or None where no correction can be relied on.
        correction: "PSIS", "moment matching" or None.
        gaps: amortisation and approximation gap, where the guide is amortised.
    """

    verdict: str
    reasons: list[str]
    findings: list[Finding]
    datatree: xr.DataTree = field(repr=False)
    corrected: xr.DataTree | None = field(repr=False, default=None)
    correction: str | None = None
    gaps: Gaps | None = field(repr=False, default=None)
    evidence: dict[str, Any] = field(repr=False, default_factory=dict)

    file_name: ClassVar[str] = "diagnosis"

    @property
    def trust(self) -> bool:
        """True where the guide's own draws can be taken for the posterior's."""
        return self.verdict == "trust"

    def __getitem__(self, name: str) -> Finding:
        named = {f.name: f for f in self.findings}
        if name not in named:
            raise KeyError(f"{name!r}: there is {', '.join(named)}.")
        return named[name]

    @property
    def headline(self) -> str:
        """The verdict as a sentence, to be followed by the reasons where there are any."""
        return {
            "trust": "Trust this posterior.",
            "trust the corrected posterior": "Trust .corrected and not the guide's draws, because",
            "do not trust": "Do not trust this posterior, because",
        }[self.verdict]

    def lines_above(self) -> list[str]:
        """The verdict and what speaks against the guide's own draws."""
        bullet: dict[str, Any] = {"initial_indent": "  - ", "subsequent_indent": "    "}
        reasons = (textwrap.fill(r, WIDTH, **bullet) for r in self.reasons)
        return [self.headline, *reasons, ""]

    def table(self) -> Table:
        """A finding to a line, with a mark: + as it should be, - not so."""
        mark = {True: "+", False: "-", None: ""}
        rows = [[mark[f.good], f.name, f.what] for f in self.findings]
        return Table(["", "evidence", ""], rows, left=(0, 1, 2))

    def to_dict(self) -> dict[str, Any]:
        """Verdict, reasons and findings as plain Python, ready for JSON."""
        parts = ("name", "good", "decides", "what", "numbers")
        findings = [{part: getattr(f, part) for part in parts} for f in self.findings]
        return {
            "verdict": self.verdict, "trust": self.trust, "reasons": self.reasons,
            "correction": self.correction, "findings": findings,
        }  # fmt: skip

    @property
    def level(self) -> str:
        """Of the verdict."""
        return level_of(self.verdict)

    def picture(self) -> Figure | None:
        """Guide and corrected posterior, or the k-hat of each datum."""
        from ..pictures import first_of_diagnosis

        return first_of_diagnosis(self)

    def figures(self) -> dict[str, Figure]:
        """The figures that belong to the findings, by name."""
        from ..pictures import of_diagnosis

        return of_diagnosis(self)


def diagnose(
    run: Any,
    *data: Any,
    draws: int | None = None,
    gap: int = 32,
    image_shape: Sequence[int] | None = None,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    referee: str | None = None,
) -> Diagnosis:
    """Say whether a fitted posterior can be trusted, and why.

    The verdict rests on the Pareto k-hat of the importance weights p(x, z) / q(z | x) (one for a
    joint posterior, one per datum of an amortised guide), on R-hat over restarts, and on how far
    the importance-corrected means and spreads are from the guide's. Everything else is evidence
    about the model and the fit: leave-one-out, predictive checks, prior sensitivity, amortisation
    gap, latents that have collapsed, the loss.

    Args:
        run, data: as for `to_datatree`; a list of runs, or `fit_many(..., fits=R)`, are restarts,
            and the verdict is on the one with the highest ELBO.
        draws: per restart; by default 4,000, and 1,000 for each datum of an amortised guide. The
            weights of a joint posterior are looked at with up to 40,000.
        gap: data whose guide is refitted to find the amortisation gap; 0 leaves it out.
        image_shape: (channels, height, width) of an observation, to show it as an image.
        coords, dims: names, as for `to_datatree`.
        seed: of all that is drawn.
        referee: "nuts" lets the No-U-Turn sampler judge the draws of one joint posterior: chains
            begun at them, in coordinates that they whiten or in a flow's own noise. Its finding,
            "referee", decides; `evidence["referee"]` has its draws.

    Returns:
        A `Diagnosis`: `str()` is the text, `figures()` and `to_json()` the rest of it.

    Raises:
        TypeError, ValueError: as `to_datatree`; a guide that draws no latent (a flow's).

    Source: Yao et al. 2018, arXiv:1802.02538 (k-hat of a variational posterior); Vehtari et al.
    2024, arXiv:1507.02646 (PSIS); Paananen et al. 2021, arXiv:1906.00980 (moment matching);
    Cremer et al. 2018, arXiv:1801.03558 (gaps). Each check names its own.
    """
    if referee is not None:
        one_of("referee", referee, ["nuts"])
    sources = admit_all(
        run, *data, who="diagnose", least={"draws": LEAST}, gap=gap, seed=seed,
        draws=1_000 if draws is None else draws,
    )  # fmt: skip
    with sources[0].ready(seed):
        two = sources[0].weights(2)
    if not any(t.is_latent for t in two.guide.values()):
        raise ValueError("the guide draws no latent: there is no posterior to be diagnosed.")
    local = bool(two.plates)
    size = sum(t.value.numel() for t in two.model.values() if torch.is_tensor(t.value)) // 2
    draws = draws or (1_000 if local else 4_000)
    large = draws * size * len(sources) > VALUES
    flat = any(t.is_latent and is_flat(t.fn) for t in two.model.values())
    groups = [
        g for g in GROUPS if not ((large and "predictive" in g) or (flat and g.startswith("prior")))
    ]
    names: dict[str, Any] = {"coords": coords, "dims": dims}
    tree = to_datatree(run, *data, draws=draws, groups=groups, seed=seed, **names)
    few = local or sources[0].way == "loop"
    weighed = draws if few else max(draws, min(WEIGHED, VALUES // (8 * max(1, size))))

    log_weight = tree.sample_stats.log_weight
    best = int(log_weight.mean("draw").sum(log_weight.dims[2:]).values.argmax())  # by its ELBO
    with sources[best].ready(seed):
        two = sources[best].weights(min(draws, SEEN))
    because = missing_density(two) or missing_spread(two) or lost_digits(two)
    found: list[Finding | None] = []
    evidence: dict[str, Any] = {"image_shape": image_shape}
    corrections: dict[int, Correction] = {}
    corrected = how = gaps = pointwise = None
    if because:
        text = f"no estimate, because {because}."
        found.append(Finding.of("importance weights", text, False, True))
    else:
        try:
            for i, source in enumerate(sources):
                first, second = (blocks(source, weighed, [seed, i, half]) for half in (1, 2))
                corrections[i] = correct(first, second, good_khat(weighed))
            drawn = corrections[best].source
            found.append(importance(drawn.log_p - drawn.log_q, drawn))
            evidence["correction"] = corrections[best]
        except ValueError as why:
            corrections = {}
            found.append(importance(checks.log_weights(tree, best), None, str(why)))
        if corrections and found[-1] is not None and found[-1].good:
            found.append(beyond(corrections[best].source))
    reached = all(f is None or f.name != "beyond the draws" or f.good for f in found)
    found.append(checks.restarts(tree))
    if corrections and reached:  # no weights bring draws to where there are none
        finding, how, usable = achieved(corrections, best, weighed)
        found.append(finding)
        if how:
            found.append(against(corrections[best]))
            kept = {i: corrections[i] for i in usable}
            corrected = corrected_tree(sources, kept, draws, groups, tree, seed, names)
    if local and gap:
        try:
            gaps = amortization_gap(sources[best], gap, seed=seed)
            found.append(checks.amortisation(gaps))
        except ValueError as why:
            found.append(Finding.of("amortisation gap", f"not looked for: {why}."))
    if local:
        found.append(checks.collapse(tree, best, _rates(sources[best], seed)))
    best_tree = tree if corrected is None else corrected
    if not because:
        left_out, pointwise = checks.leave_one_out(tree)
        found.append(left_out)
        if left_out is None and local:
            pointwise = checks.evidence(tree, best)
    if pointwise is not None:
        finding, places = checks.worst_data(pointwise)
        found.append(finding)
        evidence |= {"pointwise": pointwise, "worst": places}
    found.append(checks.predictive(best_tree))
    if not because:
        uniform, evidence["pit"] = checks.loo_pit(tree, seed)
        found += [uniform, checks.sensitivity(best_tree)]
    if (fitted := sources[best].run) is not None:
        found += [checks.convergence(fitted.losses, fitted.unit), checks.settled(fitted)]
    if referee is not None:
        judge, evidence["referee"] = refereed_guide(sources[best], corrections.get(best), how, seed)
        found.append(judge)
        if judge.good is False and how:  # it judged the corrected draws
            corrected = how = None
    findings = [f for f in found if f is not None]
    reasons = [f"{f.name}: {f.what}" for f in findings if f.decides and f.good is False]
    verdict = "trust"
    if reasons:
        verdict = "do not trust" if corrected is None else "trust the corrected posterior"
    return Diagnosis(verdict, reasons, findings, tree, corrected, how, gaps, evidence)


def _rates(pair: CheckedPair, seed: int) -> dict[str, float]:
    """E_q[log q - log p] of every latent, nats per datum, from ten draws."""
    rates: dict[str, list[torch.Tensor]] = {}
    for tree in sample(pair, 10, partial(named_arrays, groups=("divergence",)), seed=seed):
        for name, v in tree["divergence"].items():
            rates.setdefault(name, []).append(v.array.flatten(1).mean(1))
    return {name.removeprefix("kl:"): float(torch.cat(v).mean()) for name, v in rates.items()}
