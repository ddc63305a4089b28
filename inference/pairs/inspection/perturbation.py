"""A pair at other parameters: what leaves its range there, and which gradients are not whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine import unwrap
from torch import Tensor

from ...results.finding import listed
from ..pair import Pair
from .calls import draw
from .findings import Finding, finding
from .runs import Recording, Site, Trial, base
from .supports import arguments_of, bent, beyond, described, range_text

MANY = 30  # tensors whose gradients are compared with differences
STEPS = 0.02, 0.01  # of the differences, relative to a parameter's size
FAR = (
    (1.0, 0.02),
    (-1.0, 0.05),
    (1.0, 2.0),
    (-1.0, 2.0),
    (1.0, 6.0),
    (-1.0, 6.0),
)  # sign, and noise that is added

_FOLLOWING = "use inference.make_guide(kind, model, ...), which lets the support follow them; or "

Run = tuple[Recording, Recording]  # of guide and model


class Perturbed:
    """A pair that is run at other parameters, seeds, draws and rows.

    Attributes:
        trial: it is a copy of the trial's pair.
        near: parameters a little away from the start: none is zero, and no two are equal.
        left: sites found out of their range.
    """

    def __init__(self, trial: Trial):
        self.trial, self.left = trial, set[str]()
        self.pair = Pair(trial.model, trial.guide, trial.args, trial.kwargs)
        self.near = self.moved(1.0, 0.3)

    def moved(self, sign: float, by: float, seed: int = 0) -> dict[str, Tensor]:
        """Return parameters times a sign, plus noise of that standard deviation."""
        at = torch.Generator().manual_seed(seed)
        start = self.pair.params
        noise = {k: torch.randn(p.shape, generator=at).to(p) for k, p in start.items()}
        return {k: (sign * p + by * noise[k]).requires_grad_() for k, p in start.items()}

    def run(
        self,
        seed: int,
        held: Mapping[str, Tensor] | None = None,
        args: tuple | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> Run:
        """Run guide and model once; a latent that is held keeps its value."""
        params = self.near if params is None else params
        with self.pair.bind(params, {k: b.clone() for k, b in self.pair.buffers.items()}):
            q = Recording(self.trial, "guide", None, seed, held, args)
            return q, Recording(self.trial, "model", q.trace, seed, None, args)


def stopped(run: Run) -> bool:
    """Tell whether a half did not run to its end, which is no finding away from the start."""
    return any(half.error is not None for half in run)


def ranges(here: Perturbed) -> Iterable[Finding]:
    """Move the parameters a little and far away, and find what leaves its range there."""
    here.left = seen = set()
    for seed, (sign, by) in enumerate(FAR):
        params = here.moved(sign, by, seed)
        run = here.run(seed, params=params)
        for half in run:
            for name, fn in half.reached.items():
                family = type(base(fn, through_transforms=False)).__name__
                told = () if name in seen or family == "Delta" else arguments_of(fn)
                for key, value, constraint in told:
                    if name not in seen and (beyond(value, constraint) or bent(value, constraint)):
                        seen.add(name)
                        more = {"key": key, "family": family, "span": range_text(value)}
                        more |= {"of": _names_in(value, params), "line": half.lines.get(name, "")}
                        yield finding("may-leave", name, **more, **described(constraint))
        if not stopped(run) and not seen:
            yield from _strays(*run, seen, isinstance(unwrap(here.trial.guide), AutoGuide))


def _strays(q: Recording, p: Recording, seen: set[str], auto: bool) -> Iterable[Finding]:
    """Find latents whose values the model could not have drawn.

    `auto` says that the guide is one of Pyro's autoguides, which has no line of the user's.
    """
    for name, s in p.latents.items():
        support = getattr(s.fn, "support", None)
        if name in q.latents and torch.is_tensor(s.value) and beyond(s.value, support):
            seen.add(name)
            told = {"p": s, "span": range_text(s.value), **described(support)}
            told["line"] = "" if auto else f" ({q.lines.get(name, '')})"
            yield finding("strays", name, **told, hint=_FOLLOWING if auto else "")


def _names_in(value: Tensor, params: Mapping[str, Tensor]) -> str:
    """Return the names of the parameters that a tensor depends on, in words."""
    if not value.requires_grad:
        return "the parameters"
    grads = torch.autograd.grad(value.sum(), list(params.values()), allow_unused=True)
    return listed([n for n, g in zip(params, grads) if g is not None], 3)


def differences(here: Perturbed) -> Iterable[Finding]:
    """Compare the gradient with differences of log densities, the draws held: what is cut off.

    Draws count as parameters too: a model that detaches one learns nothing through it.
    """
    q, p = here.run(1)
    free = {n: s.value.detach() for n, s in q.latents.items() if _is_drawn(s)}
    start = {f"parameter {k}": v for k, v in here.near.items()}
    start |= {f"the draw of {n}": v for n, v in free.items() if q.latents[n].fn.has_rsample}

    def densities(at: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
        params = {k: at[f"parameter {k}"] for k in here.near}
        values = {n: at.get(f"the draw of {n}", v) for n, v in free.items()}
        torch.manual_seed(1)
        weights = draw(here.pair, params, here.trial.args, values, **here.trial.kwargs)
        halves = {"model": weights.model, "guide": weights.guide}
        return {
            (h, n): t.log_prob.sum()
            for h, terms in halves.items()
            for n, t in terms.items()
            if type(t.fn).__name__ != "Unit"  # a pyro.factor may be a loss, its detach meant
        }

    try:
        for name in list(start)[:MANY]:
            if (cut := _cut_off(densities, start, name)) is not None:
                (half, site), true, ours = cut
                if site in here.left:  # a density out of its range has no slope
                    return
                line = {"guide": q, "model": p}[half].lines.get(site, "")
                told = {"name": name, "true": true, "ours": ours, "half": half}
                yield finding("partly-cut", site, **told, line=f" ({line})" if line else "")
                return
    except RuntimeError:  # at other values the pair may stop: that is no finding
        return


def _is_drawn(site: Site) -> bool:
    return torch.is_tensor(site.value) and not (site.point or site.infer.get("enumerate"))


def _cut_off(
    densities: Callable, start: Mapping[str, Tensor], name: str
) -> tuple[tuple[str, str], float, float] | None:
    """Return the site at which two slopes along a tensor disagree, and both.

    One is a central difference, the other autograd's; they must disagree in two directions, and
    the difference must not depend on its step.
    """
    worst = None
    for seed in (0, 1):
        at = torch.Generator().manual_seed(seed)
        p = start[name].detach().clone().requires_grad_()
        v = torch.randn(p.shape, generator=at).to(p) * (p.detach() != 0)
        if not v.any():
            return None
        v = v / v.norm() * (p.detach().norm() / p.numel() ** 0.5).clamp(0.1, 3.0)
        values = densities({**start, name: p})

        ours = dict.fromkeys(values, 0.0)
        for k, value in values.items():
            if value.requires_grad:
                (g,) = torch.autograd.grad(value, [p], allow_unused=True, retain_graph=True)
                ours[k] = 0.0 if g is None else float((g * v).sum())
        wide, worst = _slopes(densities, start, name, STEPS[0] * v, STEPS[0]), None
        if all(g == 0 for g in ours.values()) and name.startswith("parameter"):
            return None  # found elsewhere, by name
        if any(_cut(wide[k], ours[k], values[k]) for k in wide):
            narrow = _slopes(densities, start, name, STEPS[1] * v, STEPS[1])
            for k in wide:
                steady = abs(wide[k] - narrow[k]) < 0.05 * max(abs(narrow[k]), abs(ours[k]))
                if steady and _cut(narrow[k], ours[k], values[k]):
                    worst = k, narrow[k], ours[k]
        if worst is None:
            return None
    return worst


@torch.no_grad()
def _slopes(
    densities: Callable, start: Mapping[str, Tensor], name: str, move: Tensor, step: float
) -> dict[Any, float]:
    """Return central differences of each log density along a tensor."""
    up, down = (densities({**start, name: start[name] + s * move}) for s in (1, -1))
    return {k: (float(up[k]) - float(down[k])) / (2 * step) for k in up}


def _cut(true: float, ours: float, value: Tensor) -> bool:
    """Tell whether a slope lacks more than rounding and curvature explain.

    One that is added, as by a straight-through estimator, is meant.
    """
    rounding = 2e-5 * (1 + abs(float(value.detach()))) / STEPS[1]
    lacks = abs(true - ours) > max(0.1 * abs(true), 0.1 * abs(ours), rounding)
    return lacks and abs(true) > max(0.05 * abs(ours), rounding)
