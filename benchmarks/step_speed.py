"""How long one training step takes, beside the same step by other means.

    python benchmarks/step_speed.py [--rounds 30] [--json FILE]

Variants are interleaved in one process, round by round, so that a noisy machine is noisy for all
of them; what counts is the median of the ratios within a round.  The net is the paper's for MNIST
(784-500-20-500-784, batch 100, Adagrad); the floor is the step's matrix products and nothing else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import pyro
import torch
import torch.nn.functional as F
from pyro.infer import SVI, Trace_ELBO

import pyro_vae as pv
from pyro_vae.engine import WeightPrior
from pyro_vae.engines import make_step
from pyro_vae.inputs import Batches
from pyro_vae.loop import Loop
from pyro_vae.models import bernoulli_vae
from pyro_vae.objectives.base import State
from pyro_vae.steps import Ask

D, H, J, B = 784, 500, 20, 100


def data(rows: int = 10_000) -> torch.Tensor:
    return (torch.rand(rows, D) < 0.13).float()


def by_hand(fused: bool) -> Callable[[], None]:
    """The same step as one writes it in PyTorch."""
    encoder = torch.nn.Sequential(torch.nn.Linear(D, H), torch.nn.Tanh(), torch.nn.Linear(H, 2 * J))
    decoder = torch.nn.Sequential(torch.nn.Linear(J, H), torch.nn.Tanh(), torch.nn.Linear(H, D))
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adagrad(parameters, lr=0.02, fused=fused)
    rows = data()

    def step() -> None:
        x = rows[torch.randint(len(rows), (B,))]
        mean, log_variance = encoder(x).chunk(2, dim=-1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        loss = kl + F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ours(engine: str) -> Callable[[], None]:
    """One turn of the loop inside ``pv.fit``: minibatch, noise, gradients, checks, update."""
    program = bernoulli_vae.build(D, latent_dim=J, hidden_dim=H, init_std=None)
    batches = Batches(data(), program, B, 0)
    parameters = dict(program.named_parameters())
    objective, state = pv.objectives.AEVB(), State({}, {})
    optimizer = torch.optim.Adagrad(parameters.values(), lr=0.02, fused=True)
    _, x, weight, _ = batches(0)
    step = make_step(
        program, objective, engine, Ask(False, x, weight, state, (0, 0, 0)),
        optimizer=optimizer, prior=WeightPrior(),
    )  # fmt: skip
    loop = Loop(program, parameters, objective, step, batches, state, optimizer, record_every=1000)
    step.bind([loop])
    turns = loop.turns(10**9)
    ask = next(turns)

    def one() -> None:
        nonlocal ask
        (answer,) = step.answer([ask])
        ask = turns.send(answer)

    return one


def svi() -> Callable[[], None]:
    """Pyro's own loop with its defaults."""
    program = bernoulli_vae.build(D, latent_dim=J, hidden_dim=H, init_std=None)
    optimizer = pyro.optim.Adagrad({"lr": 0.02})
    inference = SVI(program.model, program.guide, optimizer, loss=Trace_ELBO())
    rows = data()
    return lambda: inference.step(rows[torch.randint(len(rows), (B,))])


def matrix_products() -> Callable[[], None]:
    """The floor: the eleven products of a step, forward and backward."""
    x, h, z = torch.rand(B, D), torch.rand(B, H), torch.rand(B, J)
    w = [torch.rand(D, H), torch.rand(H, 2 * J), torch.rand(J, H), torch.rand(H, D)]
    y, zz = torch.rand(B, D), torch.rand(B, 2 * J)

    def products() -> None:
        x @ w[0], h @ w[1], z @ w[2], h @ w[3]  # forward
        x.T @ h, h.T @ zz, z.T @ h, h.T @ y  # gradients of the weights
        y @ w[3].T, h @ w[2].T, zz @ w[1].T  # gradients of the activations

    return products


VARIANTS: dict[str, Callable[[], Callable[[], None]]] = {
    "matrix products alone": matrix_products,
    "PyTorch by hand": lambda: by_hand(fused=False),
    "PyTorch by hand, fused optimizer": lambda: by_hand(fused=True),
    "pyro_vae, compiled": lambda: ours("compiled"),
    "pyro_vae, eager": lambda: ours("eager"),
    'pyro_vae, engine="pyro"': lambda: ours("pyro"),
    "Pyro SVI, Trace_ELBO": svi,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=20, help="steps a round and variant")
    parser.add_argument("--json", help="write every number here")
    options = parser.parse_args()
    torch.manual_seed(0)
    steps = {name: make() for name, make in VARIANTS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(5):
            step()
    for _ in range(options.rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(options.steps):
                step()
            times[name].append(1e3 * (time.perf_counter() - start) / options.steps)
    floor, hand = times["matrix products alone"], times["PyTorch by hand"]
    print(f"{torch.get_num_threads()} threads, median of {options.rounds} interleaved rounds")
    print(f"{'':34s}{'ms a step':>10s}{'over products':>15s}{'over by hand':>14s}")
    report = {}
    for name, values in times.items():
        over = [statistics.median(v / f for v, f in zip(values, base, strict=True))
                for base in (floor, hand)]  # fmt: skip
        report[name] = {
            "ms": statistics.median(values),
            "over_floor": over[0],
            "over_hand": over[1],
        }
        print(f"{name:34s}{statistics.median(values):10.2f}{over[0]:15.2f}{over[1]:14.2f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
