"""log p(x) from below and from above: annealed importance sampling and SMC, forward and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..draws import measures
from ..draws.density import is_discrete, missing_density, to_real
from ..draws.sampler import NUMBERS, conditions, data_plate, even, extent, label_of
from ..elbo.base import latent_of, log_mean
from ..estimate import Estimate
from ..pairs.gate import CheckedPair, admit
from ..pairs.options import one_of, whole
from ..randomness import forked
from ..results.result import Result
from ..results.table import Table
from ..weights import dream
from .tempering import Path, Places

PACE = 0.03  # of a schedule that is found: standard deviations of log w from one to the next
MOST = 500  # temperatures


@dataclass(repr=False)
class AnnealedEvidence(Result):
    """log p(x) between two bounds, both in `unit` (nats per datum, or nats in all).

    Attributes:
        lower: mean of log 1/K Σ_k w_k of chains from the guide to the posterior: in expectation at
            most log p(x).
        upper: the same of chains that run back from draws of the posterior: at least log p(x), if
            they are such draws; `ends` says what they are.
        gap: upper minus lower, the error that can be trusted; the truth is between them.
        lower_per_datum, upper_per_datum: (N,), or one number for joint latents.
        temperatures: of the path, from 0 to 1.
        accepted: the share of proposals that the moves took, on average.
        method, chains, n: as asked for; n data.
        label: what it is the evidence of.
    """

    lower: Estimate
    upper: Estimate
    gap: Estimate
    ends: str
    method: str
    chains: int
    n: int
    accepted: float
    unit: str
    label: str
    temperatures: list[float] = field(repr=False, default_factory=list)
    lower_per_datum: Tensor | None = field(repr=False, default=None)
    upper_per_datum: Tensor | None = field(repr=False, default=None)

    file_name: ClassVar[str] = "annealing"

    def to_dict(self) -> dict[str, Any]:
        """Both bounds and their gap, with standard errors, as plain Python."""
        named = {"lower": self.lower, "upper": self.upper, "gap": self.gap}
        table: dict[str, Any] = {k: e.value for k, e in named.items()}
        table |= {f"{k}_se": e.se for k, e in named.items()}
        more = ("ends", "method", "chains", "n", "accepted", "unit", "label")
        table |= {k: getattr(self, k) for k in more}
        return {**table, "temperatures": len(self.temperatures)}

    def table(self) -> Table:
        """A bound to a line."""
        how = f"{self.chains} chains, {len(self.temperatures)} temperatures"
        rows = [
            [f"{self.label} ≥", self.lower.number(3), f"{self.unit}, {self.method.upper()}, {how}"],
            [f"{self.label} ≤", self.upper.number(3), f"back from {self.ends}"],
            ["  gap", self.gap.number(3), f"{100 * self.accepted:.0f} % of proposals accepted"],
        ]
        return Table(["", f"{self.n:,} data" if self.n else "", ""], rows, left=(0, 2))


def annealed(
    run: Any,
    *data: Any,
    chains: int = 16,
    temperatures: int | None = None,
    leaps: int = 5,
    method: str = "ais",
    posterior: Mapping[str, Tensor] | str | None = None,
    seed: int = 0,
) -> AnnealedEvidence:
    """Bound log p(x) from below and from above by chains along q(z)^(1-β) p(x, z)^β.

    Per datum where the rows are independent (an amortised guide), else jointly. The temperatures,
    steps and scales of the moves (Hamiltonian Monte Carlo) are found by chains of their own, so
    that the bounds are bounds.

    Args:
        run, data: as for `evaluate`.
        chains: K, of each datum.
        temperatures: how many; None takes as many as keep log w from changing by more than a tenth
            of a nat from one to the next.
        leaps: leapfrog steps of a move.
        method: "ais", or "smc", which resamples where fewer than half of the chains are effective.
        posterior: draws to run back from. Site -> exact draws, (K, ...) as in `Term.value`; or
            "simulated": data are drawn from the model too, in place of those given, whose latents
            are then exact posterior draws: the gap is beyond doubt, of other data of the same kind.
            None: the ends of the chains, which bound from above only as far as they are draws of
            the posterior.
        seed: of all of it.

    Returns:
        An `AnnealedEvidence`.

    Raises:
        ValueError: the guide draws a discrete latent, or has no density; an option out of range;
            a posterior that lacks a site.

    Source: Neal 2001, Annealed importance sampling, eq. 11; Grosse, Ghahramani & Adams 2015,
    Sandwiching the marginal likelihood using bidirectional Monte Carlo, arXiv:1511.02543,
    algorithm 1 and section 4; Wu et al. 2017, arXiv:1611.04273, section 3 (decoders).
    """
    pair = admit(run, *data, who="annealed", seed=seed)
    options: dict[str, Any] = {"chains": chains, "temperatures": temperatures, "leaps": leaps}
    return annealed_at(pair, method=method, posterior=posterior, seed=seed, **options)


def annealed_at(
    pair: CheckedPair, *, chains: int = 16, temperatures: int | None = None, leaps: int = 5,
    method: str = "ais", posterior: Mapping[str, Tensor] | str | None = None, seed: int = 0,
) -> AnnealedEvidence:  # fmt: skip
    """`annealed`, of a pair that has passed the gate."""
    whole("chains", chains, 2)
    whole("leaps", leaps, 1)
    one_of("method", method, ("ais", "smc"))
    if temperatures is not None:
        whole("temperatures", temperatures, 2)
    with pair.ready(seed):
        weights = pair.weights(2)
        label, because = label_of(*conditions(pair, weights)), missing_density(weights)
    if because:
        raise ValueError(f"annealed: {because}, so there is no path from it to the posterior.")
    for name, t in weights.guide.items():
        if t.free and not t.observed and (is_discrete(t) or to_real(t) is None):
            raise ValueError(
                f"annealed: the guide draws {name!r}, a {type(t.fn).__name__}, which Hamiltonian "
                "moves cannot change. Leave discrete latents out of the guide, and they are summed "
                "out."
            )
    exact: Mapping[str, Tensor] | None = None
    ends = "the ends of the chains"
    with forked(seed):
        if isinstance(posterior, str):
            one_of("posterior", posterior, ("simulated",))
            pair, exact = _simulated(pair, chains)
            ends = "exact draws, of simulated data"
        elif posterior is not None:
            exact, ends = _all_there(posterior, weights, chains), "the posterior's draws given"
        axis = data_plate(weights, pair.rows)
        found, schedule = [], temperatures
        parts = _parts(pair, chains) if axis is not None else [slice(0, pair.rows or 1)]
        for i, rows in enumerate(parts):
            part = pair if len(parts) == 1 else pair.take(rows)
            own = None if exact is None else _rows(exact, rows, pair.rows, len(parts) > 1)
            torch.manual_seed(seed + i)
            with torch.no_grad(), part.bound():
                found.append(_both(part, chains, schedule, leaps, method, own))
    lower, upper = torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])
    one = len(lower) == 1
    low = Estimate(float(lower), float(found[0][4])) if one else Estimate.of(lower)
    high = Estimate(float(upper), float(found[0][5])) if one else Estimate.of(upper)
    names = [p.name for p in weights.plates]
    return AnnealedEvidence(
        lower=low, upper=high, gap=high - low if one else Estimate.of(upper - lower), ends=ends,
        method=method, chains=chains, n=pair.rows, label=label, temperatures=found[0][2],
        accepted=sum(f[3] for f in found) / len(found), lower_per_datum=lower,
        upper_per_datum=upper, unit="nats per datum" if names else "nats",
    )  # fmt: skip


def _both(
    pair: CheckedPair, chains: int, temperatures: int | None, leaps: int, method: str,
    exact: Mapping[str, Tensor] | None,
) -> tuple[Tensor, Tensor, list[float], float, Tensor, Tensor]:  # fmt: skip
    """Both bounds of each block, the temperatures, the acceptance, and errors over chains."""
    places = Places(pair, chains)
    path = Path.found(places, leaps, temperatures, PACE, MOST)
    resample = method == "smc"
    forward = path.forward(places.start(), resample)
    if exact is not None:
        end = places.of(exact)
    else:
        end = path.settled(places.pick(forward.place, forward.log_w))
    if resample:
        upper = path.conditional(end)
        back = forward
    else:
        back = path.backward(end)
        upper = -log_mean(-back.log_w)
    lower = forward.log_z + log_mean(forward.log_w)
    errors = [measures.evidence_error(s * w.double()).mean() for s, w in
              ((1, forward.log_w), (-1, back.log_w))]  # fmt: skip
    flat = (lower.reshape(-1).double(), upper.reshape(-1).double())
    return *flat, path.temperatures, path.accepted, errors[0], errors[1]


def _parts(pair: CheckedPair, chains: int) -> list[slice]:
    each, _ = extent(pair)
    return even(pair.rows, max(1, NUMBERS * pair.rows // (each * chains)))


def _simulated(pair: CheckedPair, chains: int) -> tuple[CheckedPair, dict[str, Tensor]]:
    """The pair on data drawn from its model, and the latents they were drawn with."""
    with pair.ready(int(torch.randint(2**31, ()))):
        latents, args = dream(pair.model, *pair.args, **pair.kwargs)
        other = replace(pair, args=args)
        weights = other.weights(2)
    return other, _all_there(latents, weights, chains)


def _all_there(given: Mapping[str, Tensor], weights: Any, chains: int) -> dict[str, Tensor]:
    """A value for each site that the guide draws, (K, ...).

    Raises:
        ValueError: one is missing.
    """
    out = {}
    for name, t in weights.guide.items():
        if not t.free or t.observed:
            continue
        value = given.get(name)
        if value is None and (made := latent_of(name, given)) is not None:
            move = to_real(weights.model[made])
            value = None if move is None else move.inv(given[made])
        shape = tuple(t.value.shape[1:])
        if value is None or value.numel() not in (math.prod(shape), chains * math.prod(shape)):
            raise ValueError(
                f"posterior: expected draws of every site that the guide draws, {name!r} of shape "
                f"{shape} among them; got {', '.join(given) or 'none'}. Leave posterior= out to "
                "run back from the ends of the chains."
            )
        each = value.numel() // math.prod(shape)
        out[name] = value.reshape(each, *shape).expand(chains, *shape).clone()
    return out


def _rows(
    exact: Mapping[str, Tensor], rows: slice, total: int, parted: bool
) -> Mapping[str, Tensor]:
    if not parted:
        return exact

    def cut(v: Tensor) -> Tensor:
        axis = next((i for i, n in enumerate(v.shape) if i and n == total), None)
        return v if axis is None else v.narrow(axis, rows.start, rows.stop - rows.start)

    return {n: cut(v) for n, v in exact.items()}
