"""Write `slow.txt`: the tests that take long, from the durations that pytest prints.

    python -m pytest -n auto --durations=0 --durations-min=1 | python tests/slow_list.py

They are marked slow as if they said so themselves (`conftest.py`), so that the default suite stays
within five minutes on two cores. A few stay in it whatever they take: one for each promise that
nothing shorter covers.
"""

import re
import sys
from pathlib import Path

LONG = 1.3  # seconds on one core
LINE = re.compile(r"^([\d.]+)s call\s+(.+?)\s*$")
KEPT = (
    "test_cli.py::test_a_run_folder_holds_everything",
    "test_cli.py::test_diagnose_puts_its_evidence_on_the_page",
    "test_choosing.py::test_the_loop_changes_over_when_the_program_is_there",
    "test_convergence.py::test_auto_is_the_default_and_ends_within_its_tolerance",
    "test_every_shape.py",
    "test_posterior.py::test_a_second_mode_is_found",
    "test_ranks.py::test_a_rank_that_is_killed",
    "test_resume.py::test_stopped_anywhere_and_resumed_is_bit_for_bit_the_run_that_never_stopped[67-many",
    "test_store.py::test_a_program_under_another_key",
    "test_whole_way.py",
)


def long_ones(lines):
    """The names of long tests."""
    found = [LINE.match(line) for line in lines]
    names = {m[2] for m in found if m and float(m[1]) >= LONG}
    return sorted(n for n in names if not any(k in n for k in KEPT))


if __name__ == "__main__":
    Path(__file__).with_name("slow.txt").write_text("\n".join(long_ones(sys.stdin)) + "\n")
