"""Checks of sizes and shapes, and what a pair of network outputs means."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def mean_and_scale(h: Tensor) -> tuple[Tensor, Tensor]:
    """Split (..., 2L) into a mean and a positive standard deviation, both (..., L).

    The second half is the logarithm of the standard deviation, kept in [-10, 10]: beyond that a
    float32 density overflows, and an untrained encoder would stop a run with a NaN.
    """
    mean, log_scale = h.chunk(2, dim=-1)
    return mean, torch.exp(log_scale.clamp(-10.0, 10.0))


def check_rows(x: Tensor, data_dim: int) -> None:
    """Raise ValueError unless x holds rows (..., B, D) with D = `data_dim`. Reads no values."""
    if x.ndim < 2 or x.shape[-1] != data_dim:
        raise ValueError(
            f"x: expected rows of data_dim = {data_dim} values, (B, {data_dim}), got shape "
            f"{tuple(x.shape)}. Flatten images with x.flatten(1), or change data_dim."
        )


def check_sizes(**sizes: int | Sequence[int]) -> None:
    """Raise ValueError unless each named size, or each width of a named sequence, is at least 1."""
    for name, size in sizes.items():
        for width in [size] if isinstance(size, int) else size:
            if width < 1:
                raise ValueError(f"{name}: expected sizes of at least 1, got {size}.")


def check_image_shape(
    networks: str, image_shape: Sequence[int] | None, data_dim: int
) -> tuple[int, int, int]:
    """Return the shape of images for such networks; raise ValueError unless it gives D values."""
    if networks not in ("conv", "residual"):
        raise ValueError(f"networks: expected mlp, conv or residual, got {networks!r}.")
    if image_shape is None or len(image_shape) != 3 or math.prod(image_shape) != data_dim:
        raise ValueError(
            f"image_shape: convolutional networks need (channels, height, width) with "
            f"{data_dim} values in all, got {image_shape}. A set from zoo.data has one."
        )
    c, h, w = image_shape
    return c, h, w
