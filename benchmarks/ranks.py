"""One rank and two at one global batch: `torchrun --nproc-per-node=2 -m benchmarks.ranks`.

The VAE 784-200-200-50 at batch 512, compiled, each process with one thread. Blocks of steps by one
rank alone and by all together take turns, so that a busy machine hits both. Seconds of the clock
and of the CPU, and the bytes of a message.
"""

import os
import statistics
import sys
import time

import torch
import torch.distributed

from inference import fit
from zoo.vae import VAE

BATCH, STEPS, ROUNDS = 512, 200, 2


def main(batch: int = BATCH, compile: bool = True) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    x = (torch.rand(4_096, 784, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    vae = VAE(784, latent_dim=50, likelihood="bernoulli")
    found: dict[str, list[tuple[float, float]]] = {"alone": [], "together": []}

    class Clock:
        """The time of the steps between two rows, the first (compiling) left out."""

        def __init__(self, name: str):
            self.name, self.last = name, None

        def __call__(self, run) -> None:
            now = time.perf_counter(), time.process_time(), run.steps
            if self.last is not None and now[2] > self.last[2] and self.last[2] >= 20:
                n = now[2] - self.last[2]
                found[self.name].append(tuple((a - b) / n for a, b in zip(now, self.last[:2])))
            self.last = now

    options = dict(batch_size=batch, compile=compile, progress=False, check=False, repeats=1)
    runs = {}
    for i in range(ROUNDS):
        for name, group in (("alone", False), ("together", "auto")):
            torch.distributed.barrier()
            if name == "together" or rank == 0:
                runs[name] = fit(
                    vae, x, steps=20 + (i + 1) * STEPS, group=group, callbacks=[Clock(name)],
                    resume=runs.get(name), **options,
                )  # fmt: skip
    if rank == 0:
        params = sum(p.numel() for p in runs["together"].variables.params.values())
        print(f"{size} ranks, batch {batch}, {params:,} parameters, {4 * (params + 1):,} bytes")
        for name, pairs in found.items():
            wall, cpu = (1e3 * statistics.median(t) for t in zip(*pairs))
            print(f"{name:9} {wall:8.2f} ms a step, {cpu:8.2f} ms of the CPU of rank 0")
        a, b = ([statistics.median(t) for t in zip(*found[n])] for n in ("alone", "together"))
        print(f"samples a second: {a[0] / b[0]:.2f} times one rank's; by CPU {a[1] / b[1]:.2f}")
    torch.distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # whatever a library's threads still wait for


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
