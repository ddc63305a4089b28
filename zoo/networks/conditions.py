"""Conditions y: one class label, or a vector of binary and real attributes, some unknown."""

from __future__ import annotations

import torch
from torch import Tensor


class Condition:
    """A label or attributes that stand beside a row, as numbers that a network reads.

    A label 0 .. classes - 1 becomes one-hot, and −1, unknown, zeros. Attributes become two numbers
    each: the value, 0 where it is NaN (unknown), and whether it is known.

    Args:
        classes: how many labels, where there are no attributes.
        binary: attributes that are 0 or 1, the first columns; `real`: the others.

    Raises:
        ValueError: neither classes nor attributes.
    """

    def __init__(self, classes: int = 0, binary: int = 0, real: int = 0):
        if binary + real:
            classes = 0
        if min(classes, binary, real) < 0 or classes + binary + real == 0:
            raise ValueError(
                "classes, binary, real: expected a number of classes, or of attributes, got "
                f"{classes}, {binary} and {real}."
            )
        self.classes, self.binary, self.real = classes, binary, real

    @property
    def attributes(self) -> int:
        """A, the number of attributes; 0 for labels."""
        return self.binary + self.real

    @property
    def width(self) -> int:
        """The count of numbers that a network reads."""
        return self.classes or 2 * self.attributes

    def features(self, y: Tensor, like: Tensor) -> Tensor:
        """Numbers for a network: labels (...) or attributes (..., A) -> (..., width)."""
        if self.classes:
            labels = torch.arange(self.classes, device=y.device)
            return (y[..., None] == labels).to(like.dtype)
        known = ~y.isnan()
        return torch.cat([y.nan_to_num(0.0), known.to(y.dtype)], -1).to(like.dtype)

    def unknown(self, n: int, device: torch.device | None = None) -> Tensor:
        """A condition of `n` rows that says nothing."""
        if self.classes:
            return torch.full((n,), -1, device=device)
        return torch.full((n, self.attributes), torch.nan, device=device)

    def hidden(self, y: Tensor, hide: Tensor) -> Tensor:
        """The condition with the rows where `hide` is true made unknown: hide (...) bool."""
        if self.classes:
            return torch.where(hide, -1, y)
        return torch.where(hide[..., None], torch.nan, y)

    def check(self, y: Tensor, batch: tuple[int, ...]) -> None:
        """Raise ValueError unless y is a label, or A attributes, for each row; reads no values."""
        batch = tuple(batch)
        if self.classes and (y.shape != batch or y.is_floating_point()):
            raise ValueError(
                f"y: expected {batch} integer labels, one for each row of x, got {y.dtype} of "
                f"shape {tuple(y.shape)}."
            )
        if not self.classes and (y.shape != (*batch, self.attributes) or y.dtype == torch.bool
                                 or not y.is_floating_point()):  # fmt: skip
            raise ValueError(
                f"y: expected floats of shape {(*batch, self.attributes)}, {self.attributes} "
                f"attributes for each row of x, NaN where unknown, got {y.dtype} of shape "
                f"{tuple(y.shape)}."
            )

    def validate(self, y: Tensor) -> None:
        """Raise ValueError for labels out of range, or attributes that are neither 0 nor 1."""
        if torch.compiler.is_exporting():  # a graph has no values to look at
            return
        if self.classes:
            if ((y < -1) | (y >= self.classes)).any():
                low, high = int(y.min()), int(y.max())
                raise ValueError(
                    f"y: expected labels 0 to {self.classes - 1}, got {low}"
                    f"{f' to {high}' if high > low else ''}. Build the pair with "
                    f"classes={high + 1}, or renumber the labels from 0."
                )
            return
        given = y[..., : self.binary]
        wrong = ~(given.isnan() | (given == 0) | (given == 1))
        if wrong.any():
            raise ValueError(
                f"y: expected 0, 1 or NaN (unknown) in the first {self.binary} attributes, got "
                f"{float(given[wrong][0]):g}. Declare real attributes with real=."
            )
        if y.isinf().any():
            raise ValueError("y: an attribute is infinite. Leave what is unknown NaN.")
