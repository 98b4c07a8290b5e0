"""A training step of programs after public Pyro code, beside Pyro's own SVI.

    python benchmarks/foreign_programs.py [--only NAME ...] [--rounds 30] [--compiled]

The programs are those of tests/foreign.py, small nets in the idioms of Pyro's examples and of the
libraries around it; minibatches of 100, Adam, Pyro's validation off for both.  Variants are
interleaved round by round; what counts is the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import SVI

import pyro_vae as pv
from pyro_vae.densities.look import Look
from pyro_vae.engine.choosing import make_step, suited, translate
from pyro_vae.engine.functions import NO_PRIOR
from pyro_vae.engine.learner import Ask, Learner
from pyro_vae.noise import Stream
from pyro_vae.objectives.base import EMPTY
from pyro_vae.program.calling import materialize, trainable
from pyro_vae.program.inputs import as_rows

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.foreign_data import PROGRAMS

BATCH, FIRST = 100, 3  # rows; rounds that do not count


def turn_of(name: str, engine: str) -> tuple[Callable[[], object], str]:
    """A function that takes one update, and the engine that does."""
    facts = PROGRAMS[name]
    torch.manual_seed(0)
    program = pv.Program(facts.module())
    x = as_rows(facts.data(BATCH), program)
    kind, options = facts.elbo
    if engine == "Pyro":
        adam = pyro.optim.Adam({"lr": 1e-3})  # type: ignore[attr-defined]
        svi = SVI(program.model, program.guide, adam, kind(**options))
        named: dict[str, Any] = x if isinstance(x, dict) else {}
        args = () if named else (x,)
        return lambda: svi.step(*args, **named), "Pyro"
    materialize(program, x)
    parameters = trainable(program)
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-3)
    elbo = kind(**options)
    objective = suited(elbo, translate(elbo), Look.at(program, x).guide)
    learner = Learner(program, parameters, objective, optimizer)
    ask = Ask(False, x, torch.ones(BATCH), EMPTY, Stream.TRAIN.key(0, 0))
    step = make_step(learner, engine, ask, prior=NO_PRIOR)
    step.bind([learner])
    return lambda: step.answer([[ask]]), "by handlers" if step.reason else step.engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", action="append", choices=PROGRAMS)
    parser.add_argument("--compiled", action="store_true", help="as machine code besides")
    options = parser.parse_args()
    pyro.enable_validation(False)
    torch.distributions.Distribution.set_default_validate_args(False)
    print("| program | Pyro's SVI, ms | ours, ms | times as fast |\n|---|---|---|---|")
    for name in options.only or PROGRAMS:
        if PROGRAMS[name].guide is not None:
            continue  # one of Pyro's automatic guides
        machine = ["compiled"] if options.compiled and PROGRAMS[name].captured else []
        engines = ["Pyro", "eager", *machine]
        turns = {engine: turn_of(name, engine) for engine in engines}
        spent: dict[str, list[float]] = {engine: [] for engine in engines}
        for number in range(FIRST + options.rounds):
            for engine, (turn, _) in turns.items():
                start = time.perf_counter()
                turn()
                if number >= FIRST:
                    spent[engine].append(time.perf_counter() - start)
        for engine in engines[1:]:
            pairs = zip(spent["Pyro"], spent[engine], strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            theirs, ours = (1e3 * statistics.median(spent[e]) for e in ("Pyro", engine))
            print(f"| {name}, {turns[engine][1]} | {theirs:.2f} | {ours:.2f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
