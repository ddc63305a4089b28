"""A model and a guide as a pure function of their parameters.

Pyro keeps parameters in modules and in one global store. A fit needs them in its own hands: to
differentiate, to compile, to run many fits at once, and so that two fits never touch each other.
`Pair` finds them by running the pair once in an empty store; `Pair.bind` puts given ones in place.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger, _bound_partial
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from ..networks.mlp import Dropout
from ..randomness import ALONE
from ..weights import plate_nesting, way_of
from .arguments import rows_of, take_rows
from .options import AVERAGE

STORE = pyro.get_param_store()
LIBRARIES = ("torch", "pyro", "numpy", "builtins", "functools", "inference")
FEW = 64  # rows of a large data set at which a pair is looked at first
DEPTH, MANY = 4, 5_000  # how far references are followed, and how many of them


class Pair:
    """A model and a guide, with the tensors that a fit may change.

    Args:
        model, guide: callables with one signature; modules, bound methods, functions, autoguides.
        args: example arguments. The pair is run on them once, under a forked random state, which
            creates lazily built guides and `pyro.param`s.
        present: start from what Pyro's parameter store holds now, as after `pyro.infer.SVI`; else
            the pair starts as if the store were empty.

    Attributes:
        params: name -> unconstrained leaf tensor, as the pair starts.
        buffers: name -> tensor that the pair reads and may change, but that is not learned.
        nesting: the number of tensor dimensions that the pair's plates use.
        full_sizes: plate name -> size to scale to, where a plate is told only the batch size.
        way: how draws are made together ("plate", "vmap", "loop"), once `find_way` has looked.
        branches: the guide averages over a discrete latent that others of its draws depend on.
    """

    way: str | None = None
    branches = False

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: dict | None = None,
        *,
        present: bool = False,
    ):
        self.model, self.guide = model, guide
        self.full_sizes: dict[str, int] = {}
        self._slots: dict[str, list[tuple[dict, str]]] = {}  # our name -> places in modules
        self._stored: dict[str, tuple[str, constraints.Constraint]] = {}  # store name -> ours
        self.params: dict[str, Tensor] = {}
        self.buffers: dict[str, Tensor] = {}

        store: Any = {"params": {}, "constraints": {}}
        with ALONE, STORE.scope(store), _Registered() as registered:
            self.nesting = plate_nesting(model, guide, *args, **(kwargs or {}))
        self._collect(store, registered.modules)
        self._averages: dict[str, Tensor] = {}
        for site in dict.fromkeys(registered.averaged):
            like = next(iter(self.params.values()), torch.zeros(()))
            self._averages[site] = self.buffers[f"baseline.{site}"] = like.new_zeros(())
            self._slots[f"baseline.{site}"] = [(self._averages, site)]
        for name, tensor in STORE.get_state()["params"].items() if present else ():
            ours = self._stored.get(name, ("",))[0]
            if ours in self.params and self.params[ours].shape == tensor.shape:
                self.params[ours] = tensor.detach().clone()

    def _collect(self, store: Mapping[str, Any], registered: Mapping[str, nn.Module]) -> None:
        """Find every tensor of the pair, its name and its places, and copy its value."""
        of_model, of_guide = modules_of(self.model), modules_of(self.guide)
        one = set(of_model) == set(of_guide)  # both are methods of one module: no prefix
        seen: dict[int, str] = {}
        for module in dict.fromkeys([*of_model, *of_guide]):
            half = "model" if module in of_model else "guide"
            named = getattr(module, "_pyro_name", "")  # `AutoNormal`, as in Pyro's store
            self._add_module(module, "" if one else named or half, seen)
        for name, tensor in store["params"].items():
            module, _, local = name.partition("$$$")
            if local and id(tensor) not in seen:  # pyro.module inside a plain function
                reached = referred(self.model, self.guide) if module not in registered else {}
                modules = [m for m in reached.values() if isinstance(m, nn.Module)]
                holds = (m for m in modules if dict(m.named_parameters()).get(local) is tensor)
                owner = registered.get(module, next(holds, None))
                if owner is None:
                    raise ValueError(
                        f"parameter {name!r}: the module that owns it was not found. Call "
                        "pyro.module outside of poutine.block, or make the module an attribute of "
                        "the pair's own."
                    )
                self._add_module(owner, module, seen)
                tensor = owner.get_parameter(local)  # the store keeps a contiguous copy of some
            if id(tensor) not in seen:  # a bare pyro.param
                self.params[name] = tensor
                seen[id(tensor)] = name
            constraint = store["constraints"].get(name, constraints.real)
            self._stored[name] = seen[id(tensor)], constraint
        flat = torch.contiguous_format
        self.params = {k: v.detach().clone(memory_format=flat) for k, v in self.params.items()}
        self.buffers = {k: v.detach().clone() for k, v in self.buffers.items()}

    def _add_module(self, module: nn.Module, prefix: str, seen: dict[int, str]) -> None:
        """Add a module's tensors; one that is tied has several places under its first name."""
        for path, sub in module.named_modules():
            for table in (sub._parameters, sub._buffers):
                for key, tensor in table.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in seen:
                        name = seen[id(tensor)] = ".".join(p for p in (prefix, path, key) if p)
                        learned = table is sub._parameters and tensor.requires_grad
                        (self.params if learned else self.buffers)[name] = tensor
                        self._slots[name] = []
                    places = self._slots[seen[id(tensor)]]
                    if not any(t is table and k == key for t, k in places):
                        places.append((table, key))

    @contextmanager
    def bind(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> Iterator[None]:
        """Run what is inside the block with these tensors as the pair's parameters and buffers."""
        params = {k: _learnable(p) for k, p in params.items()}
        tensors = {**params, **buffers}
        with ALONE:
            before = [(t, k, t[k]) for places in self._slots.values() for t, k in places]
            state: Any = {
                "params": {n: tensors[ours] for n, (ours, _) in self._stored.items()},
                "constraints": {n: c for n, (_, c) in self._stored.items()},
            }
            try:
                for name, places in self._slots.items():
                    for table, key in places:
                        table[key] = tensors[name]
                means = _Averages(self._averages) if self._averages else nullcontext()
                with STORE.scope(state), means:
                    yield
                for name in self.buffers:  # may be assigned instead of changed in place
                    table, key = self._slots.get(name, [(tensors, name)])[0]
                    if table[key] is not tensors[name]:
                        with torch.no_grad():
                            tensors[name].copy_(table[key])
            finally:
                for table, key, tensor in before:
                    table[key] = tensor

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let hidden units drop out (`inference.networks.Dropout`) inside the block."""
        found = [
            part for half in (self.model, self.guide) for module in modules_of(half)
            for part in module.modules() if isinstance(part, Dropout)
        ]  # fmt: skip
        before = [part.training for part in found]
        try:
            for part in found:
                part.training = True
            yield
        finally:
            for part, mode in zip(found, before):
                part.training = mode

    def find_way(
        self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], args: tuple, kwargs: dict
    ) -> str:
        """Return how draws are made together; the first time, by a few runs of the pair.

        On its first rows, or else on all. A pair that neither broadcasts nor passes `torch.vmap` is
        warned of, with the line that keeps it from it.
        """
        if self.way is None:
            few = take_rows(args, slice(FEW)), dict.fromkeys(kwargs, FEW)
            tries = [few, (args, kwargs)] if rows_of(args) > FEW else [(args, kwargs)]
            for rows, told in tries:
                with self.bind(params, {k: b.clone() for k, b in buffers.items()}):
                    self.way, why = way_of(
                        self.model, self.guide, *rows, nesting=self.nesting, **told
                    )
                if self.way == "plate":
                    break
            if self.way == "loop":
                warnings.warn(_slow(why), stacklevel=3)
        return self.way  # type: ignore[return-value]

    def constrained(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map parameters to their own support (a scale is positive, a simplex sums to one)."""
        support = {k: transform_to(constraint) for k, constraint in self._stored.values()}
        values = {k: v.detach() for k, v in params.items()}
        return {
            k.removesuffix("_unconstrained"): support[k](v) if k in support else v
            for k, v in values.items()
        }

    def write_back(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        """Copy values into the modules themselves, for code that uses them outside a fit."""
        with torch.no_grad():
            for name, tensor in {**params, **buffers}.items():
                for table, key in self._slots.get(name, ()):
                    table[key].data = tensor.detach().clone()


def _slow(error: Exception | None) -> str:
    """Say why draws are made one by one."""
    ours = str(Path(__file__).parents[1]), "<", str(Path(torch.__file__).parent)
    own = [
        f"{Path(f.filename).name}:{f.lineno} ({f.line})"
        for f in traceback.extract_tb(error.__traceback__ if error else None)
        if not f.filename.startswith(ours) and "/pyro/" not in f.filename
    ]
    what = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]
    return (
        f"the draws of this pair are made one by one, which is slow: it neither broadcasts under a "
        f"plate of particles nor passes torch.vmap{f', at {own[-1]}' if own else ''}: {what}. Keep "
        "values on tensors: torch.where for an if, no .item(), int() or float() of a latent."
    )


def modules_of(function: Any) -> list[nn.Module]:
    """List the modules that a callable is, is bound to, or was partially applied to."""
    if isinstance(function, nn.Module):
        return [function]
    if isinstance(function, functools.partial):  # as is what Pyro's handlers make of a function
        inner = function.func, *function.args, *function.keywords.values()
        return list(dict.fromkeys(m for f in inner for m in modules_of(f)))
    if isinstance(owner := getattr(function, "__self__", None), nn.Module):
        return [owner]
    wrapped = getattr(function, "__wrapped__", None) or getattr(function, "fn", None)
    return modules_of(wrapped) if callable(wrapped) else []


def own_copy(model: Callable, guide: Callable) -> tuple[Callable, Callable]:
    """Copy a model and a guide, so that they share modules with each other, not the originals.

    Plain functions have no parameters of their own and are returned as they are; so is a pair of
    which one half is a plain function whose code uses a module of the other, which a copy would
    part.
    """
    mine, theirs = modules_of(model), modules_of(guide)
    for half, own, others in ((model, mine, theirs), (guide, theirs, mine)):
        apart = {part for module in others for part in module.modules()}
        used = [] if own else [r for r in referred(half).values() if isinstance(r, nn.Module)]
        if any(part in apart for module in used for part in module.modules()):
            return model, guide
    memo: dict = {}  # one, so that what they share stays shared
    return _copy(model, memo), _copy(guide, memo)


class _Registered(Messenger):
    """Notes the module that `pyro.module` was called with, by the name it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: dict[str, nn.Module] = {}
        self.averaged: list[str] = []  # sites whose baseline is the running mean of their signal

    def _pyro_sample(self, msg: Any) -> None:
        if _baseline(msg).get("use_decaying_avg_baseline"):
            self.averaged.append(msg["name"])

    def _pyro_param(self, msg: Any) -> None:
        name, divider, _ = msg["name"].partition("$$$")
        if not divider or name in self.modules:
            return
        frame = sys._getframe()  # the message names the parameter, its caller holds the module
        while frame.f_back is not None and frame.f_code is not pyro.module.__code__:
            frame = frame.f_back
        if "nn_module" in frame.f_locals:
            self.modules[name] = frame.f_locals["nn_module"]


class _Averages(Messenger):
    """Hands the running means of baselines to the sites that ask for one."""

    def __init__(self, means: Mapping[str, Tensor]):
        super().__init__()
        self.means = means

    def _pyro_sample(self, msg: Any) -> None:
        if _baseline(msg).get("use_decaying_avg_baseline") and msg["name"] in self.means:
            own = {**msg["infer"]["baseline"], AVERAGE: self.means[msg["name"]]}
            msg["infer"] = {**msg["infer"], "baseline": own}


def _baseline(msg: Any) -> Mapping[str, Any]:
    return (msg["infer"] or {}).get("baseline") or {}


def _copy(function: Any, memo: dict) -> Any:
    """Copy modules deeply, and give Pyro's autoguides back the model that copying takes."""
    if inspect.ismethod(function):
        return getattr(_copy(function.__self__, memo), function.__name__)
    if isinstance(function, _bound_partial):  # what Pyro's handlers make of a function
        return _bound_partial(_copy(function.func, memo))
    if isinstance(function, functools.partial):
        kwargs = {k: _copy(v, memo) for k, v in function.keywords.items()}
        args = (_copy(a, memo) for a in function.args)
        return functools.partial(_copy(function.func, memo), *args, **kwargs)
    if not isinstance(function, nn.Module):
        return function
    guides = [m for m in function.modules() if isinstance(m, AutoGuide)]
    kept = [(m.__dict__["_model"], m.__dict__["master"]) for m in guides]
    for m in guides:  # read-only, and its tensors may be in a graph, which cannot be copied
        memo[id(m.prototype_trace)] = m.prototype_trace
    try:
        twin = copy.deepcopy(function, memo)
    finally:
        for m, (model, master) in zip(guides, kept):
            m.__dict__.update(_model=model, master=master)
    for m, (model, _) in zip((m for m in twin.modules() if isinstance(m, AutoGuide)), kept):
        m.__dict__["_model"] = model and tuple(_copy(f, memo) for f in model)
    return twin


def _learnable(p: Tensor) -> Tensor:
    """Return a tensor that needs a gradient: Pyro warns of one that needs none as frozen."""
    if p.requires_grad or torch._C._functorch.is_functorch_wrapped_tensor(p):
        return p
    return p.detach().requires_grad_()


def referred(*functions: Any) -> dict[str, nn.Module | Tensor]:
    """Return name -> every module and tensor that the functions' code can reach.

    Follows closures, globals that the code names, attributes of the owner of a method, containers
    and the users' own helper functions.
    """
    found: dict[str, nn.Module | Tensor] = {}
    seen: set[int] = set()

    def visit(obj: Any, name: str, depth: int) -> None:
        if depth < 0 or id(obj) in seen or len(seen) > MANY:
            return
        if isinstance(obj, (types.ModuleType, type, str, int, float)):
            return
        seen.add(id(obj))
        if isinstance(obj, (nn.Module, Tensor)):
            found.setdefault(name, obj)
            if isinstance(obj, nn.Module) and not _of_a_library(type(obj)):
                visit(type(obj).forward, name, depth - 1)
        elif isinstance(obj, functools.partial):  # as is what Pyro's handlers make of a function
            for part in (obj.func, *obj.args, *obj.keywords.values()):
                visit(part, name, depth)
        elif isinstance(obj, (dict, list, tuple, set)):
            for key, value in obj.items() if isinstance(obj, dict) else enumerate(obj):
                visit(value, f"{name}[{key!r}]", depth - 1)
        elif inspect.ismethod(obj):
            visit(obj.__self__, _name(obj.__self__), depth)
            visit(obj.__func__, name, depth)
        elif inspect.isfunction(obj):
            visit(getattr(obj, "__wrapped__", ""), name, depth)
            variables = {} if _of_a_library(obj) else _variables(obj)
            for key, value in variables.items():
                visit(value, key, depth - 1)
        elif hasattr(obj, "__dict__") and not _of_a_library(type(obj)):
            for key, value in vars(obj).items():
                visit(value, f"{name}.{key}", depth - 1)

    for function in functions:
        visit(function, _name(function), DEPTH)
    return found


def _variables(function: Any) -> dict[str, Any]:
    """Return the globals and closure variables that a function's code names."""
    try:
        found = inspect.getclosurevars(function)
    except ValueError:  # a variable of the closure has no value yet
        return {}
    return {**found.globals, **found.nonlocals}


def _name(obj: Any) -> str:
    return getattr(obj, "__name__", None) or type(obj).__name__


def _of_a_library(obj: Any) -> bool:
    return (getattr(obj, "__module__", None) or "").partition(".")[0] in LIBRARIES
