"""The loss of ELBO of an amortised guide: in its family, or in its network."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...draws.measures import log_evidence
from ...draws.sampler import sample_each
from ...elbo import Trace
from ...estimate import Estimate
from ...optim import Adam
from ...pairs.arguments import has_rows, take_rows
from ...pairs.gate import CheckedPair
from ...randomness import forked
from ...results.result import Result
from ...training.batches import Batches
from ...training.loop import Loop
from ...training.options import LoopOptions
from ...training.state import Training
from ...training.update import Update, Variables, schedule_of
from ...weights import LogWeights
from ..comparison.gradients import halves_of


@dataclass(repr=False)
class Gaps(Result):
    """log p(x) - ELBO of some data, split in two.

        log p(x) - ELBO(q_x*)       the approximation gap: what the guide's family cannot do
        ELBO(q_x*) - ELBO(q(·|x))   the amortisation gap: what its network does not do

    with q_x* the best member of the family for x alone.

    Attributes:
        log_px: (R,), of R data, importance-sampled from q_x*, nats; a lower bound in expectation.
        local: (R,), ELBO(q_x*), nats.
        amortised: (R,), ELBO(q(·|x)), nats.
    """

    log_px: Tensor
    local: Tensor
    amortised: Tensor

    @property
    def amortization(self) -> Estimate:
        """The mean amortisation gap and its standard error over data and draws, nats per datum."""
        return Estimate.of(self.local - self.amortised)

    @property
    def approximation(self) -> Estimate:
        """The mean approximation gap and its standard error over data and draws."""
        return Estimate.of(self.log_px - self.local)

    def lines_above(self) -> list[str]:
        """Both gaps."""
        a, b = (gap.number(3) for gap in (self.amortization, self.approximation))
        return [
            f"amortisation gap {a}, approximation gap {b} nats per datum ({len(self.local)} data)"
        ]

    def to_dict(self) -> dict[str, Estimate]:
        """Both gaps, with their errors."""
        return {"amortization": self.amortization, "approximation": self.approximation}


def amortization_gap(
    chain: CheckedPair,
    rows: int = 32,
    *,
    steps: int = 250,
    lr: float = 3e-3,
    particles: int = 8,
    draws: int = 1_000,
    seed: int = 0,
) -> Gaps:
    """Refit the guide to single data and see what is gained.

    The parameters that only the guide uses are copied for every chosen datum, start where the fit
    left them, and follow the ELBO of that datum alone (Adam, cosine schedule, all data in one
    batched step). The model stays as it is.

    Args:
        chain: a fitted pair whose sites all lie in the data plate.
        rows: how many data, spread evenly over all.
        steps, lr, particles: of the refit.
        draws: per datum, for the ELBO and log p(x).
        seed: of all that is drawn.

    Raises:
        ValueError: the pair has a latent outside the data plate, or does not run on single data;
            its guide has no parameter of its own.

    Source: Cremer et al. 2018, "Inference suboptimality in variational autoencoders",
    arXiv:1801.03558, eqs. 2 to 4.
    """
    n = len(chain.args[0])
    with chain.ready(seed):
        plates = chain.weights(1).plates
    if not any(p.dim == -1 and p.size == n for p in plates):
        raise ValueError("the pair has a latent outside the data plate: nothing is amortised")
    own = [k for k, half in halves_of(chain).items() if half == "guide"]
    if not own:
        raise ValueError("the guide has no parameters of its own: nothing can be refitted")
    r = min(rows, n)
    vary = tuple(0 if has_rows(a, n) else None for a in chain.args)
    args = take_rows(chain.args, torch.linspace(0, n - 1, r).round().long(), n)
    batch = tuple(a if v is None else a[:, None] for a, v in zip(args, vary))
    kwargs = dict.fromkeys(chain.kwargs, 1)

    pair = copy.copy(chain.pair)  # of which only the guide's parameters are learned
    pair.params = {k: chain.params[k].detach() for k in own}
    fixed = {k: p.detach().requires_grad_() for k, p in chain.params.items() if k not in own}
    pair.buffers = fixed | chain.buffers
    start = {k: p.expand(r, *p.shape).clone() for k, p in pair.params.items()}
    with forked(seed), warnings.catch_warnings():
        # no tensor requires a gradient under `vmap`, which Pyro takes for a frozen parameter
        warnings.filterwarnings("ignore", ".*was not registered in the param store")
        update = Update(
            pair, Trace(particles), Adam(lr), kwargs=kwargs, vary=vary,
            schedule=schedule_of("cosine", steps, chain.device),
        )  # fmt: skip
        variables = Variables(
            {k: p.clone() for k, p in start.items()},
            {k: t.expand(r, *t.shape) for k, t in pair.buffers.items()},
            update.optimiser.init(list(start.values())),
            torch.zeros((), device=chain.device, dtype=torch.int64),
        )
        refit = Training(variables=variables, device=chain.device, seed=seed)
        options: LoopOptions = {"steps": steps, "lr": lr, "progress": False}
        try:
            Loop(refit, [update], Batches(batch, None, seed), options).go()
        except RuntimeError as error:  # a recurrent network has no batching rule, say
            first = str(error).strip().splitlines()[0].partition(". We could")[0]
            raise ValueError(
                f"the pair does not run on single data side by side: {first}"
            ) from error
    if refit.stopped:
        raise KeyboardInterrupt
    each = replace(chain, pair=pair, buffers=pair.buffers, args=batch, kwargs=kwargs)
    before, after = (  # the same draws for both: less noise in the difference
        sample_each(
            replace(each, params=p), r, draws, _log_weight, axes=(0, None, vary), seed=seed
        )["log_weight"].T.double()
        for p in (start, variables.params)
    )
    return Gaps(log_evidence(after), after.mean(0), before.mean(0))


def _log_weight(weights: LogWeights) -> dict[str, Tensor]:
    return {"log_weight": weights.log_weight().reshape(-1)}
