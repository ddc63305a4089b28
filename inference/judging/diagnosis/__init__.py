"""A verdict on a fit, with its evidence: trust this posterior, or don't, because ..."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr

from ...draws.datatree import to_datatree
from ...draws.arrays import GROUPS
from ...elbo.pieces import kl_by_site
from ...pairs.gate import CheckedPair, admit_all
from ...weights.simulate import is_latent
from . import checks, prediction
from .coordinates import Blocks, blocks
from .corrected import corrected_tree, correction
from .finding import Finding, plain
from .gap import Gaps, amortization_gap
from .matching import Correction, correct
from .tail import SHARE, against, good_khat, importance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Diagnosis", "Finding", "amortization_gap", "diagnose"]

WEIGHED = 40_000  # draws for the weights of one joint posterior, where they cost little
VALUES = 2**26  # values of sites that those draws may amount to, or that a tree may hold


@dataclass(repr=False)
class Diagnosis:
    """What was seen of a fit, and what follows.

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

    @property
    def trust(self) -> bool:
        """Whether the guide's own draws can be taken for the posterior's."""
        return self.verdict == "trust"

    def __getitem__(self, name: str) -> Finding:
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"{name!r}: there is {', '.join(f.name for f in self.findings)}.")

    @property
    def headline(self) -> str:
        """The verdict as a sentence, to be followed by the reasons where there are any."""
        return {
            "trust": "Trust this posterior.",
            "trust the corrected posterior": "Trust .corrected and not the guide's draws, because",
            "do not trust": "Do not trust this posterior, because",
        }[self.verdict]

    def __str__(self) -> str:
        mark = {True: "+", False: "-", None: " "}
        lines = [self.headline, *(f"  - {r}" for r in self.reasons), "", "Evidence"]
        lines += [f"{mark[f.good]} {f.name}: {f.text}" for f in self.findings]
        return "\n".join(lines)

    __repr__ = __str__  # what a notebook shows

    def to_dict(self) -> dict[str, Any]:
        """Verdict, reasons and findings as plain Python, ready for JSON."""
        return {
            "verdict": self.verdict, "trust": self.trust, "reasons": self.reasons,
            "correction": self.correction, "findings": [f.to_dict() for f in self.findings],
        }  # fmt: skip

    def to_json(self, path: str | Path | None = None) -> str:
        """The same as JSON, also written to a file when one is named."""
        text = json.dumps(plain(self.to_dict()), indent=2)
        if path is not None:
            Path(path).write_text(text)
        return text

    def figures(self) -> dict[str, Figure]:
        """The figures that belong to the findings, by name."""
        from .pictures import figures

        return figures(self)

    def plot(self, folder: str | Path) -> list[Path]:
        """Write the figures as PNG files into a folder; returns their paths."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, figure in self.figures().items():
            paths.append(folder / f"{name}.png")
            figure.savefig(paths[-1], dpi=100)
        return paths


def diagnose(
    run: Any,
    *data: Any,
    draws: int | None = None,
    gap: int = 32,
    image_shape: Sequence[int] | None = None,
    coords: Mapping[str, Sequence] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
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

    Returns:
        A `Diagnosis`: `str()` is the text, `figures()` and `to_json()` the rest of it.

    Raises:
        TypeError, ValueError: as `to_datatree`; a guide that draws no latent (a flow's).

    Source: Yao et al. 2018, arXiv:1802.02538 (k-hat of a variational posterior); Vehtari et al.
    2024, arXiv:1507.02646 (PSIS); Paananen et al. 2021, arXiv:1906.00980 (moment matching);
    Cremer et al. 2018, arXiv:1801.03558 (gaps). Each check names its own.
    """
    sources = admit_all(
        run, *data, who="diagnose", least={"draws": 25}, gap=gap, seed=seed,
        draws=1_000 if draws is None else draws,
    )  # fmt: skip
    with sources[0].ready(seed):
        one = sources[0].weights(1)
        if not any(is_latent(t) for t in one.guide.values()):
            raise ValueError("the guide draws no latent: there is no posterior to be diagnosed.")
        local = bool(one.plates)
        size = sum(t.value.numel() for t in one.model.values() if torch.is_tensor(t.value))
    draws = draws or (1_000 if local else 4_000)
    groups: Sequence[str] = GROUPS
    if draws * size * len(sources) > VALUES:
        groups = tuple(g for g in GROUPS if "predictive" not in g)
    names: dict[str, Any] = {"coords": coords, "dims": dims}
    tree = to_datatree(run, *data, draws=draws, groups=groups, seed=seed, **names)
    weighed = draws if local else max(draws, min(WEIGHED, VALUES // max(1, size)))

    best = _best(tree)
    found: list[Finding | None] = []
    evidence: dict[str, Any] = {"best": best, "image_shape": image_shape}
    corrections: dict[int, tuple[Blocks, Correction]] = {}
    try:
        for i, source in enumerate(sources):
            first, second = (blocks(source, weighed, [seed, i, half]) for half in (1, 2))
            corrections[i] = second, correct(first, second, good_khat(weighed))
        found.append(importance(corrections[best][0]))
        evidence |= {"blocks": corrections[best][0], "corrections": corrections}
    except ValueError as why:
        found.append(_by_khat(tree, best, str(why)))
    found.append(checks.restarts(tree))
    corrected = how = None
    if corrections:
        said, how, usable = correction(corrections, best, weighed)
        found.append(said)
        if how:
            found.append(against(*corrections[best]))
            kept = {i: c for i, c in corrections.items() if i in usable}
            corrected = corrected_tree(sources, kept, draws, groups, tree, seed, names)
    gaps = None
    if local and gap:
        try:
            gaps = amortization_gap(sources[best], gap, seed=seed)
            found.append(_gap(gaps))
        except ValueError as why:
            found.append(Finding("amortisation gap", f"not looked for: {why}."))
    if local:
        with sources[best].ready(seed):
            found.append(checks.collapse(tree, _rates(sources[best])))
    pointwise = prediction.evidence(tree, best) if local else None
    if (loo := prediction.leave_one_out(tree)) is not None:
        found.append(loo[0])
        pointwise = loo[1]
    if pointwise is not None:
        said, places = prediction.worst_data(pointwise)
        found.append(said)
        evidence |= {"pointwise": pointwise, "worst": places}
    best_tree = tree if corrected is None else corrected
    found.append(prediction.predictive(best_tree))
    if (pit := prediction.loo_pit(tree, seed)) is not None:
        found.append(pit[0])
        evidence["pit"] = pit[1]
    found.append(checks.sensitivity(best_tree))
    run_ = sources[best].run
    if run_ is not None:
        found.append(checks.convergence(run_.losses, run_.unit))
    findings = [f for f in found if f is not None]
    reasons = [f"{f.name}: {f.text}" for f in findings if f.decides and f.good is False]
    verdict = "trust"
    if reasons:
        verdict = "do not trust" if corrected is None else "trust the corrected posterior"
    return Diagnosis(verdict, reasons, findings, tree, corrected, how, gaps, evidence)


def _best(tree: xr.DataTree) -> int:
    """The restart with the highest ELBO."""
    lw = tree.sample_stats.log_weight
    total = lw.mean("draw").sum([d for d in lw.dims if d not in ("chain", "draw")])
    return int(total.values.argmax())


def _by_khat(tree: xr.DataTree, best: int, why: str) -> Finding:
    """k-hat of the tree's own weights, where nothing more can be said."""
    k = tree.sample_stats.khat.values[best]
    limit = good_khat(tree.posterior.sizes["draw"])
    share = float((~(k <= limit)).mean())
    text = f"k-hat {k.max():.2f} (limit {limit:.2f})" if k.ndim == 0 else (
        f"k-hat is above {limit:.2f} for {100 * share:.0f} % of the data")  # fmt: skip
    text += f"; no latent can be blamed and no correction made, because {why}."
    return Finding("importance weights", text, share <= SHARE, True, {"khat": k, "limit": limit})


def _gap(gaps: Gaps) -> Finding:
    (a, a_se), (b, b_se) = gaps.amortization, gaps.approximation
    small = a < max(3 * a_se, 0.1)
    advice = "" if small else ": a wider encoder or more training would help"
    if b > max(3 * b_se, 0.1) and b > a:
        advice += "; the family costs more than the network: try a richer guide"
    return Finding(
        "amortisation gap", f"{gaps}{advice}.", small, False,
        {"amortization": a, "amortization_se": a_se, "approximation": b, "approximation_se": b_se},
    )  # fmt: skip


def _rates(chain: CheckedPair) -> dict[str, float]:
    """E_q[log q - log p] of every latent, nats per datum, from ten draws."""
    parts = [kl_by_site(chain.weights(1)) for _ in range(10)]
    n = len(chain.args[0])
    return {k: sum(float(p[k]) for p in parts) / (len(parts) * n) for k in parts[0]}
