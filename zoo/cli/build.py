"""A card's model for a data set: made, and checked against it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from inference.randomness import forked
from zoo.cards import Card
from zoo.data import DataSet

from .options import takes

VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def build(card: Card, options: Mapping[str, Any], data: DataSet, seed: int) -> Any:
    """Build the untrained model of a card for a data set, its weights drawn from the seed."""
    make = card.load()
    known = {"data_dim": data.data_dim, "data": data.train, "seed": seed}
    known["image_shape"] = data.image_shape
    parameters = signature(make).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in VARIADIC]
    if [n for n in required[1:] if n not in known]:
        raise ValueError(
            f"{card.path}: argument {required[1]!r} has no default. Give it one: it is then an "
            "option of the command."
        )
    first = [known.get(n, data.data_dim) for n in required[:1]]  # D, whatever it is called
    others = {k: v for k, v in known.items() if k in takes(make) and k not in required[:1]}
    with forked(seed):
        return make(*first, **{**others, **options})


def validate(model: Any, data: DataSet) -> None:
    """Raise ValueError where a split does not suit the model, naming the split."""
    likelihood = getattr(model, "likelihood", None)
    check = getattr(model, "validate", None) or getattr(likelihood, "validate", None)
    if check is None:
        return
    for split in ("train", "valid", "test"):
        x, y = getattr(data, split), getattr(data, f"{split}_labels")
        if split == "train":  # as a step will see it
            with forked():
                x = data.transform(x)
        args = (x, y) if "y" in takes(check) else (x,)
        if "y" in takes(check) and y is None:
            raise ValueError(f"{data.name}: the model needs labels y, and this set has none.")
        try:
            check(*args)
        except ValueError as error:
            raise ValueError(f"{data.name} ({split}): {error}") from error


def build_like(plan: Any, data: DataSet, params: Mapping[str, Tensor] | None) -> Any:
    """Build the model of a plan that was read from a file.

    Args:
        plan: of the run; `params`: the tensors that the model is to have, of which it may have as
            many numbers. Where it would be larger, it is not built.

    Raises:
        ValueError: the options make no model, or a larger one.
    """
    try:
        if params is not None:
            with suppress(NotImplementedError, RuntimeError, TypeError), torch.device("meta"):
                made = build(plan.card, plan.options, data, 0)
                own = made.parameters() if hasattr(made, "parameters") else ()
                numbers = sum(p.numel() for p in own)
                if numbers > 2 * sum(p.numel() for p in params.values()) + 1_000:
                    raise ValueError(f"they make a model of {numbers:,} parameters")
        return build(plan.card, plan.options, data, plan.seed)
    except (
        ArithmeticError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            f"config.json: field 'options': expected those of the {plan.card.name} that was "
            f"fitted, got others: {error}. Restore the file, or fit again."
        ) from error
