"""Listeners to a run while it goes on, told between its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..randomness import forked


class Callback:
    """Something to be told how a run goes: override what is of interest.

    Each method is given the run; one that returns True at an interval or a validation stops it.
    What they draw does not change the run. A plain function of the run is an `interval`.
    """

    def start(self, run: Any) -> Any:
        """Before the first step."""

    def interval(self, run: Any) -> Any:
        """After each row of the history: every hundred steps or so."""

    def validation(self, run: Any) -> Any:
        """After each look at the held-out data; its row is the last of the history."""

    def saved(self, run: Any) -> Any:
        """After each state on disk."""

    def end(self, run: Any) -> Any:
        """After the last step, `run.stopped` says why; before the last state on disk."""

    def __call__(self, run: Any) -> Any:
        """As `interval`."""
        return self.interval(run)


def tell(event: str, options: Mapping[str, Any], run: Any) -> bool:
    """Tell all callbacks of an event: whether one of them asks the run to stop."""
    if not options["callbacks"]:
        return False
    with forked():
        asked = [
            getattr(c, event)(run) if isinstance(c, Callback) else c(run)
            for c in options["callbacks"]
            if isinstance(c, Callback) or event == "interval"
        ]  # every one is told
    return any(asked)
