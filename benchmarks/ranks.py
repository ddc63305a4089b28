"""One rank and several at one global batch: `torchrun --nproc-per-node=2 -m benchmarks.ranks`.

The VAE 784-200-200-50 at batch 512, compiled, each process with one thread. Blocks of steps of rank
0 alone and of all together take turns, so that a busy machine hits both. Milliseconds of the clock,
and of the CPU of rank 0, which a busy machine does not change much.
"""

import statistics
import sys
import time

import torch
import torch.distributed

from inference import elbo, optim
from inference.training.batches import Batches
from inference.training.fitting import begun
from inference.training.options import complete
from inference.training.ranks import ranks_of
from inference.training.steps import CompiledStep
from zoo.vae import VAE

BLOCK, ROUNDS = 10, 8


def main(batch: int = 512) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    ranks = ranks_of("auto")
    x = (torch.rand(4_096, 784, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    torch.manual_seed(0)
    vae = VAE(784, latent_dim=50)
    options = complete({"lr": 1e-3, "seed": 0, "steps": 1, "device": "cpu"})
    steps = {}
    for name, group in (("alone", None), ("together", ranks)):
        if name == "alone" and not ranks.first:
            continue
        rows = Batches((x,), batch, 0, None, group)
        run, update = begun(
            vae.model, vae.guide, rows.example(), rows.size, elbo.Trace(), optim.Adam(1e-3), False,
            options, ranks=group, share=rows.share,
        )  # fmt: skip
        step = CompiledStep(update, run.variables, torch.tensor(1e-3))
        if name == "alone":
            step(*rows.next())
        steps[name] = step, rows
    torch.distributed.barrier()
    steps["together"][0](*steps["together"][1].next())
    times: dict[str, list[tuple[float, float]]] = {"alone": [], "together": []}
    for _ in range(ROUNDS):
        for name in times:
            torch.distributed.barrier()
            if name not in steps:
                continue
            step, rows = steps[name]
            begin = time.perf_counter(), time.process_time()
            for _ in range(BLOCK):
                step(*rows.next())
            end = time.perf_counter(), time.process_time()
            times[name].append(tuple(1e3 * (b - a) / BLOCK for a, b in zip(begin, end)))
    torch.distributed.barrier()
    if ranks.first:
        size = sum(p.numel() for p in run.variables.params.values())
        print(f"{ranks.size} ranks, batch {batch}, {size:,} parameters, {4 * size:,} bytes")
        middle = {n: [statistics.median(t) for t in zip(*ts)] for n, ts in times.items()}
        for name, (wall, cpu) in middle.items():
            print(f"{name:9} {wall:8.2f} ms a step, {cpu:8.2f} ms of CPU")
        wall, cpu = (a / b for a, b in zip(middle["alone"], middle["together"]))
        print(f"samples a second: {wall:.2f} times those of one rank; by the CPU {cpu:.2f} times")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
