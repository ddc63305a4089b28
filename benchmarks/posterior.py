"""`python -m benchmarks.posterior [NAME ...] [--seeds 3]`: `posterior` on nine posteriors.

Of each: whether it was trusted, by which guide, the worst error of a mean (in reference standard
deviations) and of a standard deviation (in per cent) against the reference draws, and seconds. A
false trust is a trusted posterior whose mean is off by more than 0.1 or whose sd by more than 10 %.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from inference import posterior

from .posteriors import NAMES, load


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print("posterior seed verdict last-guide mean-error sd-error seconds cpu-seconds")
    false, trusted, runs = 0, 0, 0
    for name in options.names or NAMES:
        model, args, reference = load(name)
        for seed in range(options.seeds):
            wall, cpu = time.perf_counter(), time.process_time()
            found = posterior(model, *args, seed=seed)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            mean, sd = errors(found.datatree, reference)
            wrong = found.trust and (mean > 0.1 or sd > 0.1)
            false, trusted, runs = false + wrong, trusted + found.trust, runs + 1
            print(
                f"{name} {seed} {'trusted' if found.trust else 'not trusted'} "
                f"{found.rungs[-1].guide} {mean:.3f} {100 * sd:.1f}% {wall:.1f} {cpu:.1f}"
                + (" FALSE TRUST" if wrong else ""), flush=True,
            )  # fmt: skip
    print(f"{trusted} of {runs} trusted, {false} of them falsely")


if __name__ == "__main__":
    main()
