import math
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo.edit import apply_attribute, attribute_vector, interpolate, latent_grid
from zoo.vae import VAE


class Linear(nn.Module):
    """encode(x) = x / 2, decode(z) = 2 z: what happens in the latent space can be read off."""

    def encode(self, x):
        return x / 2

    def decode(self, z):
        return 2 * z


def rotation(degrees):
    a = math.radians(degrees)
    return [math.cos(a), math.sin(a)]


def test_linear_path():
    x0, x1 = torch.randn(3, 4), torch.randn(3, 4)
    path = interpolate(Linear(), x0, x1, 5)
    assert path.shape == (5, 3, 4)
    torch.testing.assert_close(path, torch.stack([x0 + t / 4 * (x1 - x0) for t in range(5)]))


def test_spherical_path_turns_at_constant_speed_on_the_sphere():
    x0 = torch.tensor([rotation(10), rotation(0)], dtype=torch.float64)
    x1 = torch.tensor([rotation(100), rotation(-45)], dtype=torch.float64)
    path = interpolate(Linear(), x0, x1, 4, path="spherical")
    expected = [[rotation(10 + 30 * i), rotation(-15 * i)] for i in range(4)]
    torch.testing.assert_close(path, torch.tensor(expected, dtype=torch.float64))


def test_spherical_path_keeps_the_norm_of_draws_from_the_prior():
    z0, z1 = torch.randn(2, 1, 1000, dtype=torch.float64)
    z1 *= z0.norm() / z1.norm()
    norms = interpolate(Linear(), z0, z1, 9, path="spherical").norm(dim=-1)
    torch.testing.assert_close(norms, z0.norm().expand_as(norms))


def test_spherical_path_without_a_plane_to_turn_in_is_linear():
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    for x0, x1 in [(one, 3 * one), (one, one), (zero, one), (zero, zero), (one, -one)]:
        found = interpolate(Linear(), x0, x1, 3, path="spherical")
        torch.testing.assert_close(found, interpolate(Linear(), x0, x1, 3))


def test_attribute_vector_is_the_difference_of_means():
    x = torch.tensor([[0.0, 1.0], [2.0, 3.0], [10.0, 0.0]])
    has = torch.tensor([False, False, True])
    vector = attribute_vector(Linear(), x, has)
    torch.testing.assert_close(vector, torch.tensor([4.5, -1.0]))
    pair = Linear()
    torch.testing.assert_close(apply_attribute(pair, x, vector, 0.0), x)
    torch.testing.assert_close(apply_attribute(pair, x[:1], vector), torch.tensor([[9.0, -1.0]]))
    several = apply_attribute(pair, x, vector, torch.tensor([-1.0, 0.0, 2.0]))
    assert several.shape == (3, 3, 2)
    torch.testing.assert_close(several[2], apply_attribute(pair, x, vector, 2.0))


def test_latent_grid_is_the_prior_s_quantiles():
    grid = latent_grid(Linear(), 4) / 2
    assert grid.shape == (4, 4, 2)
    first, second = grid[0, :, 0], grid[:, 0, 1]
    p = torch.special.ndtr(first)
    torch.testing.assert_close(p, torch.tensor([0.125, 0.375, 0.625, 0.875]))
    torch.testing.assert_close(second, -first)


def test_a_vae_is_edited_without_gradients():
    vae = VAE(5, latent_dim=2, hidden=(4,)).double()
    x = torch.rand(6, 5, dtype=torch.float64)
    path = interpolate(vae, x[:2], x[2:4], 3, path="spherical")
    torch.testing.assert_close(path[0], vae.reconstruct(x[:2]))
    torch.testing.assert_close(path[2], vae.reconstruct(x[2:4]))
    vector = attribute_vector(vae, x, torch.arange(6) < 3)
    assert vector.shape == (2,)
    grid = latent_grid(vae, 3)
    assert grid.shape == (3, 3, 5) and grid.dtype == torch.float64
    assert not any(v.requires_grad for v in (path, vector, grid))


@pytest.mark.parametrize(
    "mistake, message",
    [
        (lambda p, x: interpolate(p, x, x, 1), "at least 2"),
        (lambda p, x: interpolate(p, x, x[:1]), r"expected the shape of x0, \(4, 2\), got \(1, 2"),
        (lambda p, x: interpolate(p, x, x, path="slerp"), "expected one of"),
        (lambda p, x: attribute_vector(p, x, x[:, 0]), "expected 4 bools"),
        (lambda p, x: attribute_vector(p, x, torch.tensor([True])), "expected 4 bools"),
        (lambda p, x: attribute_vector(p, x, x[:, 0] < 9), "got 4 of 4 with it"),
        (lambda p, x: attribute_vector(p, x, x[:, 0] > 9), "got 0 of 4 with it"),
        (lambda p, x: apply_attribute(p, x, torch.ones(3)), r"expected shape \(2,\)"),
        (lambda p, x: latent_grid(VAE(2, latent_dim=3)), "latent_dim=2, got 3"),
        (lambda p, x: latent_grid(p, 0), "at least 1"),
    ],
)
def test_mistakes(mistake, message):
    with pytest.raises(ValueError, match=message):
        mistake(Linear(), torch.zeros(4, 2))


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("example", ["edit_fashion", "conditional_digits"])
def test_examples_write_their_picture(example, tmp_path):
    main = runpy.run_path(str(EXAMPLES / f"{example}.py"))["main"]
    run = main(data="digits", steps=20, out=str(tmp_path / "picture.png"))
    assert len(run.losses) == 20
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
