"""Independent calls, made here one after another or by the workers of an executor."""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import _bound_partial

try:
    from cloudpickle import Pickler  # takes functions of scripts and notebooks too
except ImportError:
    from pickle import Pickler  # type: ignore[assignment]


def spread(
    executor: Executor | None, function: Callable, calls: Sequence[tuple], who: str
) -> list[Any]:
    """Return `function(*arguments)` for each of some calls, in their order.

    Args:
        executor: any `concurrent.futures.Executor`, such as a process pool, dask's
            (`client.get_executor()`) or mpi4py's; None makes the calls here. What goes to a worker
            and back is copied, as bytes: no memory is shared.
        function: of a module.
        calls: the arguments of each.
        who: the function that asks, named in errors.

    Raises:
        TypeError: it is no executor, or what is to be sent cannot be.
        Exception: whatever the first call that failed has raised; the others are given up.
    """
    if executor is None:
        return [function(*arguments) for arguments in calls]
    if not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor: expected a concurrent.futures.Executor, got {type(executor).__name__}. "
            "Of a dask client that is client.get_executor()."
        )
    packed = [_packed((function, arguments), who) for arguments in calls]
    futures = [executor.submit(_call, data) for data in packed]
    try:
        return [pickle.loads(future.result()) for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        raise


class _Sender(Pickler):  # type: ignore[misc]
    """Pickle Pyro's autoguides whole: their own way takes the model from them; and its handlers."""

    def reducer_override(self, obj: Any) -> Any:
        """Return the parts that `obj` is made of, or leave it to the pickler."""
        if isinstance(obj, AutoGuide):
            return copyreg.__newobj__, (type(obj),), {**vars(obj), "master": None}  # type: ignore[attr-defined]
        if isinstance(obj, _bound_partial):
            return _bound_partial, (obj.func,)
        return getattr(super(), "reducer_override", lambda _: NotImplemented)(obj)


def _bytes(value: Any) -> bytes:
    file = io.BytesIO()
    _Sender(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def _packed(value: Any, who: str) -> bytes:
    try:
        return _bytes(value)
    except Exception as error:  # of whatever kind an object has that cannot be pickled
        plain = Pickler is pickle.Pickler
        hint = " Install cloudpickle, or define model, guide and options in a module." * plain
        raise TypeError(
            f"{who}: executor: the pair, its data and options must be sent to other processes, and "
            f"{str(error).strip() or type(error).__name__!r:.200}.{hint}"
        ) from error


def _call(data: bytes) -> bytes:
    function, arguments = pickle.loads(data)
    return _bytes(function(*arguments))
