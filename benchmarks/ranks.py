"""What a second process brings: ``python benchmarks/ranks.py``, on a machine with two idle cores.

The same training, a Bernoulli VAE of 784-500-20 on random pixels, by one process with two threads
and by two processes with one each, under the same batch of 1000 rows; and an exchange of gradients
alone, by size.  Of each the fastest tenth of the steps is taken, for a machine that others use too;
where it is busy all the time the CPU time of a step tells more than the clock.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 25
MEGABYTES = (0.1, 1, 3.2, 10, 40)


def train(engine: str, out: Path) -> None:
    import numpy as np
    import torch

    import pyro_vae as pv
    from pyro_vae.models import bernoulli_vae

    x = (torch.rand(4000, 784, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    torch.manual_seed(0)
    program = bernoulli_vae.build(784, latent_dim=20, hidden_dim=500)
    times = []
    run = pv.fit(
        program, x, steps=STEPS, batch_size=1000, engine=engine, progress=False,
        callbacks=[lambda record: times.append((time.perf_counter(), time.process_time()))],
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":
        seconds, busy = np.diff(np.array(times), axis=0)[3:].T
        said = {
            "milliseconds": 1e3 * float(np.quantile(seconds, 0.1)),
            "median": 1e3 * float(np.median(seconds)),
            "of this process's CPU": 1e3 * float(np.median(busy)),
            "engine": run.manifest["engine"],
            "parameters": run.manifest["parameters"],
        }
        out.write_text(json.dumps(said))


def exchange(out: Path) -> None:
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    found = {}
    for megabytes in MEGABYTES:
        tensor = torch.zeros(int(megabytes * 250_000))
        times = []
        for _ in range(30):
            dist.barrier()
            started = time.perf_counter()
            dist.all_reduce(tensor)
            times.append(time.perf_counter() - started)
        found[megabytes] = 1e3 * sorted(times)[3]
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def measured(threads: int, processes: int, *what: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        starts = [sys.executable]
        if processes > 1:
            starts += [
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={processes}",
            ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        command = [*starts, __file__, *what, "--out", str(out)]
        subprocess.run(command, check=True, env=environment)
        return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", default="all", choices=["all", "train", "exchange"])
    parser.add_argument("--engine", default="compiled")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.what == "train":
        train(given.engine, given.out)
    elif given.what == "exchange":
        exchange(given.out)
    else:
        one = measured(2, 1, "train", "--engine", given.engine)
        print(f"one process, two threads, 1000 rows: {one}", flush=True)
        two = measured(1, 2, "train", "--engine", given.engine)
        print(f"two processes, one thread each, 500 rows: {two}")
        print(f"ratio per sample: {two['milliseconds'] / one['milliseconds']:.2f}")
        print(f"exchange of so many megabytes, in milliseconds: {measured(1, 2, 'exchange')}")


if __name__ == "__main__":
    main()
