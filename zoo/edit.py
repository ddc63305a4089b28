"""Moving through a latent space: interpolation, traversal, attribute vectors, arithmetic, grids.

For any pair with `encode`, x (B, D) -> z (B, L), and `decode`, z (..., L) -> x (..., D): for
autoencoders of every kind. Nothing here is learned and no parameter gets a gradient.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class EncoderDecoder(Protocol):
    """The methods that editing needs of a pair."""

    def encode(self, x: Tensor) -> Tensor:
        """Latent means, (B, D) -> (B, L)."""

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of x given z: (..., L) -> (..., D)."""


@torch.no_grad()
def interpolate(
    pair: EncoderDecoder, x0: Tensor, x1: Tensor, steps: int = 8, path: str = "linear"
) -> Tensor:
    """Decode points on the way from z_0 = encode(x0) to z_1 = encode(x1).

        linear:     z_t = (1 - t) z_0 + t z_1
        spherical:  z_t = (sin((1 - t) ω) z_0 + sin(t ω) z_1) / sin ω,  ω the angle between them

    Draws of N(0, I) in many dimensions lie near a sphere of radius √L. The spherical path stays
    near it; the linear one cuts through the middle, where the decoder saw few draws.

    Args:
        x0, x1: the ends, (B, D).
        steps: points on the path, both ends included.
        path: `"linear"` or `"spherical"`.

    Returns:
        (steps, B, D).

    Raises:
        ValueError: fewer than two steps, ends of different shape, an unknown path.

    Source: Shoemake 1985, "Animating rotation with quaternion curves"; White 2016
    (arXiv:1609.04468).
    """
    if steps < 2:
        raise ValueError(f"steps: expected at least 2, the ends, got {steps}.")
    if x0.shape != x1.shape:
        raise ValueError(f"x1: expected the shape of x0, {tuple(x0.shape)}, got {tuple(x1.shape)}.")
    if path not in _PATHS:
        raise ValueError(f"path: expected one of {list(_PATHS)}, got {path!r}.")
    z0, z1 = pair.encode(x0), pair.encode(x1)
    t = torch.linspace(0, 1, steps, dtype=z0.dtype, device=z0.device)[:, None, None]
    return pair.decode(_PATHS[path](z0, z1, t))


def _linear(z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
    return (1 - t) * z0 + t * z1


def _spherical(z0: Tensor, z1: Tensor, t: Tensor) -> Tensor:
    cosine = nn.functional.cosine_similarity(z0, z1, dim=-1, eps=0.0).clamp(-1, 1)[..., None]
    angle = torch.acos(cosine)
    sine = torch.sin(angle)
    flat = ~(sine > torch.finfo(sine.dtype).eps ** 0.5)  # parallel or zero: no plane to turn in
    sine = torch.where(flat, 1.0, sine)
    turned = (torch.sin((1 - t) * angle) * z0 + torch.sin(t * angle) * z1) / sine
    return torch.where(flat, _linear(z0, z1, t), turned)


_PATHS = {"linear": _linear, "spherical": _spherical}


@torch.no_grad()
def attribute_vector(pair: EncoderDecoder, x: Tensor, has: Tensor) -> Tensor:
    """Return the mean latent of data that have an attribute, minus that of data that have not.

    Args:
        x: data, (N, D).
        has: bool, (N,).

    Returns:
        (L,).

    Raises:
        ValueError: `has` is not one bool per row, or is the same for all.

    Source: Larsen et al. 2016 (arXiv:1512.09300, section 4); White 2016 (arXiv:1609.04468).
    """
    if has.dtype != torch.bool or has.shape != x.shape[:1]:
        raise ValueError(
            f"has: expected {len(x)} bools, one for each row of x, got {has.dtype} of shape "
            f"{tuple(has.shape)}. Compare labels with a value, such as labels == 7."
        )
    if has.all() or not has.any():
        raise ValueError(
            f"has: expected rows with the attribute and rows without, got {int(has.sum())} of "
            f"{len(has)} with it."
        )
    z = pair.encode(x)
    return z[has].mean(0) - z[~has].mean(0)


@torch.no_grad()
def apply_attribute(
    pair: EncoderDecoder, x: Tensor, vector: Tensor, strength: float | Tensor = 1.0
) -> Tensor:
    """x with more of an attribute (or less): decode(encode(x) + strength · vector).

    Args:
        x: data, (B, D).
        vector: from `attribute_vector`, (L,).
        strength: a number, or several, (S,); 0 reconstructs.

    Returns:
        (B, D), or (S, B, D) for several strengths.

    Raises:
        ValueError: the vector is not as wide as the latent.
    """
    z = pair.encode(x)
    if vector.shape != z.shape[-1:]:
        raise ValueError(
            f"vector: expected shape ({z.shape[-1]},), the width of the latent, got "
            f"{tuple(vector.shape)}."
        )
    strength = torch.as_tensor(strength, dtype=z.dtype, device=z.device)
    return pair.decode(z + strength[..., None, None] * vector)


@torch.no_grad()
def latent_grid(pair: EncoderDecoder, steps: int = 16) -> Tensor:
    """Decode a square grid in a 2-D latent space, equal prior mass around each point.

    The coordinates are Φ⁻¹((i + ½) / steps), so that the picture shows what the prior draws.

    Args:
        steps: points along each axis.

    Returns:
        (steps, steps, D): the second latent falls along the first axis, the first rises along the
        second, as in a plot.

    Raises:
        ValueError: the latent is not two-dimensional.

    Source: Kingma & Welling 2014 (arXiv:1312.6114, figure 4).
    """
    width = getattr(pair, "latent_dim", 2)
    if width != 2:
        raise ValueError(f"latent_grid: expected a pair with latent_dim=2, got {width}.")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}.")
    like = next(iter(getattr(pair, "parameters", list)()), torch.zeros(()))
    p = (torch.arange(steps, dtype=like.dtype, device=like.device) + 0.5) / steps
    axis = torch.special.ndtri(p)
    second, first = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    return pair.decode(torch.stack([first, second], -1))


