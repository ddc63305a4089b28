"""Findings in words, errors first, and the table of all their words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from ...results.finding import Finding
from ...results.notebook import as_html

__all__ = ["Finding", "Findings", "finding"]

ORDER = ("error", "warning", "note")


class Findings(tuple[Finding, ...]):
    """Findings, errors first. `str()` reads as advice.

    True when there is any finding, as for a list: `if check(...)` asks whether there is something
    to read, and `if check(...).errors` whether a fit would be refused.
    """

    def __new__(cls, findings: Iterable[Finding] = ()) -> Findings:
        """Sort them, and take each once."""
        unique = dict.fromkeys(findings)
        return super().__new__(cls, sorted(unique, key=lambda f: ORDER.index(f.level)))

    def _at(self, level: str) -> tuple[Finding, ...]:
        return tuple(f for f in self if f.level == level)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Those with which a fit does not start."""
        return self._at("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Those with which a fit may come out wrong."""
        return self._at("warning")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Those that are good to know."""
        return self._at("note")

    def _repr_html_(self) -> str:
        """The findings for a notebook, the worst first."""
        level = "bad" if self.errors else "fair" if self.warnings else "good"
        return as_html([str(self)], level=level)

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "Nothing found: the pair looks fit to be fitted."

    def __repr__(self) -> str:
        counts = [f"{len(self._at(level))} {level}s" for level in ORDER]
        return f"Findings({', '.join(counts)})"


def finding(name: str, site: str | None = None, /, level: Any = None, **values: Any) -> Finding:
    """Return the finding of that name, at its own level or another, with these values in it."""
    usual, *texts = TEXTS[name]
    what, expected, found, fix = (text.format(site=site, **values) for text in texts)
    return Finding(level or usual, site, what, expected, found, fix)


# name and level | what is wrong | what was expected | what was found | what to do
_TABLE = """
left-out note | a discrete latent that the guide leaves out | | {family} | nothing to do: it is
  summed out exactly.
forgotten error | the guide forgets a latent of the model | a pyro.sample({site!r}, ...) in the
  guide, or obs= in the model | the guide has {drawn}; Pyro would draw it from its prior without a
  word | {hint}add the site to the guide (or condition the model on it).
unknown error | the guide draws a site that the model does not have | one of {latents} |
  pyro.sample({site!r}, ...) | {hint}
idle error | the guide draws an auxiliary site that makes no latent | latents computed from it:
  Deltas, with the log density of what comes out | no latent is computed from it ({line}), and log
  q({site}) counts beside theirs: no bound on log p(x) | remove the site, or give it a density r
  given the latents in the model, pyro.sample({site!r}, ...) after them (auxiliary variables,
  arXiv:1602.05473).
draws-data error | the guide draws what the model observes | latents only | pyro.sample({site!r},
  ...) in the guide | remove the site from the guide: data belong to the model.
draws-computed error | the guide draws what the model computes | latents only; {site!r} is a
  pyro.deterministic of the model | pyro.sample({site!r}, ...) in the guide ({line}) | remove it
  from the guide: it follows from the latents, and is in the draws (to_datatree) all the same.
observes error | the guide observes data | latents only | pyro.sample({site!r}, ..., obs=...) in the
  guide at {line}: its density divides the weight | {hint}
nothing-observed warning | the model observes nothing | a site with obs=data, or a pyro.factor |
  latents {latents} only | pass obs=; as it is, the guide is fitted to the prior.
loop note | plate {plate!r} of the {half} is a Python loop | with pyro.plate(...): and batched
  distributions | for i in pyro.plate({plate!r}) | a vectorised plate does the same in one step, and
  compiles to a small graph.
nan error | {name} holds NaN or infinite values | finite data | {bad} of {all}, the first at {first}
  | drop or impute them, or mask them in the model with poutine.mask.
asks-gradient warning | {name} asks for a gradient | data without requires_grad | requires_grad=True
  | pass it detached; what is to be learned goes into pyro.param or a module.
baseline error | infer={{'baseline': ...}} has {option!r} | nn_baseline with nn_baseline_input,
  use_decaying_avg_baseline with baseline_beta, or baseline_value | {option!r} | write one of those.
own-rows error | the guide draws its own mini-batch at plate {plate!r} | one mini-batch for model
  and guide | the model is given subsample=..., the guide (an autoguide?) draws random rows, and
  Pyro replays the model at those (issue 3468) | pass create_plates= to the autoguide, make the
  guide's local latents a function of the data (amortised), or fit on all data.
few-rows error | parameter {name!r} has one row for each of a mini-batch | {full} rows, one for each
  element of plate {plate!r} (pyro.param(..., event_dim=...) inside the plate), or an amortised
  guide | shape {shape}: the same {rows} rows serve whatever is drawn (as in issue 3286) | size it
  for the whole plate, or compute it from the data; with an AutoDiscreteParallel, leave the site
  out: it is then summed out exactly.
plates error | model and guide have it in different plates | {p} (the model) | {q} (the guide) |
  open the same plates around it in both, with the same names, dims and sizes.
event-dims error | model and guide count its event dimensions differently | event dimension
  {p.fn.event_dim}, {p.family} of shape {p.shape} (the model) | event dimension {q.fn.event_dim},
  {q.family} of shape {q.shape} (the guide) | {hint}
shapes error | model and guide give it different shapes | {p.shape} (the model) | {q.shape} (the
  guide) | make the guide's parameters of the model's shape.
two-subsamples error | model and guide each draw a mini-batch of their own | one plate, so that both
  take the same rows | {p} (the model) and {q} (the guide), each with its own random rows | give the
  plate one name in both: Pyro then runs the model at the guide's rows.
masks error | model and guide mask it differently | one mask for log p and log q | {p} elements
  count in the model, {q} in the guide ({line}) | put the same poutine.mask around the site in the
  guide: log q of what the model does not count has no limit.
tied warning | parameter {name!r} is given a start at two places of the {half} | one place for each
  parameter | {lines}: both are the same tensor, the second start is never used | give them two
  names, unless they are to be one and the same.
order error | model and guide take their arguments in another order | model{model} | guide{guide}:
  both are called with the same arguments, by position | write the guide's arguments in the model's
  order.
as-number error | the {half} turns a tensor of several values into one number | tensors all the way:
  summed-out sites, plates and particles make several values of one | {raised} | {mend} Write loc[k]
  or torch.where(k == 1, a, b) in place of int(k), k.item() or `if k`; for a table with more than
  one dimension, pyro.ops.indexing.Vindex(table)[..., k].
torch-distribution error | the {half} stops {reached} | a distribution of pyro.distributions |
  {raised} | {mend} Use pyro.distributions (import pyro.distributions as dist), whose classes have
  to_event, expand and mask, and call the class: dist.Normal(loc, scale).
anew error | the pair builds a {kind} anew at each call | modules that are made once, before the fit
  | new parameters at the second call{at}: what was learned is thrown away | make it once, outside
  of model and guide (an attribute of the pair, or a variable that they use), and register it there
  with pyro.module("net", net).
new-names error | the pair makes new parameters at each call | the same names at each call | {new}
  at the second one | take what changes (a counter, a time, a random number) out of the name.
replaced error | the pair throws parameter {name!r} away at each call | parameters that are kept |
  another tensor in its place after a call | remove pyro.clear_param_store() and assignments to the
  parameter store from model and guide.
changed error | the pair changes parameter {name!r} itself at each call | parameters that only the
  optimiser changes | other values after a call than before it{at} | remove .data, .fill_(),
  .copy_() and other changes in place from model and guide: a start is given once, pyro.param(name,
  start), and a range by constraint=.
stateful warning | the {half} does not do the same under one seed | the same draws and densities
  from the same arguments and seed | site {site!r} {how} at the next call ({line}) | look for
  counters, iterators, clocks, and generators that are not torch's; pass what changes as an argument
  (for annealing, elbo.Beta), and draw with torch or pyro.sample.
private error | the {half} draws a mini-batch of its own | with pyro.plate(name, {full},
  subsample_size={batch}) as i: | {batch} of the {full} rows of {of}, others at each call, counted
  once each ({line}): the likelihood weighs {by:.3g} times too little | replace randperm and the
  like by that plate, in model and guide, and take x[i] of the data: it scales by N/B.
stuck error | the {half} does not follow the rows of plate {plate!r} | what belongs to the rows that
  the plate drew | {what} has the same {size} rows whichever of {full} are drawn ({line}) | index
  with the plate's own rows: with pyro.plate({plate!r}, ...) as i: take loc[i] or x[i], not
  [:{size}].
coupled warning | the rows of a batch are coupled in the {half} | a density of each row that depends
  on its own data | other data in the second half of the rows change those of the first ({line}) |
  {hint}.
may-leave warning | {key} of {family} may leave its range | {mine}, whatever the parameters are |
  {span} at other values of {of} ({line}) | give the parameter a constraint, pyro.param(name, start,
  constraint=...), or pass it through softplus, exp or sigmoid: {key} must stay in {mine}.
strays warning | the guide may draw values that the model cannot have | {p.family}, over {mine} |
  {span} at other draws and parameters{line} | if its support depends on other sites, {hint}draw a
  fraction of it, pyro.sample("fraction", dist.Uniform(0, 1)), in model and guide and compute the
  site from it (pyro.deterministic), or use support as in the model's distribution: biject_to(that
  support) in the guide; else {advice}.
