"""`zoo mixture`: EM, variational Bayes and SVI side by side on the same data."""

from __future__ import annotations

import itertools
from pathlib import Path

from zoo.data import load


def compare(
    data: str,
    root: str | None,
    components: int,
    covariance: str,
    held_out: float,
    restarts: int,
    steps: int,
    seed: int,
    out: str | None,
) -> None:
    """Fit all three, print their table and write their figure.

    Raises:
        ValueError: `out` exists or is no picture's name; options out of range.
    """
    from zoo.mixture import GaussianMixture

    from ..em import compare_mixtures
    from .runs import require_writable

    path = _target(data, out)
    require_writable(path.parent)
    x = load(data, root).all.double()
    pair = GaussianMixture(x.shape[-1], components, covariance)
    found = compare_mixtures(
        x, pair, held_out=held_out, restarts=restarts, steps=steps, seed=seed, progress=True
    )
    print(found)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.plot().savefig(path, dpi=150)
    print(path)


def _target(data: str, out: str | None) -> Path:
    if out is None:
        stem = f"mixture-{Path(data).stem}"
        numbered = (Path("runs") / f"{stem}-{n:03d}.png" for n in itertools.count(1))
        return next(p for p in numbered if not p.exists())
    path = Path(out).expanduser()
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--out: expected a name that ends in .png, .svg or .pdf, got {out!r}.")
    if path.exists():
        raise ValueError(f"--out: {path} exists already. Name a file that does not.")
    return path
