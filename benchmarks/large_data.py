"""Training on a file that stays on disk: its memory, and its speed beside the same rows in memory.

    python benchmarks/large_data.py [--gigabytes 20] [--steps 2000] [--folder DIR]

A .npy of rows of 784 float32 zeros and ones.  ``RssAnon`` is what the process holds beside the
pages of the file, which the system keeps and may drop at any moment.  Speed is that of a file of a
tenth of the size, whose pages are cached, so that both ways fit into memory; turns are interleaved.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae


def write(path: Path, gigabytes: float) -> int:
    """A file of so many gigabytes, the same ten thousand rows over and over; returns its rows."""
    block = (np.random.default_rng(0).random((10_000, 784)) < 0.13).astype(np.float32)
    blocks = max(1, round(gigabytes * 1e9 / block.nbytes))
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (blocks * len(block), 784)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(blocks):
            file.write(block.data)
    return blocks * len(block)


def anonymous() -> float:
    """MiB of memory that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


class Peak:
    """The most that was held while it is entered, looked at every 20 ms."""

    def __enter__(self) -> Peak:
        self.most, self._end = anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._end.wait(0.02):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def built() -> torch.nn.Module:
    torch.manual_seed(0)
    return bernoulli_vae.build(784, latent_dim=20, hidden_dim=500, init_std=None)


def seconds_of(x: object, steps: int) -> float:
    """Of the steps alone, by the run's own clock."""
    run = pv.fit(built(), x, steps=steps, progress=False, engine="eager")
    return run.manifest["seconds"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=None, help="a disk with that much space")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder, "rows.npy")
        rows = write(path, options.gigabytes)
        before = anonymous()
        with Peak() as peak:
            start = time.perf_counter()
            data = pv.datasets.split(pv.datasets.from_file(path), test=0.01, validation=1000)
            opened = time.perf_counter() - start
            run = pv.fit(
                built(), data.train, steps=options.steps, progress=False, engine="eager",
                validation=data.validation,
            )  # fmt: skip
            whole = time.perf_counter() - start
        print(
            f"{options.gigabytes:g} GB, {rows:,} rows: anonymous memory {peak.most:,.0f} MiB at "
            f"most ({before:,.0f} before); opened, checked and split in {opened:.0f} s, "
            f"{options.steps} steps after {whole - run.manifest['seconds']:.0f} s in all"
        )
        path.unlink()
        rows = write(path, options.gigabytes / 10)
        mapped = np.load(path, mmap_mode="r")
        held = torch.from_numpy(np.load(path))
        times: dict[str, list[float]] = {"file": [], "memory": []}
        for _ in range(options.rounds):
            times["file"].append(seconds_of(mapped, options.steps))
            times["memory"].append(seconds_of(held, options.steps))
        ratios = [a / b for a, b in zip(times["file"], times["memory"], strict=True)]
        step = 1e3 * statistics.median(times["file"]) / options.steps
        print(
            f"{options.gigabytes / 10:g} GB, {rows:,} rows, {torch.get_num_threads()} threads: "
            f"{step:.2f} ms a step from the file, "
            f"{statistics.median(ratios):.2f} x that from memory "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
