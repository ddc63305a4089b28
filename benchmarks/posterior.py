"""`python -m benchmarks posterior [--rounds 3]`: `posterior` on nine posteriors of posteriordb.

Of each: whether it was trusted, by which guide, the worst error of a mean (in reference standard
deviations) and of a standard deviation (in per cent) against the reference draws, and seconds. A
false trust is a trusted posterior whose mean is off by more than 0.1 or whose sd by more than 10 %.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

import numpy as np

from inference import posterior

from .posteriors import NAMES, load

HEAD = "posterior seed verdict last-guide mean-error sd-error seconds cpu-seconds"


def errors(tree, reference):
    """Worst error of the means, in reference sds, and of the sds, as a share."""
    drawn = tree.posterior
    worst = []
    for name, values in reference.items():
        if name in drawn:
            mine = drawn[name].values.ravel()
        else:  # theta[3] of a vector theta
            site, _, index = name[:-1].partition("[")
            mine = drawn[site].values[..., int(index) - 1].ravel()
        shift = abs(mine.mean() - values.mean()) / values.std()
        worst.append((shift, abs(mine.std() / values.std() - 1)))
    return np.max(worst, 0)


def lines(names: Sequence[str] = NAMES, seeds: int = 3) -> Iterator[str]:
    """A line for each posterior and seed, as it is done, and one for all of them."""
    false, trusted, runs = 0, 0, 0
    yield HEAD
    for name in names:
        model, args, reference = load(name)
        for seed in range(seeds):
            wall, cpu = time.perf_counter(), time.process_time()
            found = posterior(model, *args, seed=seed)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            mean, sd = errors(found.datatree, reference)
            wrong = found.trust and (mean > 0.1 or sd > 0.1)
            false, trusted, runs = false + wrong, trusted + found.trust, runs + 1
            yield (
                f"{name} {seed} {'trusted' if found.trust else 'not trusted'} "
                f"{found.rungs[-1].guide} {mean:.3f} {100 * sd:.1f}% {wall:.1f} {cpu:.1f}"
                + (" FALSE TRUST" if wrong else "")
            )
    yield f"{trusted} of {runs} trusted, {false} of them falsely"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    for line in lines(options.names or NAMES, options.seeds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
