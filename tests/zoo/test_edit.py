import math
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo.cli import run
from zoo.edit import (
    WithCondition,
    apply_attribute,
    arithmetic,
    attribute_vector,
    interpolate,
    latent_grid,
    traverse,
)
from zoo.report.representation import compare_codes, map_of, probe_accuracies
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


def test_traversal_moves_the_coordinates_that_vary_most_between_their_quantiles():
    x = torch.randn(500, 3) * torch.tensor([0.1, 5.0, 1.0])
    path = traverse(Linear(), x, dims=2, steps=5)
    assert path.shape == (2, 5, 3)
    first, second = path
    torch.testing.assert_close(first[:, [0, 2]], x[0, [0, 2]].expand(5, 2))
    torch.testing.assert_close(second[:, :2], x[0, :2].expand(5, 2))
    torch.testing.assert_close(first[[0, -1], 1], x[:, 1].quantile(torch.tensor([0.02, 0.98])))
    with pytest.raises(ValueError, match="at least 2 rows"):
        traverse(Linear(), x[:1])


def test_arithmetic_adds_a_difference():
    a, b, c = torch.randn(3, 2, 4)
    torch.testing.assert_close(arithmetic(Linear(), a, b, c), a - b + c)
    with pytest.raises(ValueError, match="one shape"):
        arithmetic(Linear(), a, b[:1], c)


def test_a_conditional_pair_is_edited_under_one_condition():
    class Shifted:
        def encode(self, x, y):
            return x - y[..., None]

        def decode(self, z, y):
            return z + 10 * y[..., None]

    pair = WithCondition(Shifted(), 2)
    torch.testing.assert_close(pair.decode(pair.encode(torch.ones(3, 2))), torch.full((3, 2), 19.0))


def test_probes_reach_the_bayes_accuracy_and_chance():
    y = torch.arange(1_200) % 2
    x = torch.randn(1_200, 3) + torch.tensor([2.0, 0.0, 0.0]) * y[:, None]
    found = probe_accuracies(x[:800], y[:800], x[800:], y[800:])
    bayes = float(torch.special.ndtr(torch.tensor(1.0)))
    assert abs(found["linear"].value - bayes) < 4 * found["linear"].se
    blind = probe_accuracies(x[:800, 1:], y[:800], x[800:, 1:], y[800:])
    assert all(abs(e.value - 0.5) < 4 * e.se for e in blind.values())
    codes = compare_codes((x[:800, 1:], x[800:, 1:]), (x[:800], x[800:]), (y[:800], y[800:]))
    assert list(codes) == ["codes", "2 principal components", "raw values"]
    assert codes["raw values"]["linear"].value == found["linear"].value


def test_the_map_of_far_clusters_keeps_them_apart():
    z = torch.randn(60, 5) + 50 * (torch.arange(60) % 2)[:, None]
    for way in ("principal", "tsne"):
        points, axes = map_of(z, way)
        assert points.shape == (60, 2) and len(axes) == 2
        between = (points[::2].mean(0) - points[1::2].mean(0)).norm()
        assert between > 3 * max(points[::2].std(0).max(), points[1::2].std(0).max())
    with pytest.raises(ValueError, match="principal, tsne, umap"):
        map_of(z, "pca")


def test_the_command_edits_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoo.report.page.png", lambda drawing, theme: b"\x89PNG")
    monkeypatch.setattr("zoo.report.theme.DPI", 20)
    tiny = "fit vae --steps 2 --batch-size 16 --compile no --particles 30 --test-rows 12 --hidden 8"
    assert run([*tiny.split(), "--out", "run"]) == 0
    for how in (["traverse"], ["attribute", "--label", "8"], ["arithmetic"], ["map"]):
        assert run(["edit", "run", "--rows", "3", "--how", *how]) == 0
    assert run(["edit", "run", "--out", "walk.npy", "--rows", "2", "--steps", "3"]) == 0
    assert len(list(tmp_path.glob("run-edit*.png"))) == 4
    capsys.readouterr()
    for argv, words in (
        (["--how", "rotate"], "interpolate, traverse"),
        (["--how", "attribute"], "labels up to 9"),
        (["--how", "attribute", "--label", "77"], "rows with the attribute"),
        (["--steps", "1"], "at least 1 and 2"),
    ):
        assert run(["edit", "run", *argv]) == 2
        assert words in capsys.readouterr().err
