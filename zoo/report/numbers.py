"""The numbers of a report, each with its unit and, where it is an estimate, its standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from inference.draws.measures import bits_per_dim
from inference.estimate import Estimate

from .quality import Quality
from .representation import compare_codes
from .subject import ROWS, Subject

ROUNDING = 1e-5  # of float32, relative


@dataclass(frozen=True)
class Metric:
    """One number.

    Attributes:
        key: its name in `metrics.json`.
        label: its name on the page.
        value, se: the number and its standard error, None where it is not an estimate.
        unit: "" for a count.
        note: what it means, or how it was estimated.
    """

    key: str
    label: str
    value: float | None
    unit: str = ""
    se: float | None = None
    note: str = ""

    def __str__(self) -> str:
        return f"{self.number} {self.unit}".strip()

    @property
    def number(self) -> str:
        """The value to two digits of its standard error, with it."""
        if self.value is None:
            return "no estimate"
        if not math.isfinite(self.value):
            return str(self.value)
        if self.se is not None and self.se < ROUNDING * max(1.0, abs(self.value)):
            return _sign(self.value, 3)  # an estimate that does not vary
        if self.se is not None and math.isfinite(self.se):
            digits = max(0, 1 - math.floor(math.log10(self.se)))
            return f"{_sign(self.value, digits)} ± {self.se:.{digits}f}"
        if isinstance(self.value, int):
            return f"{self.value:,}"
        size = math.floor(math.log10(abs(self.value))) if self.value else 0
        return _sign(self.value, max(0, 3 - size))


def _sign(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace("-", "−")


def metrics(subject: Subject, bound: bool = True) -> list[Metric]:
    """Measure the model on held-out data.

    Args:
        subject: the model, its data and, where there is one, its `evaluation`.
        bound: whether its ELBO is a bound on log p(x); if not, only errors are told.
    """
    out: list[Metric] = []
    if bound and subject.evaluation is not None:
        out += _bounds(subject)
    elif bound:
        out += _density(subject)
    if subject.offers("classify"):
        out += _accuracy(subject)
    if subject.offers("reconstruct"):
        out += _errors(subject)
    if subject.offers("encode"):
        out += _probes(subject)
    if subject.offers("usage"):
        share = subject.call("usage", subject.held_out()[0])
        out.append(
            Metric(
                "perplexity",
                "codebook perplexity",
                float(torch.special.entr(share).sum().exp()),
                note=f"entries in effect used, of {len(share)}",
            )
        )
    if subject.quality is not None:
        out += _quality(subject.quality)
    for name, e in (subject.latents or {}).items():
        key = f"latents_told_apart_{name.replace(' ', '_')}"
        note = "accuracy between codes of held-out data and the prior, cross-fitted; 0.5 is best"
        out.append(Metric(key, f"latents told apart by {name}", e.value, "", e.se, note))
    if subject.ratio is not None:
        js = subject.ratio.js_divergence
        out.append(
            Metric(
                "js",
                "Jensen–Shannon divergence ≥",
                js.value,
                "nats",
                js.se,
                "between held-out data and draws, by a fresh critic; 0 to log 2",
            )
        )
    return out


def as_json(metrics: list[Metric]) -> dict[str, Any]:
    """key -> value, key_se -> standard error, key_unit -> unit."""
    out: dict[str, Any] = {}
    for m in metrics:
        out[m.key] = m.value
        if m.se is not None:
            out[f"{m.key}_se"] = m.se
        if m.unit:
            out[f"{m.key}_unit"] = m.unit
    return out


def _bounds(s: Subject) -> list[Metric]:
    e = s.evaluation
    assert e is not None
    out: list[Metric] = []

    def add(key: str, label: str, estimate: Estimate, unit: str = "", note: str = "") -> None:
        if estimate.value is not None:  # what has no estimate is not told as a number
            shift = -s.log_det / (s.width * math.log(2)) if key == "bits_per_dim" else s.log_det
            told = ("log_px", "elbo", "reconstruction", "bits_per_dim")
            value = estimate.value + (shift if key in told else 0)
            out.append(Metric(key, label, value, unit or e.unit, estimate.se, note))

    data = f"{e.n:,} test data"
    if e.exact or not e.kl_estimates:
        add("log_px", e.label, e.estimates["log_px"], note=f"exact, {data}")
    else:
        how = f"importance-sampled, K = {e.particles:,}, {data}"
        add("log_px", f"{e.label} ≥", e.estimates["log_px"], note=how)
        if e.ais is not None:
            between = f"annealed chains, {e.ais.n:,} test data"
            add("ais_lower", f"{e.label} ≥", e.ais.lower, note=between)
            add("ais_upper", f"{e.label} ≤", e.ais.upper, note=f"back from {e.ais.ends}")
            add("ais_gap", "gap of the two", e.ais.gap, note="the error that can be trusted")
        add("elbo", "ELBO", e.estimates["elbo"], note="reconstruction − KL")
        told = e.label.replace(" | ", " | z, ") if "|" in e.label else f"{e.label[:-1]} | z)"
        add("reconstruction", "reconstruction", e.estimates["reconstruction"], note=f"E_q[{told}]")
        for k in s.kl:
            add(f"kl_{k}", f"KL {k}", e.kl_estimates[k], note="E_q[log q − log p]")
        note = f"{e.label} − ELBO, the divergence from the posterior"
        add("gap", "gap ≥", e.estimates["gap"], note=note)
        if e.surgery is not None:
            o, limit = e.surgery, f"; at most log {e.surgery.n:,} = {math.log(e.surgery.n):.2f}"
            add("mutual_information", "I(x; z)", o.mutual_information,
                note=f"what latents say of their datum{limit}")  # fmt: skip
            add("marginal_kl", "KL(q(z) ‖ p(z))", o.marginal_kl,
                note="how far all codes together are from the prior; KL − I(x; z)")  # fmt: skip
    if s.shape is not None:
        note = f"−{e.label.replace('log', 'log₂')} / D"
        add("bits_per_dim", "bits per dimension", e.estimates["bits_per_dim"], "bits", note)
    for k, n in e.active_units.items() if e.kl_estimates else ():
        width = f"of {len(e.kl_per_dim[k])}" if k in e.kl_per_dim else ""
        note = "dimensions whose mean varies over data by more than 0.01"
        out.append(Metric(f"active_units_{k}", f"active units {k}", n, width, None, note))
    if e.khat is not None and e.khat_above is not None and torch.isfinite(e.khat).any():
        se = 100 * math.sqrt(e.khat_above * (1 - e.khat_above) / len(e.khat))
        note = "where the guide is too light-tailed for importance sampling"
        share = 100 * e.khat_above
        out.append(Metric("khat_above_0.7", "k-hat above 0.7", share, "% of data", se, note))
    return out


def _density(s: Subject) -> list[Metric]:
    x, y = s.held_out(s.rows)
    if s.offers("elbo"):
        value = s.call("elbo", x, labels=y).double()
        label, note = "ELBO", "a lower bound on log p(x)"
    else:
        log_p = s.log_prob(x, y)
        if log_p is None:
            return []
        value, label, note = log_p.double(), "log p(x)", "exact"
    key = "elbo" if label == "ELBO" else "log_px"
    found = Estimate.of(value)
    data = f"{len(value):,} test data"
    out = [Metric(key, label, found.value, "nats per datum", found.se, f"{note}, {data}")]
    if key == "elbo" and (log_p := s.log_prob(x, y)) is not None:
        mean, se = Estimate.of(log_p.double())
        note = f"of the flow with the same denoiser, by its ODE, {data}"
        out.append(Metric("log_px", "log p(x)", mean, "nats per datum", se, note))
    if s.shape is not None:
        bits, se = bits_per_dim(found, s.width)
        out.append(Metric("bits_per_dim", "bits per dimension", bits, "bits", se, f"−{label} / D"))
    return out


def _quality(q: Quality) -> list[Metric]:
    notes = {
        "precision": "share of draws near held-out data",
        "recall": "share of held-out data near draws",
        "density": "balls of held-out data that a draw is in, over k; 1 for one distribution",
        "coverage": "share of held-out data with a draw near; below 1 for one distribution too",
    }
    where = f"in {q.features}"
    out = []
    for key, note in notes.items():
        e = getattr(q, key)
        out.append(Metric(key, key, e.value, "", e.se, f"{note}; {where}"))
    note = f"squared, cubic kernel, 0 for one distribution; {where}"
    out.append(Metric("kernel_distance", "kernel distance", q.kernel.value, "", q.kernel.se, note))
    for name, e in q.accuracy.items():
        key = f"told_apart_{name.replace(' ', '_')}"
        note = f"accuracy between held-out data and draws, cross-fitted; 0.5 is best; {where}"
        out.append(Metric(key, f"told apart by {name}", e.value, "", e.se, note))
    note = "median distance of draws to training data over that of held-out data; near 0: memorised"
    return [*out, Metric("memory", "nearest training row", q.memory, "", None, note)]


def _accuracy(s: Subject) -> list[Metric]:
    x, y = s.held_out(s.rows)
    if y is None:
        return []
    right = (s.call("classify", x).argmax(-1) == y).double()
    mean, se = Estimate.of(100 * right)
    note = f"of the likeliest label, {len(x):,} test data"
    return [Metric("accuracy", "test accuracy", mean, "%", se, note)]


def _probes(s: Subject) -> list[Metric]:
    """Accuracy of labels read off the codes, beside PCA and the values themselves."""
    (x, y), train = s.held_out(min(s.rows, ROWS)), s.data.train[:ROWS].cpu()
    labels = getattr(s.data, "train_labels", None)
    if y is None or labels is None or s.conditional or s.offers("classify") or len(x) < 50:
        return []
    seen = labels[: len(train)].cpu()
    if len(seen.unique()) < 2:
        return []
    codes = s.call("encode", train), s.call("encode", x)
    out, n = [], f"{len(train):,} training and {len(x):,} test data"
    for space, found in compare_codes(codes, (train, x), (seen, y)).items():
        for kind, e in found.items():
            key = f"probe_{kind.split()[0]}_{space.split()[-1]}"
            note = f"accuracy of labels from the {space}, {n}"
            out.append(Metric(key, f"{kind} probe, {space}", e.value, "", e.se, note))
    return out


def _errors(s: Subject) -> list[Metric]:
    x, y = s.held_out(s.rows)
    square = ((x - s.call("reconstruct", x, labels=y)) ** 2).mean(-1).double()
    spread = ((x - s.data.train.cpu().mean(0)) ** 2).mean()
    mean, se = Estimate.of(square)
    return [
        Metric(
            "squared_error",
            "squared error",
            mean,
            "per value",
            se,
            "of E[x | z] at the guide's mean, test data",
        ),
        Metric(
            "variance_explained",
            "variance explained",
            None if mean is None else 100 * (1 - mean / float(spread)),
            "%",
            None if se is None else 100 * se / float(spread),
            "1 − squared error / variance",
        ),
    ]
