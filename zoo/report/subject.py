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
        bound: whether minus the loss is a bound on log p(x).
        kept: the step whose parameters were kept, if not the last.
        seed: of the draws for pictures.
        rows: how many test data the numbers are of.
    """

    model: Any
    data: Any
    history: History = field(default_factory=History)
    unit: str = "nats per datum"
    evaluation: Evaluation | None = None
    ratio: Any = None
    bound: bool = True
    kept: int | None = None
    seed: int = 0
    rows: int = 10_000

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
        with torch.no_grad(), forked(self.seed):
            return method(*(self._on_device(a) for a in args)).detach().float().cpu()

    def log_prob(self, x: Tensor) -> Tensor | None:
        """log p(x), nats, (N,), where the model has a density."""
        if self.offers("log_prob"):
            return self.call("log_prob", x)
        if self.offers("distribution"):
            with torch.no_grad():
                return self.model.distribution().log_prob(self._on_device(x)).float().cpu()
        return None

    def prior(self, n: int, labels: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """Draws of x and, for the same latents, E[x | z]; None where the model has no latents."""
        if not self.offers("model", "sample", "reconstruct") or self.offers("classify"):
            return None  # a model that draws its own labels does not follow those given
        args = [self._on_device(torch.zeros(n, self.width))]
        if labels is not None and "y" in inspect.signature(self.model.model).parameters:
            args.append(self._on_device(labels))
        with torch.no_grad(), forked(self.seed), no_validation():
            x = simulate(self.model.model, *args, nesting=1)[0]["x"]
            try:
                return x.value.float().cpu(), x.fn.mean.float().cpu()
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
