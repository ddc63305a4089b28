"""Pieces that bounds and their gradients are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ..weights import LogWeights, Term


def score_function(weights: LogWeights, signal: Callable[[Term], Tensor]) -> Tensor | float:
    """Σ log q(z) · signal over the guide sites that need the score function: a scalar.

    Its gradient is the score times the signal, which is taken as a constant.

    Args:
        signal: guide site -> what its score is multiplied by, broadcastable to (K, *plates).

    Raises:
        ValueError: the site depends on an enumerated one; its score and its signal would have to
            be averaged together.

    Source: Ranganath et al. 2014, Black box variational inference, arXiv:1401.0118, section 2.
    """
    total: Tensor | float = 0.0
    for term in weights.guide.values():
        if not term.scored:
            continue
        if term.averaged:
            raise ValueError(
                f"guide site {term.name!r} is not reparameterised and depends on an enumerated "
                "guide site. Enumerate it too (infer={'enumerate': 'parallel'}), or draw both."
            )
        total = total + (term.log_prob * signal(term).detach()).sum()
    return total


def reach(costs: Iterable[tuple[float | Tensor, Term]], site: Term) -> Tensor:
    """The part of a sum of (factor, term) that a guide site can influence: (K, *site's plates).

    Elements of a plate are independent, so only the costs of element i are summed for element i
    (Rao-Blackwellisation over plates); costs outside the site's plates count in full, N/B in.
    """
    mine = {p.name for p in site.plates}
    total: Tensor | float = 0.0
    for factor, term in costs:
        cost = (factor * term.scale * term.log_prob).detach()
        for p in term.plates:
            if p.name not in mine:
                cost = cost.sum(p.dim, keepdim=True)
        total = total + cost
    assert isinstance(total, Tensor)
    return total


def less_the_others(signal: Tensor, dims: tuple[int, ...] = (0,)) -> Tensor:
    """The signal minus its mean over the other elements along `dims` (left alone if there is one).

    The others do not depend on this element's draw, so the score's expectation stays.
    """
    n = 1
    for d in dims:
        n *= signal.shape[d]
    if n == 1:
        return signal
    total = signal.sum(dims, keepdim=True)
    return signal - (total - signal) / (n - 1)


def latent_of(guide_site: str, latents: Iterable[str]) -> str | None:
    """The latent that a guide site draws or, as an auxiliary site `<name>_...`, helps to make."""
    near = [n for n in latents if guide_site == n or guide_site.startswith(f"{n}_")]
    return max(near, key=len, default=None)


def kl_by_site(weights: LogWeights) -> dict[str, Tensor]:
    """E_q[log q - log p] per latent of the model, summed over data and scaled: scalars, nats.

    An auxiliary guide site `<name>_...` is counted with the latent that it makes. Latents whose
    prior was summed out together with others are left out: they have no divergence of their own.
    """
    out = {n: -p.total() for n, p in weights.model.items() if not (p.observed or p.deterministic)}
    for name, q in weights.guide.items():
        target = latent_of(name, out)
        if target is None and not any(name in p.sites for p in weights.model.values()):
            target = name
        if target is not None:
            out[target] = out.get(target, 0.0) + q.total()
    return out


def analytic_kl(q: Term, p: Term) -> Tensor | None:
    """KL(q || p) of two sites, (K, *plates); None where there is no closed form for the pair.

    Where only one of the two is masked, the sampled log q - log p stands in.
    """
    if q.parts and p.parts:
        kls = [analytic_kl(a, b) for a, b in zip(q.parts, p.parts)]
        return None if any(k is None for k in kls) else torch.cat(kls)  # type: ignore[arg-type]
    same = q.user_scale is p.user_scale or (
        not torch.is_tensor(q.user_scale)
        and not torch.is_tensor(p.user_scale)
        and q.user_scale == p.user_scale
    )
    if not (q.free and same) or q.enumerated or q.mask is False or p.mask is False:
        return None
    try:
        kl = kl_divergence(q.fn, p.fn)
    except NotImplementedError:
        return None
    if kl.dim() > q.log_prob.dim():  # varies with an enumerated site
        return None
    kl = kl.reshape((1,) * (q.log_prob.dim() - kl.dim()) + kl.shape)
    for mask in (q.mask, p.mask):
        if torch.is_tensor(mask):
            kl = torch.where(mask, kl, q.log_prob - p.log_prob)
    return kl
