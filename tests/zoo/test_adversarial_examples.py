"""The examples of critics, each cut short: they run, draw their figure and return numbers."""

import math
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


def main(name: str, out: Path, **options):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](out=str(out), **options)


@pytest.mark.slow
def test_gan_ring(tmp_path):
    shares = main("gan_ring", tmp_path / "ring.png", steps=30)
    assert shares.shape == (8,) and 0 <= float(shares.sum()) <= 1
    assert (tmp_path / "ring.png").stat().st_size > 10_000


@pytest.mark.slow
def test_gan_digits(tmp_path):
    near, real, labels = main("gan_digits", tmp_path / "digits.png", steps=30)
    assert near > 0 and real > 0 and float(labels.sum()) == pytest.approx(1)
    assert (tmp_path / "digits.png").exists()


@pytest.mark.slow
def test_density_ratio(tmp_path):
    ratio = main("density_ratio", tmp_path / "ratio.png", steps=100)
    assert 0 < ratio.js_divergence.value < math.log(2)  # its range; NaN is outside
    assert (tmp_path / "ratio.png").exists()


@pytest.mark.slow
def test_adversarial_vb(tmp_path):
    """The truth by quadrature is that of a second grid."""
    got, log_px, kl = main("adversarial_vb", tmp_path / "vb.png", steps=20)
    assert torch.isfinite(torch.tensor([got.elbo.value, got.kl.value, log_px, kl])).all()
    assert got.log_likelihood.value - got.kl.value == pytest.approx(got.elbo.value, abs=1e-4)
    assert (tmp_path / "vb.png").exists()
