"""Expectation maximisation: milliseconds an iteration beside scikit-learn's."""

from __future__ import annotations

import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from zoo.em import expectation_maximization

from .timing import Row


def mixture_data(n: int, columns: int, components: int) -> torch.Tensor:
    """Rows of a mixture whose components overlap, float32: (N, D)."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(components, columns, generator=generator)
    which = torch.randint(components, (n,), generator=generator)
    return centres[which] + torch.randn(n, columns, generator=generator)


def em_row(covariance: str, n: int = 200_000, columns: int = 8, components: int = 10) -> Row:
    """Whole calls from given responsibilities: the start of both is left out."""
    x = mixture_data(n, columns, components)
    start = torch.rand(n, components, generator=torch.Generator().manual_seed(1))
    start = start / start.sum(-1, keepdim=True)
    many = torch.rand(20, n, components, generator=torch.Generator().manual_seed(2))
    many = many / many.sum(-1, keepdim=True)
    numbers = x.numpy()
    model = GaussianMixture(
        components, covariance_type={"full": "full", "diagonal": "diag"}[covariance], tol=0,
        init_params="random_from_data", warm_start=True, max_iter=1,
    )  # fmt: skip

    def ours(responsibilities: torch.Tensor):
        def run(iterations: int) -> int:
            return expectation_maximization(
                x, components, covariance=covariance, start=responsibilities, tol=0,
                max_iter=iterations,
            ).n_iter  # fmt: skip

        return run

    def theirs(iterations: int) -> int:
        model.set_params(max_iter=iterations)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(numbers)
        return iterations

    return Row(
        f"EM, {covariance} covariances, {n:,} x {columns}, {components} components",
        {"one start": ours(start), "scikit-learn": theirs, "twenty starts": ours(many)},
        [(("scikit-learn",), 2.0)],
        steps=20,
    )


ROWS = {"em": lambda: em_row("full"), "em-diagonal": lambda: em_row("diagonal")}
