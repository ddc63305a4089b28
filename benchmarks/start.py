"""Time to result: seconds from the first import to the last step, a fresh process each.

Caches of compiled code are empty (cold), or filled by one run before (warm): inductor's and
NumPyro's own persistent one.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time

STEPS = (300, 1_000, 3_000, 10_000, 100_000)
WORKS = {"VAE 784-200-200-50, B = 20": (300, 1_000, 3_000, 10_000), "eight schools": STEPS}
WHO = ("fit", "pyro.infer.SVI", "numpyro svi.run")


def fit(work: str, steps: int) -> None:
    """Ours, as a user calls it."""
    from inference import fit

    if work == "eight schools":
        from pyro.infer.autoguide import AutoNormal

        from .pairs import S, Y, schools

        fit(schools, AutoNormal(schools), (Y, S), steps=steps, lr=0.01, progress=False)
    else:
        from zoo.vae import VAE

        from .pairs import images

        pair = VAE(784, latent_dim=50, hidden=(200, 200))
        fit(pair, images(20), steps=steps, lr=1e-3, progress=False)


def pyro_svi(work: str, steps: int) -> None:
    """Pyro's own loop."""
    import pyro
    from pyro.infer import SVI, Trace_ELBO

    adam = pyro.optim.Adam({"lr": 0.01 if work == "eight schools" else 1e-3})
    if work == "eight schools":
        from pyro.infer.autoguide import AutoNormal

        from .pairs import S, Y, schools

        svi, args = SVI(schools, AutoNormal(schools), adam, Trace_ELBO()), (Y, S)
    else:
        from zoo.vae import VAE

        from .pairs import images

        pair = VAE(784, latent_dim=50, hidden=(200, 200))
        svi, args = SVI(pair.model, pair.guide, adam, Trace_ELBO()), (images(20),)
    for _ in range(steps):
        svi.step(*args)


def numpyro_run(work: str, steps: int) -> None:
    """NumPyro's own loop, a scan."""
    import jax
    from numpyro.infer import SVI

    from . import numpyro_peers

    def run(model, guide, args, loss, lr=1e-3, scan=True):
        import numpyro

        svi = SVI(model, guide, numpyro.optim.Adam(lr), loss)
        jax.block_until_ready(svi.run(jax.random.PRNGKey(0), steps, *args, progress_bar=False))

    numpyro_peers.contenders = run
    if work == "eight schools":
        from .pairs import S, Y

        numpyro_peers.schools(Y, S, False)
    else:
        from .pairs import images

        numpyro_peers.vae(images(20))


def seconds(who: str, work: str, steps: int, cache: str) -> float:
    """One fresh process."""
    places = {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "JAX_COMPILATION_CACHE_DIR": cache}
    places["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    environment = {**os.environ, **places}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "benchmarks.start", who, work, str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout.split()[-1])


def report(rounds: int = 3) -> str:
    """Medians of so many processes, in turn; the shares are of NumPyro's, or of Pyro's."""
    there = [w for w in WHO if w[:7] != "numpyro" or importlib.util.find_spec("numpyro")]
    lines = []
    for work, counts in WORKS.items():
        lines.append(f"\ntime to result: {work}; seconds from the first import to the last step")
        lines.append(f"  {'steps':>9}  " + "".join(f"{w + ' ' + c:>24}" for c in ("cold", "warm")
                                                   for w in there))  # fmt: skip
        for n in counts:
            found: dict[tuple[str, str], list[float]] = {}
            for _ in range(rounds):
                for who in there:
                    with tempfile.TemporaryDirectory() as cache:
                        for state in ("cold", "warm"):
                            found.setdefault((state, who), []).append(seconds(who, work, n, cache))
            row = [statistics.median(found[c, w]) for c in ("cold", "warm") for w in there]
            lines.append(f"  {n:>9,}  " + "".join(f"{s:24.1f}" for s in row))
    return "\n".join(lines)


if __name__ == "__main__":
    begin = time.perf_counter()
    {"fit": fit, "pyro.infer.SVI": pyro_svi, "numpyro svi.run": numpyro_run}[sys.argv[1]](
        sys.argv[2], int(sys.argv[3])
    )
    print(time.perf_counter() - begin)
