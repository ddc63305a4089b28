"""The words of every finding of `check`, as they are printed, with places for values."""

from __future__ import annotations

import re
from typing import Any

from .findings import Finding

# level, name, what is wrong; then what was expected, what was found, and what to do
_TEXTS = """
note left-out: a discrete latent that the guide leaves out
  found {family}
  fix nothing to do: it is summed out exactly.
error forgotten: the guide forgets a latent of the model
  expected a pyro.sample({site!r}, ...) in the guide, or obs= in the model
  found the guide has {drawn}; Pyro would draw it from its prior without a word
  fix {hint}add the site to the guide (or condition the model on it).
error unknown: the guide draws a site that the model does not have
  expected one of {latents}
  found pyro.sample({site!r}, ...)
  fix {hint}mark it infer={{'is_auxiliary': True}} if it only helps to draw others.
error draws-data: the guide draws what the model observes
  expected latents only
  found pyro.sample({site!r}, ...) in the guide
  fix remove the site from the guide: data belong to the model.
error observes: the guide observes data
  expected latents only
  found pyro.sample({site!r}, ..., obs=...) in the guide, which divides the weight by its density
  fix remove the site from the guide: the likelihood belongs to the model.
warning nothing-observed: the model observes nothing
  expected a site with obs=data, or a pyro.factor
  found latents {latents} only
  fix pass obs=; as it is, the guide is fitted to the prior.
note loop: plate {plate!r} of the {half} is a Python loop
  expected with pyro.plate(...): and batched distributions
  found for i in pyro.plate({plate!r})
  fix a vectorised plate does the same in one step, and compiles to a small graph.
error nan: {name} holds NaN or infinite values
  expected finite data
  found {bad} of {all}, the first at {first}
  fix drop or impute them, or mask them in the model with poutine.mask.
warning asks-gradient: {name} asks for a gradient
  expected data without requires_grad
  found requires_grad=True
  fix pass it detached; what is to be learned goes into pyro.param or a module.
warning baseline: infer={{'baseline': ...}} is ignored
  expected no baseline
  found a baseline in Pyro's way
  fix remove it: Score(8), VIMCO(8) and Trace(8) make theirs from the other particles.
error own-rows: the guide draws its own mini-batch at plate {plate!r}
  expected one mini-batch for model and guide
  found the model is given subsample=..., the guide (an autoguide?) draws random rows, and Pyro
    replays the model at those (issue 3468)
  fix pass create_plates= to the autoguide, make the guide's local latents a function of the data
    (amortised), or fit on all data.
error few-rows: parameter {name!r} has one row for each of a mini-batch
  expected {full} rows, one for each element of plate {plate!r} (pyro.param(..., event_dim=...)
    inside the plate), or an amortised guide
  found shape {shape}: the same {rows} rows serve whatever is drawn (as in issue 3286)
  fix size it for the whole plate, or compute it from the data; with an AutoDiscreteParallel, leave
    the site out: it is then summed out exactly.
error plates: model and guide have it in different plates
  expected {p} (the model)
  found {q} (the guide)
  fix open the same plates around it in both, with the same names, dims and sizes.
error event-dims: model and guide count its event dimensions differently
  expected event dimension {p.fn.event_dim}, {p.family} of shape {p.shape} (the model)
  found event dimension {q.fn.event_dim}, {q.family} of shape {q.shape} (the guide)
  fix {hint}
error shapes: model and guide give it different shapes
  expected {p.shape} (the model)
  found {q.shape} (the guide)
  fix make the guide's parameters of the model's shape.
warning plate-names: model and guide call its plates differently
  expected {p} (the model)
  found {q} (the guide)
  fix use one name: weights are only taken apart along plates that both halves name.
error scales: model and guide scale it differently
  expected one scale for log p and log q, {p:g} as in the model
  found {q:g} in the guide
  fix {hint}
error undeclared: a batch dimension that the {half} does not declare
  expected each batch dimension in a plate; it is in {plates}
  found {family} of batch shape {batch}: dimension {dim} of size {size}
  fix with pyro.plate('data', {size}): around independent data, or .to_event({event}) for the parts
    of one value. A (N, 1) against a (N,) also makes (N, N).
error data-shapes: data and distribution have different shapes
  expected data of shape {shape}, as the distribution
  found data of shape {data}
  fix squeeze or unsqueeze one of them: (N, 1) and (N,) broadcast to (N, N).
error density: the first log density of the {half} that is not finite
  expected finite log densities at the start
  found {bad} of {all} are {first}, {family} at {span}
  fix check its support and scale; use logits instead of probabilities, clamp an exp or a log.
error out-of-range: {name} of {family} is out of range
  expected {allowed}
  found {bad} of {all} out of range, {span}
  fix {hint}
error misfit: the {half} does not fit plate {plate!r}
  expected size {size} (or 1) at dimension {dim}, or no batch dimension there
  found size {got} at dimension {dim} ({line})
  fix give the distribution shape (..., {size}) at that dimension, or declare its own dimensions
    with .to_event(1), or let the plate be of size {got}.
error twice: the {half} has two sites called {site!r}
  expected a name of its own for each site (plates count: a plate is a site too)
  found a second {site!r} at {line}
  fix rename one; in a loop use an f-string, pyro.sample(f"{site}_{{i}}", ...), or a vectorised
    plate.
error both-kinds: the {half} uses {site!r} both as a {kind} and as another kind of site
  expected different names for a parameter and a sample site
  found {text} ({line})
  fix rename the parameter, for example pyro.param("{site}_loc", ...).
error devices: the {half} mixes devices
  expected all tensors on one device
  found {devices} ({at})
  fix move the module and the data to one device (module.to(x.device)); make constants from the data
    (x.new_zeros(...)); an autoguide stays on the device it was first called on: make it, or call it
    first, after moving the data.
error dtypes: the {half} mixes floating-point types
  expected one dtype throughout
  found {dtypes} ({at})
  fix x.float(), or module.double(); numpy makes float64 where torch makes float32.
error wrong-call: the {half} is called with the wrong arguments
  expected model and guide take the same arguments
  found {at}
  fix give both one signature.
error stops-at-shapes: the {half} stops {reached}
  expected shapes that fit each other
  found {raised}
  fix look at the line named; networks act on the last axis, and batch dimensions come first.
error stops: the {half} stops {reached}
  expected the {half} runs to its end
  found {raised}
  fix mend the line named.
error all-devices: parameters and data are on different devices
  expected all tensors on one device
  found {devices}
  fix move the module and the data to one device: module.to(x.device).
warning all-dtypes: parameters and data have different floating-point types
  expected one dtype throughout
  found {dtypes}
  fix x.float(), or module.double(); numpy makes float64 where torch makes float32.
error unreachable: the guide draws values that the model cannot have
  expected {p.family}, over {mine}
  found {found}
  fix use {advice}.
error other-kind: the guide draws from another kind of set than the model
  expected {p.family}, over {mine}
  found {q.family}, over {theirs}
  fix {hint}
warning unreached: the guide cannot reach all that the model allows
  expected {p.family}, over {mine}
  found {q.family}, over {theirs}
  fix if the posterior may lie outside, use {advice}.
warning leaves-support: the point mass at parameter {name!r} may leave the support
  expected a parameter that stays in {mine}
  found a parameter without constraint
  fix use {advice}.
warning not-whole: the data are not whole numbers
  expected {p.family}, over whole numbers from {low} to {high}
  found {span}
  fix the value is then a loss, not a log density: binarise or round the data for nats.
error outside: the data lie outside what the model can make
  expected {p.family}, over {mine}
  found {span}
  fix rescale or clean the data, or choose another likelihood.
error no-parameters: the pair has no parameters
  expected something to learn
  found neither a pyro.param nor a registered module
  fix use pyro.param, or pyro.module("name", net) for a network; a bare
    torch.tensor(..., requires_grad=True) is not seen by Pyro.
error cut: the guide learns nothing
  expected draws that depend on the guide's parameters
  found no gradient reaches {lost}
  fix remove detach(), .data, torch.no_grad() and torch.tensor(...) copies between the parameters
    and the distribution.
note fixed: the guide has nothing to learn
  found no parameter in its distributions
  fix nothing to do if that is meant.
warning unused: parameters that get no gradient
  expected a gradient for every parameter
  found none for {lost}
  fix remove what is not used (or freeze it with requires_grad_(False)); if it should be used, look
    for detach(), .data or torch.no_grad() on the way.
error module: module {name!r} is used but not registered
  expected pyro.module({name!r}, {name}) in the model or guide that uses it
  found its {number} parameters ({shown}) never reach Pyro and would keep their random starting
    values
  fix add pyro.module({name!r}, {name}), or make it an attribute of the pair's module; if it is
    meant to stay as it is, {name}.requires_grad_(False).
error tensor: {name} asks for a gradient, but is not a parameter
  expected pyro.param(name, start), or an nn.Parameter of a registered module
  found shape {shape}, requires_grad=True, unknown to Pyro: it would not be fitted
  fix make it a pyro.param; a constant needs no requires_grad.
error two-modules: two modules are registered as {name!r}
  expected one name for each module
  found pyro.module({name!r}, ...) with different modules; only the first would be fitted
  fix name them apart, for example {name}_model and {name}_guide.
error two-parameters: two parameters are called {name!r}
  expected one name for each parameter
  found shapes {shapes}; only the first is made
  fix rename one of them.
error cached: attribute {name!r} is computed from a parameter only once
  expected computed in model or guide, at each step
  found a tensor in a graph ({node}), made when {owner} was, which later steps would not update
  fix keep the parameter in __init__ and compute {key!r} where it is used.
note all-at-once: the pair only takes all data at once
  found half of the rows: {raised}
  fix fit it with batch_size=None.
error rows-of-batch: parameters with a row for each datum of a mini-batch
  expected parameters for all data, or an amortised guide
  found parameter {name!r} has shape {shape} on {n} rows, and follows their number
  fix fit on all data (batch_size=None), or compute them from the data: make_guide(...,
    amortized=True).
note rows-of-data: the guide has parameters for each datum
  found parameter {name!r} has shape {shape} on {n} rows, and follows their number
  fix fit on all data (batch_size=None), or compute them from the data: make_guide(...,
    amortized=True).
error biased: the bound of a mini-batch is biased
  expected the mean bound of two halves of the data, scaled to all, equals the bound on all
  found {halves:.2f} ± {halves_se:.2f} nats against {full:.2f} ± {full_se:.2f} on {n} rows:
    z = {z:.1f}
  fix {hint}
error arguments: the {half} does not take these arguments
  expected {half}{signature}
  found called with ({given}): {why}
  fix model and guide get the same arguments, in the same order: give both one signature (with
    defaults for what one of them does not use).
warning particles: the pair does not broadcast over particles
  expected latents of shape (K, batch, event) work as (batch, event) do
  found with two particles: {raised}
  fix index and reduce from the right (z[..., 0], .sum(-1)); or use vectorized=False in the
    estimator.
error closed-form: the closed-form mean-field KL does not apply
  expected every prior depends only on latents that the guide draws before
  found {why}
  fix use elbo.Trace(), or draw the guide's sites in the model's order.
note score: the guide's distribution has no reparameterisation
  found {family}
  fix {hint}
warning seeded: the guide draws the same values under every seed
  expected fresh noise at each step
  found equal draws under two seeds
  fix remove pyro.set_rng_seed or torch.manual_seed from model and guide.
"""


def _parsed(text: str) -> dict[str, tuple[str, ...]]:
    """Return name -> (level, what, expected, found, fix)."""
    entries = {}
    for entry in re.split(r"\n(?=\w)", text.strip()):
        head, *fields = re.split(r"\n  (?=\w)", entry)
        level, name, what = head.split(maxsplit=2)
        said = dict(field.split(maxsplit=1) for field in fields)
        lines = (" ".join(said.get(key, "").split()) for key in ("expected", "found", "fix"))
        entries[name.rstrip(":")] = level, what, *lines
    return entries


TEXTS = _parsed(_TEXTS)


def finding(key: str, site: str | None = None, /, level: Any = None, **values: Any) -> Finding:
    """Return the finding of that name, at its own level or another, with these values in it."""
    usual, *texts = TEXTS[key]
    return Finding(level or usual, site, *(t.format(site=site, **values) for t in texts))
