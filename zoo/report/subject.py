"""The subject of a report: a fitted model with whatever it offers, its data, how it got there."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from inference.judging.evaluation import Evaluation
from inference.randomness import forked
from inference.training.state import History
from inference.weights import no_validation, simulate

ROWS = 2_000  # most data in one picture
OF_DATA = (
    "encode",
    "infer",
    "reconstruct",
    "log_prob",
    "responsibilities",
    "usage",
    "elbo",
)  # take x
INTO_DATA = ("sample", "reconstruct", "decode", "reverse")  # return x
DENSITIES = ("log_prob", "elbo")  # of x


@dataclass
class Subject:
    """A fitted model and everything a report may show of it.

    Nothing is asked of the model: each picture looks for the methods it needs, such as
    `sample(n)`, `encode(x)`, `reconstruct(x)`, `decode(z)`, `log_prob(x)`, `distribution()`,
    `responsibilities(x)`, `reverse(n)`, `usage(x)`. Conditional models take y as well.

    Attributes:
        model: a module, a distribution, or any object with some of these methods.
        data: `train`, `valid`, `test` (N, D), their labels (N,) or None, and `image_shape`.
        history: of the fit.
        unit: of the history's losses.
        evaluation: held-out bounds, where there are latents or a likelihood.
        ratio: a critic between held-out data and draws (`inference.ratios.DensityRatio`).
        quality: of draws beside held-out data (`quality.Quality`).
        latents: classifier -> its accuracy in telling codes of held-out data from the prior.
        bound: whether minus the loss is a bound on log p(x).
        kept: the step whose parameters were kept, if not the last.
        seed: of the draws for pictures.
        rows: how many test data the numbers are of.

    Of a set that was standardised, everything here is in the units of the data as they were given:
    rows, draws, densities.
    """

    model: Any
    data: Any
    history: History = field(default_factory=History)
    unit: str = "nats per datum"
    evaluation: Evaluation | None = None
    ratio: Any = None
    quality: Any = None
    latents: Any = None
    bound: bool = True
    kept: int | None = None
    seed: int = 0
    rows: int = 10_000

    def __post_init__(self) -> None:
        self.fitted = self.data  # as the model saw them
        if getattr(self.data, "scale", None) is not None:
            self.data = self.data.in_own_units()

    @property
    def log_det(self) -> float:
        """Nats to be added to a log density of the model, for one of the data as given."""
        return getattr(self.fitted, "log_det", 0.0)

    def offers(self, *names: str) -> bool:
        """Return whether the model has all these methods."""
        return all(callable(getattr(self.model, n, None)) for n in names)

    def call(self, name: str, *args: Any, labels: Tensor | None = None) -> Tensor:
        """Call a method, with `labels` where it takes y; its result is on the host."""
        method = getattr(self.model, name)
        if isinstance(self.model, Distribution) and name == "sample":
            args = (args,)
        if labels is not None and "y" in inspect.signature(method).parameters:
            args = (*args, labels)
        if name in OF_DATA and args and self.data is not self.fitted:
            args = (self.standardised(args[0]), *args[1:])
        with torch.no_grad(), forked(self.seed):
            found = method(*(self._on_device(a) for a in args)).detach().float().cpu()
        if name in INTO_DATA:
            return self.original(found)
        return found + self.log_det if name in DENSITIES else found

    def standardised(self, x: Tensor) -> Tensor:
        """Rows as the model saw them."""
        scale = getattr(self.fitted, "scale", None)
        return x if scale is None else (x - self.fitted.shift.to(x)) / scale.to(x)

    def original(self, x: Tensor) -> Tensor:
        """Rows of the model in the units of the data."""
        return x if self.data is self.fitted else self.fitted.original(x)

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor | None:
        """log p(x), or log p(x | y), nats, (N,), where the model has a density."""
        if self.offers("log_prob"):
            return self.call("log_prob", x, labels=labels)
        if self.offers("distribution"):
            with torch.no_grad():
                seen = self._on_device(self.standardised(x))
                return self.model.distribution().log_prob(seen).float().cpu() + self.log_det
        return None

    def prior(self, n: int, labels: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """Draws of x and, for the same latents, E[x | z]; None where the model has no latents."""
        if not self.offers("model", "sample", "reconstruct") or self.offers("classify"):
            return None  # a model that draws its own labels does not follow those given
        if "n" in inspect.signature(self.model.model).parameters:
            return None  # x has no density around its mean
        args = [self._on_device(torch.zeros(n, self.width))]
        if labels is not None and "y" in inspect.signature(self.model.model).parameters:
            args.append(self._on_device(labels))
        with torch.no_grad(), forked(self.seed), no_validation():
            x = simulate(self.model.model, *args, nesting=1)[0]["x"]
            try:
                drawn, mean = x.value.float().cpu(), x.fn.mean.float().cpu()
                return self.original(drawn), self.original(mean)
            except NotImplementedError:
                return None

    @property
    def kl(self) -> dict[str, float]:
        """Divergence of each latent site from its prior; not of sites without a density."""
        if self.evaluation is None:
            return {}
        se = self.evaluation.kl_se
        return {k: v for k, v in self.evaluation.kl.items() if v or se.get(k)}

    @property
    def conditional(self) -> bool:
        """True where draws take a label."""
        return self.offers("sample") and "y" in inspect.signature(self.model.sample).parameters

    @property
    def names(self) -> list[str]:
        """A name for each column."""
        own = getattr(self.data, "columns", None)
        return list(own or (f"column {d + 1}" for d in range(self.width)))

    @property
    def axes(self) -> tuple[str, str]:
        """Names of the axes of data in the plane."""
        own = getattr(self.data, "columns", None)
        return (own[0], own[1]) if own else ("x₁", "x₂")

    @property
    def width(self) -> int:
        """D."""
        return self.data.test.shape[-1]

    @property
    def shape(self) -> tuple[int, int, int] | None:
        """(channels, height, width) of a datum that is an image."""
        return getattr(self.data, "image_shape", None)

    def held_out(self, rows: int = ROWS) -> tuple[Tensor, Tensor | None]:
        """Test data and labels."""
        y = getattr(self.data, "test_labels", None)
        return self.data.test[:rows].cpu(), None if y is None else y[:rows].cpu()

    def seen(self, rows: int = ROWS) -> tuple[Tensor, Tensor | None]:
        """Test, validation and training data, for pictures that small test sets leave empty."""
        x = torch.cat([self.data.test.cpu(), self.data.valid.cpu(), self.data.train.cpu()])[:rows]
        parts = [getattr(self.data, f"{s}_labels", None) for s in ("test", "valid", "train")]
        return x, None if parts[0] is None else torch.cat(
            [p.cpu() for p in parts if p is not None]
        )[:rows]

    def on_host(self) -> Any:
        """The model, moved to the host where it is elsewhere."""
        return self.model.cpu() if hasattr(self.model, "cpu") else self.model

    def images(self, x: Tensor) -> np.ndarray:
        """Rows as images (n, C, H, W)."""
        assert self.shape is not None
        return x.reshape(-1, *self.shape).numpy()

    def _on_device(self, a: Any) -> Any:
        return a.to(self._device()) if torch.is_tensor(a) else a

    def _device(self) -> torch.device:
        tensors = self.model.parameters() if hasattr(self.model, "parameters") else ()
        return next((p.device for p in tensors), torch.device("cpu"))
