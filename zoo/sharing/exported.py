"""An encoder or a decoder as one file, without this library: `torch.export`, or ONNX.

The exported graph takes and returns rows in the units of the data, any number of them, and is
compared with the model before it is written.
"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference.weights import no_validation

PARTS, FORMATS = {"encoder": "encode", "decoder": "decode"}, (".pt2", ".onnx")
FEW, MORE = 3, 7  # rows that a graph is made of, and is compared on


class ExportedPart(nn.Module):
    """One method of a model as a module: `encode` or `decode`, in the units of the data.

    Args:
        model: the fitted module.
        part: "encoder" or "decoder".
        shift, scale: (D,) each, of data that were standardised as (x - shift) / scale.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module, part: str, shift: Any = None, scale: Any = None):
        super().__init__()
        self.model = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        if hasattr(self.model, "validate"):  # reads values, which a graph has none of
            object.__setattr__(self.model, "validate", lambda *rows: None)
        self.part = part
        self.register_buffer("shift", torch.zeros(()) if shift is None else shift.cpu().clone())
        self.register_buffer("scale", torch.ones(()) if scale is None else scale.cpu().clone())

    def forward(self, *args: Tensor) -> Tensor:
        """Return z (B, L) of x (B, D), or E[x | z] of z; y (B,) follows where it is taken."""
        first, *rest = args
        if self.part == "encoder":
            return self.model.encode((first - self.shift) / self.scale, *rest)  # type: ignore[operator]
        return self.model.decode(first, *rest) * self.scale + self.shift  # type: ignore[operator]


def export(
    model: Any, part: str, path: str | Path, x: Tensor, y: Tensor | None = None,
    shift: Tensor | None = None, scale: Tensor | None = None,
) -> Path:  # fmt: skip
    """Write an encoder or decoder to a file.

    Args:
        model: a fitted module with the methods `encode` and `decode`.
        part: "encoder" or "decoder".
        path: a new file; .pt2 for `torch.export.load`, .onnx for ONNX.
        x: some rows of data, (N, D), in their units; y: their labels, (N,), where the model takes
            them.
        shift, scale: as for `ExportedPart`.

    Returns:
        The path.

    Raises:
        FileExistsError: the file is there already.
        ValueError: another ending or part; the model has none, or draws at random in it, or cannot
            be exported.
        ImportError: ONNX is not installed.
    """
    path = Path(path).expanduser()
    if part not in PARTS:
        raise ValueError(f"export: expected encoder or decoder, got {part!r}.")
    if path.suffix not in FORMATS:
        raise ValueError(f"--out: expected a name that ends in .pt2 or .onnx, got {str(path)!r}.")
    if path.exists():
        raise FileExistsError(f"{path} exists already. Name a file that does not.")
    if not isinstance(model, nn.Module) or not callable(getattr(model, PARTS[part], None)):
        raise ValueError(
            f"export: expected a torch module with the method {PARTS[part]}, got "
            f"{type(model).__name__}: there is no {part} to export."
        )
    module = ExportedPart(model, part, shift, scale).float()
    args = _arguments(module, part, x[:MORE].float().cpu(), y)
    with torch.no_grad():
        expected, again = module(*args), module(*args)
    if not torch.equal(expected, again):
        raise ValueError(
            f"export: the {part} of {type(model).__name__} draws at random, so that no file gives "
            "its numbers. Draw from the model itself."
        )
    few = tuple(a[:FEW].clone() for a in args)
    try:
        rows = torch.export.Dim("rows", min=1)
        dynamic = (tuple({0: rows} for _ in few),)
        with torch.no_grad(), no_validation():
            made = torch.export.export(module, few, dynamic_shapes=dynamic, strict=False)
            found = made.module()(*args)
    except Exception as error:  # of whatever kind the tracer has
        first = next((s.strip() for s in str(error).splitlines() if s.strip()), "")
        raise ValueError(
            f"export: the {part} of {type(model).__name__} cannot be written as one graph: "
            f"{type(error).__name__}: {first:.200}"
        ) from error
    _require_same(found, expected)
    if path.suffix == ".onnx":
        _write_onnx(made, args, expected, path)
    else:
        torch.export.save(made, path)
    return path


def _arguments(module: ExportedPart, part: str, x: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
    """The arguments of a part for some rows of data: x or the code of x, and labels."""
    takes = inspect.signature(getattr(module.model, PARTS[part])).parameters
    if "y" in takes and y is None:
        raise ValueError(f"export: the {part} takes labels y, and the data have none.")
    labels = () if y is None or "y" not in takes else (y[: len(x)].cpu(),)
    if part == "encoder":
        return (x, *labels)
    if not hasattr(module.model, "encode"):  # a generator
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(len(x), module.model.latent_dim, generator=generator), *labels)  # type: ignore[call-overload]
    also = inspect.signature(module.model.encode).parameters  # type: ignore[arg-type]
    of_x = () if y is None or "y" not in also else (y[: len(x)].cpu(),)
    with torch.no_grad():
        z = module.model.encode((x - module.shift) / module.scale, *of_x)  # type: ignore[operator]
    return (z, *labels)


def _require_same(found: Tensor, expected: Tensor) -> None:
    """Raise ValueError unless an exported part gives the model's numbers, to rounding."""
    worst = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
    if not worst < 1e-4:
        raise ValueError(f"export: the exported part differs from the model by {worst:.2g} of it.")


def _write_onnx(made: Any, args: tuple[Tensor, ...], expected: Tensor, path: Path) -> None:
    """Write a graph as ONNX, and compare it with the model where onnxruntime is installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ONNX: pip install 'pyro-zoo[onnx]' ({error}).") from error
    torch.onnx.export(made, args, path, dynamo=True, external_data=False, verbose=False)
    try:
        session = onnxruntime.InferenceSession(str(path))
        names = [i.name for i in session.get_inputs()]
        (found,) = session.run(None, {n: a.numpy() for n, a in zip(names, args)})
        _require_same(torch.from_numpy(found), expected)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