partly-cut warning | part of the gradient is cut off | a gradient of all that the densities depend
  on | {name}: slope {true:.4g} of this site's log density in the {half} by differences, {ours:.4g}
  by autograd | look for detach(), .data, torch.no_grad(), .item() or torch.tensor(...) on a part of
  the way from {name} to the site{line}.
jacobian error | the density of a computed latent lacks its Jacobian | log_density = minus the log
  Jacobian determinant of latent z by noise u ({of}), {expected:.3f} nats | {found:.3f} nats
  ({line}) | dist.Delta(z, log_density=-transform.log_abs_det_jacobian(u, z)); or draw the latent
  itself, from TransformedDistribution(base, transform), LogNormal and the like, which count it.
not-one-to-one note | latents are computed from auxiliary noise of another size | one to one: as
  many numbers of noise as of latents | {dims} of latents from {wide} of {of} ({line}): they have no
  density, and an ELBO is none | train it against a critic (fit_implicit), or make it one to one (a
  flow), or give the noise a density r given the latents in the model, pyro.sample with its name
  (auxiliary variables, arXiv:1602.05473).
plate-sizes error | model and guide give a plate different sizes | the same rows in both | {p} in
  the model, {q} in the guide: {raised} | give it the same size and subsample_size in both, and take
  the rows that it drew: with pyro.plate(...) as i: loc[i].
