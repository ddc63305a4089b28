"""Trackers of experiments as callbacks: TensorBoard, MLflow, Weights & Biases.

    fit(model, guide, x, callbacks=[TensorBoard("runs/first")])

Each writes every row of a run's history (losses, held-out values, in the run's unit), its options
at the start and why it ended. They come with `pip install 'pyro-zoo[trackers]'`, and are imported
when a run starts.
"""

from __future__ import annotations

import importlib
import math
import time
from pathlib import Path
from typing import Any

from .callbacks import Callback
from .checkpoint import log


class Tracker(Callback):
    """Write a run's numbers somewhere else. Where that fails, the run goes on without it.

    A subclass has `open`, `write` and `close`; `module` is what it imports.
    """

    module = ""

    def open(self, options: dict[str, str]) -> None:
        """Begin, with the run's options as text."""
        raise NotImplementedError

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the numbers of one step."""
        raise NotImplementedError

    def close(self, stopped: str | None) -> None:
        """End; `stopped` says why it ended early."""
        raise NotImplementedError

    def start(self, run: Any) -> None:
        """Open it.

        Raises:
            ImportError: the library is missing.
        """
        try:
            self.library: Any = importlib.import_module(self.module)
        except ImportError as error:
            raise ImportError(
                f"{type(self).__name__} needs {self.module.partition('.')[0]}: "
                "pip install 'pyro-zoo[trackers]'."
            ) from error
        self._off = False
        options = {**run.settings, "device": run.device, "trainer": run.kind}
        self._try(self.open, {k: str(v)[:250] for k, v in options.items()})

    def interval(self, run: Any) -> None:
        """Write the last row of the history."""
        row = run.history.rows[-1]
        values = {k: v for k, v in row.items() if k != "step" and math.isfinite(v)}
        self._try(self.write, int(row["step"]), values)

    def end(self, run: Any) -> None:
        """Close it."""
        self._try(self.close, run.stopped)

    def _try(self, action: Any, *values: Any) -> None:
        if self._off:
            return
        try:
            action(*values)
        except Exception as error:  # of whatever kind the library has: a disk, a network, a login
            self._off = True
            log.warning(
                "%s: the run is not tracked from here on: %s", type(self).__name__,
                " ".join(f"{type(error).__name__}: {error}".split())[:200],
            )  # fmt: skip


class TensorBoard(Tracker):
    """Write event files for `tensorboard --logdir folder`.

    Args:
        folder: of the event files.
    """

    module = "torch.utils.tensorboard"

    def __init__(self, folder: str | Path):
        self.folder = folder

    def open(self, options: dict[str, str]) -> None:
        """Begin, with the options as text."""
        self._writer = self.library.SummaryWriter(str(self.folder))
        table = "\n".join(f"| {k} | {v} |" for k, v in options.items())
        self._writer.add_text("options", f"| option | value |\n|---|---|\n{table}")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write a scalar for each number."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, stopped: str | None) -> None:
        """End the file."""
        if stopped:
            self._writer.add_text("stopped", stopped)
        self._writer.close()


class MLflow(Tracker):
    """Log a run to MLflow, by a client of its own: MLflow's active run stays as it is.

    Args:
        experiment: its name; made where it is missing.
        name: of the run.
        uri: of the tracking server, or a database (`sqlite:///runs.db`); by default MLflow's own.
    """

    module = "mlflow"

    def __init__(
        self, experiment: str = "Default", name: str | None = None, uri: str | None = None
    ):
        self.experiment, self.name, self.uri = experiment, name, uri

    def open(self, options: dict[str, str]) -> None:
        """Begin, with the options as parameters."""
        self._client = self.library.MlflowClient(tracking_uri=self.uri)
        found = self._client.get_experiment_by_name(self.experiment)
        number = found.experiment_id if found else self._client.create_experiment(self.experiment)
        self._run = self._client.create_run(number, run_name=self.name).info.run_id
        for key, value in options.items():
            self._client.log_param(self._run, key, value)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log a metric for each number, in one message."""
        now, kind = int(1_000 * time.time()), self.library.entities.Metric
        metrics = [kind(k, v, now, step) for k, v in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, stopped: str | None) -> None:
        """End the run."""
        if stopped:
            self._client.set_tag(self._run, "stopped", stopped)
        self._client.set_terminated(self._run)


class WandB(Tracker):
    """Log a run to Weights & Biases.

    Args:
        project: its name.
        options: of `wandb.init`, such as name=, dir=, mode="offline".
    """

    module = "wandb"

    def __init__(self, project: str, **options: Any):
        self.project, self.options = project, options

    def open(self, options: dict[str, str]) -> None:
        """Begin, with the options as its configuration."""
        self._run = self.library.init(project=self.project, config=options, **self.options)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the numbers of one step."""
        self._run.log(values, step=step)

    def close(self, stopped: str | None) -> None:
        """End the run."""
        if stopped:
            self._run.summary["stopped"] = stopped
        self._run.finish()
