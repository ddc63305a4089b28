"""`python -m benchmarks.races`: does a race name the winner of one ten times as long?

Six pairs with different winners, three seeds. The recommended estimator counts as right where it is
within its own error (two standard errors, paired) of the best one of the long race. Beside it, what
`compare` recommends without a race.
"""

from __future__ import annotations

import argparse
import time

import torch

from inference import compare

from .pairs_of_races import pairs

LONGER = 10


def outcome(name: str, seed: int, seconds: float) -> tuple[str, str, str, float, float]:
    """The recommendations without and with a race, the winner of a long one, and how far behind."""
    torch.manual_seed(seed)
    pair, data, batch_size, estimators, lr = pairs()[name]
    same = {"batch_size": batch_size, "lr": lr, "seed": seed, "compile": False}
    short = compare(*pair, data, estimators, race=seconds, **same)
    without = type(short)(short.data_vars, short.coords, short.attrs)
    without.attrs.pop("race_winner")
    long = compare(*pair, data, estimators, race=LONGER * seconds, draws=4, **same)
    at = long.sel(estimator=short.recommendation)
    behind = float(at.race_behind), float(at.race_behind_se)
    return without.recommended().recommendation, short.recommendation, long.recommendation, *behind


def main() -> None:
    """Print a line for each pair and seed, and the count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="*", help=f"of {', '.join(pairs())}; all of them")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the short race")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    right, count = 0, 0
    print(f"{'pair':<20} seed  {'without a race':<18} {'race':<18} {'ten times longer':<18} behind")
    for name in options.pairs or pairs():
        for seed in range(options.seeds):
            begin = time.perf_counter()
            without, race, long, gap, se = outcome(name, seed, options.seconds)
            good = gap <= 2 * se
            right, count = right + good, count + 1
            print(f"{name:<20} {seed:>4}  {without:<18} {race:<18} {long:<18} "
                  f"{gap:.3f} ± {se:.3f} {'' if good else 'wrong'} "
                  f"({time.perf_counter() - begin:.0f} s)", flush=True)  # fmt: skip
    print(f"right: {right} of {count}")


if __name__ == "__main__":
    main()