unsampled error | a Delta of the guide is drawn from noise that no site draws | noise from
  pyro.sample, whose density counts | another value under another seed ({line}): log q leaves its
  density out | draw the latent itself, pyro.sample(name, dist.Normal(loc, scale)), in place of loc
  + scale * torch.randn(...).
plate-names warning | model and guide call its plates differently | {p} (the model) | {q} (the
  guide) | use one name: weights are only taken apart along plates that both halves name.
scales error | model and guide scale it differently | one scale for log p and log q, {p:g} as in the
  model | {q:g} in the guide | {hint}
undeclared error | a batch dimension that the {half} does not declare | each batch dimension in a
  plate; it is in {plates} | {family} of batch shape {batch}: dimension {dim} of size {size} | with
  pyro.plate('data', {size}): around independent data, or .to_event({event}) for the parts of one
  value. A (N, 1) against a (N,) also makes (N, N).
data-shapes error | data and distribution have different shapes | data of shape {shape}, as the
  distribution | data of shape {data} | squeeze or unsqueeze one of them: (N, 1) and (N,) broadcast
  to (N, N).
density error | the first log density of the {half} that is not finite | finite log densities at the
  start | {bad} of {all} are {first}, {family} at {span} | check its support and scale; use logits
  instead of probabilities, clamp an exp or a log.
