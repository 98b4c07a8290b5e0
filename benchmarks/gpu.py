"""Our speed on a GPU in one table, within eight minutes: ``python benchmarks/gpu.py --json FILE``.

First the GPU's tests, then equality with the CPU at the same noise, then the step of the paper's
MNIST net by each way of taking it, replicas, log p(x), Monte Carlo EM, and Figure 2's curve of 20
latents as far as two minutes carry it, where PYRO_VAE_DATA names the data sets.  The floor is that
of the device: the step's matrix products one after another, and the bytes that an update of all
weights moves over the bandwidth measured here.

``--device cpu --seconds 60`` tries the script where there is no GPU.  Whatever fails is printed in
its row, and the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import about
from step_speed import CASES, Case, by_hand, matrix_products, ours, svi

import pyro_vae as pv
from pyro_vae.engine.capture import capture
from pyro_vae.models import bernoulli_vae
from pyro_vae.noise import Stream
from pyro_vae.objectives.base import EMPTY

Turn = Callable[[], int | None]
BYTES_AN_UPDATE = 5 * 4  # of a weight under Adagrad: w, g and s are read, w and s are written


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def per_step(turn: Turn, device: str, seconds: float) -> float:
    """Milliseconds a step, over at least so many seconds."""
    for _ in range(5):
        turn()
    wait(device)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for _ in range(5):
            taken = turn()
            done += 1 if taken is None else taken
        wait(device)
    return 1e3 * (time.perf_counter() - start) / done


def medians(turns: dict[str, Turn], device: str, rounds: int, seconds: float) -> dict[str, float]:
    """Of each its median over interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            times[name].append(per_step(turn, device, seconds))
    return {name: statistics.median(values) for name, values in times.items()}


# --- what is measured -----------------------------------------------------------------------------


def tests(options: argparse.Namespace) -> dict[str, Any]:
    if options.device != "cuda":
        return {"tests": "left out: no GPU was asked for"}
    folder = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=150)
    lines = done.stdout.strip().splitlines()
    return {
        "tests": lines[-1] if lines else done.stderr[-200:],
        "tests passed": not done.returncode,
    }


def equality(options: argparse.Namespace) -> dict[str, float]:
    """The largest relative difference of a gradient, in double precision and at the same draws."""
    torch.manual_seed(0)
    program = bernoulli_vae.build(784, latent_dim=20, hidden_dim=500, init_std=None).double()
    x = (torch.rand(100, 784) < 0.13).double()
    graph = capture(program, pv.objectives.AEVB(), x, EMPTY)
    weight = torch.ones(len(x), dtype=torch.float64)
    noise = graph.grads.draw(Stream.TRAIN.key(0, 0))
    found = []
    for device in ("cpu", options.device):
        there = program.to(device)
        moved = capture(there, pv.objectives.AEVB(), x.to(device), EMPTY)
        params = {name: p.detach() for name, p in there.named_parameters()}
        draws = [n.to(device) for n in noise]
        found.append(moved.grads(params, x.to(device), weight.to(device), {}, {}, noise=draws)[0])
    gaps = [
        float((b.cpu() - a).abs().max() / a.abs().max())
        for a, b in zip(found[0].values(), found[1].values(), strict=True)
    ]
    return {"gradient, largest relative difference to the CPU": max(gaps)}


def steps(options: argparse.Namespace, batch: int) -> dict[str, float]:
    case, device = Case(B=batch), options.device
    with torch.device(device):
        turns: dict[str, Turn] = {
            "matrix products alone": matrix_products(case),
            "PyTorch by hand, fused optimizer": by_hand(case),
        }
        try:
            turns["PyTorch by hand, compiled"] = by_hand(case, machine=True)
            turns["PyTorch by hand, compiled"]()
        except Exception as error:  # no compiler here
            turns.pop("PyTorch by hand, compiled", None)
            print(f"PyTorch by hand, compiled: {str(error).splitlines()[0]}", flush=True)
        turns["Pyro SVI, Trace_ELBO"] = svi(case)
        turns["pyro_vae, eager"] = on(device, case, "eager")
    # (On a GPU the compiled step is recorded as one CUDA graph.)
    turns["pyro_vae, compiled"] = on(device, case, "compiled")
    found = medians(turns, device, options.rounds, options.seconds / 400)
    moved = BYTES_AN_UPDATE * sum(p.numel() for p in case.build().parameters())
    floor = found["matrix products alone"]
    update = 1e3 * moved / bandwidth(device)
    found["products and one pass of the optimizer"] = floor + update
    for name in [*found]:
        found[f"{name}, over the products"] = found[name] / floor
    found["compiled, times as fast as Pyro SVI"] = (
        found["Pyro SVI, Trace_ELBO"] / found["pyro_vae, compiled"]
    )
    return {f"batch {batch}: {name}": value for name, value in found.items()}


