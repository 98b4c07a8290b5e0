"""A step of the semi-supervised VAE with its label summed out, beside Pyro's own.

    python benchmarks/enumerated.py [--rounds 20] [--hidden 500] [--columns 784]

Kingma, Mohamed, Rezende & Welling (2014), arXiv:1406.5298: y is one of ten, q(y | x) and
q(z | x, y) nets with one hidden layer, minibatches of 100.  Variants are interleaved round by
round; what counts is the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.engine.choosing import make_step
from pyro_vae.engine.functions import NO_PRIOR
from pyro_vae.engine.learner import Ask, Learner
from pyro_vae.noise import Stream
from pyro_vae.objectives.base import EMPTY
from pyro_vae.program.calling import trainable

LABELS, LATENTS, BATCH = 10, 20, 100


def both(one: Tensor, other: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(one.shape[:-1], other.shape[:-1])
    return torch.cat([t.expand(*shape, t.shape[-1]) for t in (one, other)], -1)


class SemiSupervised(nn.Module):
    def __init__(self, columns: int, hidden: int) -> None:
        super().__init__()

        def net(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                nn.Linear(inputs, hidden), nn.Softplus(), nn.Linear(hidden, outputs)
            )

        self.classify, self.encode = net(columns, LABELS), net(columns + LABELS, 2 * LATENTS)
        self.decode = net(LATENTS + LABELS, columns)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(x.new_ones(LABELS) / LABELS))
            z = pyro.sample("z", dist.Normal(x.new_zeros(LATENTS), 1.0).to_event(1))
            logits = self.decode(both(z, y))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            law = dist.OneHotCategorical(logits=self.classify(x))
            y = pyro.sample("y", law, infer={"enumerate": "parallel"})
            mean, scale = self.encode(both(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(mean, scale.exp()).to_event(1))


def turn_of(engine: str, columns: int, hidden: int, x: Tensor) -> Callable[[], object]:
    """A function that takes one update of Adam."""
    torch.manual_seed(0)
    program = pv.Program(SemiSupervised(columns, hidden))
    if engine == "Pyro":
        adam = pyro.optim.Adam({"lr": 1e-3})  # type: ignore[attr-defined]
        svi = SVI(program.model, program.guide, adam, TraceEnum_ELBO(max_plate_nesting=1))
        return lambda: svi.step(x)
    parameters = trainable(program)
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-3)
    learner = Learner(program, parameters, pv.objectives.EnumeratedELBO(), optimizer)
    ask = Ask(False, x, torch.ones(len(x)), EMPTY, Stream.TRAIN.key(0, 0))
    step = make_step(learner, engine, ask, prior=NO_PRIOR)
    step.bind([learner])
    return lambda: step.answer([[ask]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--columns", type=int, default=784)
    parser.add_argument("--hidden", type=int, default=500)
    options = parser.parse_args()
    x = torch.rand(BATCH, options.columns).bernoulli()
    engines = ("Pyro", "eager", "compiled")
    turns = {name: turn_of(name, options.columns, options.hidden, x) for name in engines}
    spent: dict[str, list[float]] = {name: [] for name in engines}
    pyro.enable_validation(False)
    for number in range(options.rounds + 3):
        for name, turn in turns.items():
            start = time.perf_counter()
            turn()
            if number >= 3:
                spent[name].append(time.perf_counter() - start)
    for name, seconds in spent.items():
        ratio = statistics.median(p / s for p, s in zip(spent["Pyro"], seconds, strict=True))
        print(f"{name:>8}: {1e3 * statistics.median(seconds):7.2f} ms, {ratio:5.2f} x Pyro's speed")


if __name__ == "__main__":
    main()