out-of-range error | {name} of {family} is out of range | {mine} | {bad} of {all} out of range,
  {span} | {hint}
misfit error | the {half} does not fit plate {plate!r} | size {size} (or 1) at dimension {dim}, or
  no batch dimension there | size {got} at dimension {dim}{at} | give the distribution shape (...,
  {size}) at that dimension, or declare its own dimensions with .to_event(1), or let the plate be of
  size {got}.
twice error | the {half} has two sites called {site!r} | a name of its own for each site (plates
  count: a plate is a site too) | a second {site!r}{at} | rename one; in a loop use an f-string,
  pyro.sample(f"{site}_{{i}}", ...), or a vectorised plate.
plate-twice error | the {half} makes plate {site!r} twice | one plate, entered where it is needed |
  a second {site!r}{at} | make it once, {site} = pyro.plate({site!r}, ...), and write with {site}:
  each time.
both-kinds error | the {half} uses {site!r} both as a {kind} and as another kind of site | different
  names for a parameter and a sample site | {raised} | rename the parameter, for example
  pyro.param("{site}_loc", ...).
devices error | the {half} mixes devices | all tensors on one device | {devices} ({raised}) | move
  the module and the data to one device (module.to(x.device)); make constants from the data
  (x.new_zeros(...)); an autoguide stays on the device it was first called on: make it, or call it
  first, after moving the data.
dtypes error | the {half} mixes floating-point types | one dtype throughout | {dtypes} ({raised}) |
  x.float(), or module.double(); numpy makes float64 where torch makes float32.
wrong-call error | the {half} is called with the wrong arguments | model and guide take the same
  arguments | {raised} | give both one signature.
ragged error | the {half} stops at sequences of different lengths | sequences of one length, and a
  mask of what is there | {raised} | pad them, torch.nn.utils.rnn.pad_sequence(x, batch_first=True),
  pass their lengths, and put what is padded under poutine.mask(mask=times < lengths[:, None]).
index error | the {half} stops at an index out of range | indices from 0 to the size less 1 |
  {raised} | {mend}
stops-at-shapes error | the {half} stops {reached} | shapes that fit each other | {raised} | {mend}
  Networks act on the last axis, and batch dimensions come first.
matrix error | a matrix of the {half} is not positive definite | one that has a Cholesky factor |
  {raised}, in {dtype} | {finer}
stops error | the {half} stops {reached} | the {half} runs to its end | {raised} | {mend}
unreachable error | the guide draws values that the model cannot have | {p.family}, over {mine} |
  {found} | use {advice}.
other-kind error | the guide draws from another kind of set than the model | {p.family}, over {mine}
  | {q.family}, over {theirs} | {hint}
unreached warning | the guide cannot reach all that the model allows | {p.family}, over {mine} |
  {q.family}, over {theirs} | if the posterior may lie outside, use {advice}.
leaves-support warning | the point mass at parameter {name!r} may leave the support | a parameter
  that stays in {mine} | a parameter without constraint | use {advice}.
not-whole warning | the data are not whole numbers | {p.family}, over whole numbers from {low} to
  {high} | {span} | the value is then a loss, not a log density: binarise or round the data for
  nats.
outside error | the data lie outside what the model can make | {p.family}, over {mine} | {span} |
  rescale or clean the data, or choose another likelihood.