def on(device: str, case: Case, engine: str) -> Turn:
    """The loop inside ``pv.fit`` with its program and data on a device."""
    made = case.build

    class There(Case):
        def build(self) -> torch.nn.Module:
            return made().to(device)

        def data(self, rows: int = 10_000) -> torch.Tensor:
            return (torch.rand(rows, self.D) < 0.13).float().to(device)

    return ours(There(**vars(case)), engine)


def bandwidth(device: str) -> float:
    """Bytes a second of a copy that no cache holds."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    milliseconds = per_step(copy, device, 0.2)
    return 2 * source.numel() / milliseconds * 1e3


def replicas(options: argparse.Namespace) -> dict[str, float]:
    number = 64 if options.device == "cuda" else 8
    one, many = (replace(CASES["mnist"], replicas=r) for r in (0, number))
    turns = {"one": on(options.device, one, "compiled")}
    turns["many"] = on(options.device, many, "compiled")
    found = medians(turns, options.device, options.rounds, options.seconds / 400)
    return {
        f"{number} replicas: milliseconds a step of all": found["many"],
        f"{number} replicas: times the steps of one": number * found["one"] / found["many"],
    }


def evidence(options: argparse.Namespace) -> dict[str, float]:
    rows, particles = (10_000, 1000) if options.device == "cuda" else (100, 100)
    program = CASES["mnist"].build().to(options.device)
    x = (torch.rand(rows, 784, device=options.device) < 0.13).float()
    pv.log_evidence(program, x[:1000], num_particles=particles)  # compiles
    wait(options.device)
    start = time.perf_counter()
    pv.log_evidence(program, x, num_particles=particles)
    wait(options.device)
    return {f"log p(x) of {rows} images, K = {particles}: seconds": time.perf_counter() - start}


def em(options: argparse.Namespace) -> dict[str, float]:
    turns = {"Monte Carlo EM, compiled: ms a step": on(
        options.device, CASES["mnist, Monte Carlo EM"], "compiled"
    )}  # fmt: skip
    return medians(turns, options.device, options.rounds, options.seconds / 200)


def figure_2(options: argparse.Namespace) -> dict[str, Any]:
    """AEVB on MNIST with 20 latents, from the start, for a quarter of the time at most."""
    folder = os.environ.get("PYRO_VAE_DATA")
    if folder is None:
        return {"figure 2, 20 latents": "left out: PYRO_VAE_DATA names no folder"}
    data = pv.datasets.load("mnist", binarize="none")
    program = bernoulli_vae.build(784, latent_dim=20, hidden_dim=500, soft_targets=True)
    end = time.monotonic() + min(120.0, options.seconds / 4)
    run = pv.fit(
        program, data.train, samples=100_000_000, lr=0.02, weight_prior=1.0,
        optimizer=pv.optimizers.Adagrad, device=options.device, progress=False,
        callbacks=[lambda record: time.monotonic() > end], evaluate_every=10**9,
        validation=data.test,
    )  # fmt: skip
    bound = float(pv.elbo(run.program, data.test).mean())
    return {
        "figure 2, 20 latents: samples": run.manifest["samples"],
        "figure 2, 20 latents: test bound, nats": bound,
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "tests": tests,
    "equality": equality,
    "batch 100": lambda options: steps(options, 100),
    "batch 1000": lambda options: steps(options, 1000),
    "replicas": replicas,
    "evidence": evidence,
    "Monte Carlo EM": em,
    "figure 2": figure_2,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=480, help="for all of it, roughly")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--json", help="write every number here, after each part")
    options = parser.parse_args()
    warnings.simplefilter("ignore", pv.PyroVaeWarning)
    cuda = options.device == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    report: dict[str, Any] = {"machine": about(), "device": name}
    precision = torch.get_float32_matmul_precision()
    print(f"{name}, torch {torch.__version__}, precision of float32 products: {precision}")
    end = time.monotonic() + options.seconds
    for part in options.only or PARTS:
        start = time.monotonic()
        try:
            found = PARTS[part](options) if start < end else {part: "left out: no time was left"}
        except Exception as error:
            found = {part: f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"}
        report |= found | {f"{part}: seconds it took": time.monotonic() - start}
        for line, value in found.items():
            print(
                f"{line:64s} {value if isinstance(value, str | bool) else f'{value:,.4g}'}",
                flush=True,
            )
        if options.json:
            Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