@torch.no_grad()
def traverse(pair: EncoderDecoder, x: Tensor, dims: int = 6, steps: int = 9) -> Tensor:
    """Decode the code of one datum with one coordinate at a time moved through its usual range.

    The coordinates are those whose codes vary most over `x`, moved from the 2 % to the 98 %
    quantile; the others stay at the code of the first row.

    Args:
        x: data, (N, D), N >= 2.
        dims: how many coordinates; `steps`: points along each.

    Returns:
        (dims, steps, D), fewer than `dims` where the latent has fewer.

    Raises:
        ValueError: fewer than two rows or steps, or no coordinates.

    Source: Higgins et al. 2017, "beta-VAE" (ICLR, figure 1).
    """
    if len(x) < 2 or steps < 2 or dims < 1:
        raise ValueError(
            f"x, dims, steps: expected at least 2 rows, 1 coordinate and 2 steps, got {len(x)}, "
            f"{dims} and {steps}."
        )
    codes = pair.encode(x)
    chosen = codes.var(0).argsort(descending=True)[:dims]
    ends = codes[:, chosen].quantile(codes.new_tensor([0.02, 0.98]), dim=0)  # (2, dims)
    t = torch.linspace(0, 1, steps, dtype=codes.dtype, device=codes.device)[:, None]
    z = codes[0].repeat(len(chosen), steps, 1)
    for row, d in enumerate(chosen.tolist()):
        z[row, :, d] = ((1 - t) * ends[0] + t * ends[1])[:, row]
    return pair.decode(z)


@torch.no_grad()
def arithmetic(pair: EncoderDecoder, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return decode(z(a) − z(b) + z(c)): "a is to b as what is to c", rows (B, D) each -> (B, D).

    Raises:
        ValueError: the three have different shapes.

    Source: Radford et al. 2016 (arXiv:1511.06434, section 6.3.2).
    """
    if not a.shape == b.shape == c.shape:
        got = [tuple(x.shape) for x in (a, b, c)]
        raise ValueError(f"a, b, c: expected rows of one shape, got {got}.")
    return pair.decode(pair.encode(a) - pair.encode(b) + pair.encode(c))


class WithCondition:
    """A conditional pair as one that encodes and decodes under a condition that stays.

    Args:
        pair: with `encode(x, y)` and `decode(z, y)`; one without y in either is called without.
        y: one label, or attributes (A,), for everything.
    """

    def __init__(self, pair: Any, y: Tensor | int):
        self.pair, self.y = pair, torch.as_tensor(y)

    def encode(self, x: Tensor) -> Tensor:
        """Latent means, (B, D) -> (B, L)."""
        return self._call(self.pair.encode, x)

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of x given z and the condition: (..., L) -> (..., D)."""
        return self._call(self.pair.decode, z)

    def _call(self, method: Any, v: Tensor) -> Tensor:
        if "y" not in inspect.signature(method).parameters:
            return method(v)
        return method(v, self.y.to(v.device).expand(*v.shape[:-1], *self.y.shape))