no-parameters error | the pair has no parameters | something to learn | neither a pyro.param nor a
  registered module | use pyro.param, or pyro.module("name", net) for a network; a bare
  torch.tensor(..., requires_grad=True) is not seen by Pyro.
cut error | the guide learns nothing | draws that depend on the guide's parameters | no gradient
  reaches {lost} | remove detach(), .data, torch.no_grad() and torch.tensor(...) copies between the
  parameters and the distribution.
fixed note | the guide has nothing to learn | | no parameter in its distributions | nothing to do if
  that is meant.
unused warning | parameters that get no gradient | a gradient for every parameter | none for {lost}
  | remove what is not used (or freeze it with requires_grad_(False)); if it should be used, look
  for detach(), .data or torch.no_grad() on the way.
module error | module {name!r} is used but not registered | pyro.module({name!r}, {name}) in the
  model or guide that uses it | its {number} parameters ({shown}) never reach Pyro and would keep
  their random starting values | add pyro.module({name!r}, {name}), or make it an attribute of the
  pair's module; if it is meant to stay as it is, {name}.requires_grad_(False).
tensor error | {name} asks for a gradient, but is not a parameter | pyro.param(name, start), or an
  nn.Parameter of a registered module | shape {shape}, requires_grad=True, unknown to Pyro: it would
  not be fitted | make it a pyro.param; a constant needs no requires_grad.
two-modules error | two modules are registered as {name!r} | one name for each module |
  pyro.module({name!r}, ...) with different modules; only the first would be fitted | name them
  apart, for example {name}_model and {name}_guide.
two-parameters error | two parameters are called {name!r} | one name for each parameter | shapes
  {shapes}; only the first is made | rename one of them.
cached error | attribute {name!r} is computed from a parameter only once | computed in model or
  guide, at each step | a tensor in a graph ({node}), made when {owner} was, which later steps would
  not update | keep the parameter in __init__ and compute {key!r} where it is used.
rows error | parameters with a row for each datum of a mini-batch | parameters for all data, or an
  amortised guide | parameter {name!r} has shape {shape} on {n} rows, and follows their number | fit
  on all data (batch_size=None), or compute them from the data: make_guide(..., amortized=True).
biased error | the bound of a mini-batch is biased | the mean bound of two halves of the data,
  scaled to all, equals the bound on all | {halves:.2f} ± {halves_se:.2f} nats against {full:.2f} ±
  {full_se:.2f} on {n} rows: z = {z:.1f} | {hint}, or fit on all data.
arguments error | the {half} does not take these arguments | {half}{signature} | called with
  ({given}): {why} | model and guide get the same arguments, in the same order: give both one
  signature (with defaults for what one of them does not use).
particles warning | the draws of this pair are made one by one | a pair that broadcasts under a
  plate of particles, or passes torch.vmap | {raised} | keep values on tensors (torch.where for an
  if, no .item(), int() or float() of a latent), or it will be slow with several particles.
closed-form error | the closed-form mean-field KL does not apply | every prior depends only on
  latents that the guide draws before | {why} | use elbo.Trace(), or draw the guide's sites in the
  model's order.
summable note | the guide's distribution has no reparameterisation | | {family} | mark it
  infer={{'enumerate': 'parallel'}}, or leave it out of the guide, to sum it out exactly.
score note | the guide's distribution has no reparameterisation | | {family} | its gradient has a
  high variance: use several particles (they make a baseline), or a distribution with rsample.
seeded warning | the guide draws the same values under every seed | fresh noise at each step | equal
  draws under two seeds | remove pyro.set_rng_seed or torch.manual_seed from model and guide.
"""


TEXTS: dict[str, list[Any]] = {}
for _entry in re.split(r"\n(?=\w)", _TABLE.strip()):
    _head, *_texts = _entry.split("|")
    _name, _level = _head.split()
    TEXTS[_name] = [_level, *(" ".join(text.split()) for text in _texts)]
