"""A card's model for a data set: made, checked against it, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from inference.pairs.options import device_of
from inference.randomness import forked
from inference.training import checkpoint
from inference.training.batches import Batches
from inference.training.run import Run, new_run
from zoo.cards import Card
from zoo.data import DataSet

from .options import estimator, takes


def build(card: Card, options: Mapping[str, Any], data: DataSet, seed: int) -> Any:
    """Build the untrained model of a card for a data set, its weights drawn from the seed."""
    cls = card.load()
    first, *others = takes(cls)
    known = {"image_shape": data.image_shape, "seed": seed}
    options = {**{k: v for k, v in known.items() if k in others}, **options}
    with forked(seed):
        return cls(data.train if first == "data" else data.data_dim, **options)


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


def arguments_of(model: Any, data: DataSet, split: str) -> tuple[Tensor, ...]:
    """(x,) or (x, y) of a split, as the pair takes them."""
    x, y = getattr(data, split), getattr(data, f"{split}_labels")
    return (x, y) if "y" in takes(model.model) else (x,)


def restored(folder: Any, model: Any, data: DataSet, settings: Mapping[str, Any], seed: int) -> Run:
    """Read back the run in a folder, ready to be judged or to go on."""
    args = arguments_of(model, data, "train")
    device = device_of(settings.get("device", "auto"))
    batches = Batches(tuple(a.to(device) for a in args), settings["batch_size"], seed)
    return checkpoint.load(
        folder,
        lambda: new_run(
            model.model, model.guide, batches.example(), batches.size,
            estimator(settings.get("elbo", "trace")), device, seed,
        ),
    )  # fmt: skip
