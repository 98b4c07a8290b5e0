"""How long one training step takes, beside the same step by other means.

    python benchmarks/step_speed.py [--case NAME ...] [--rounds 20] [--json FILE]

Variants are interleaved in one process, round by round, so that a noisy machine is noisy for all
of them; what counts is the median of the ratios within a round.  The floor of each case is the
matrix products of its step and nothing else; a second adds one pass of the optimizer over them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
import torch.nn.functional as F
from machine import about
from pyro.infer import SVI, Trace_ELBO

import pyro_vae as pv
from pyro_vae.engine.choosing import make_step
from pyro_vae.engine.functions import WeightPrior
from pyro_vae.engine.learner import Ask, Learner
from pyro_vae.models import bernoulli_vae
from pyro_vae.noise import LOOK, Stream, seeded
from pyro_vae.torch_internals import has_bfloat16_products
from pyro_vae.training.batches import Batches
from pyro_vae.training.lockstep import lockstep
from pyro_vae.training.loop import Loop, rows_of

Turn = Callable[[], int | None]  # takes a step, or returns how many it took
Products = list[tuple[int, int, int]]  # rows, in, out


@dataclass(frozen=True)
class Case:
    """A net D-H-J-H-D, minibatches of B, and what it is trained by."""

    D: int = 784
    H: int = 500
    J: int = 20
    B: int = 100
    objective: str = "AEVB"
    K: int = 1
    replicas: int = 0

    def make_objective(self) -> pv.objectives.Objective:
        if self.objective == "AEVB":
            return pv.objectives.AEVB("A" if self.K > 1 else "B", self.K)
        options = {"num_particles": self.K} if self.K > 1 else {}
        return getattr(pv.objectives, self.objective)(**options)

    def build(self) -> torch.nn.Module:
        return bernoulli_vae.build(self.D, latent_dim=self.J, hidden_dim=self.H, init_std=None)

    def data(self, rows: int = 10_000) -> torch.Tensor:
        return (torch.rand(rows, self.D) < 0.13).float()


CASES = {
    "mnist": Case(),
    "mnist, batch 1000": Case(B=1000),
    "mnist, H 2000": Case(H=2000),
    "mnist, K 50": Case(K=50),
    "mnist, wake-sleep": Case(objective="WakeSleep"),
    "mnist, Monte Carlo EM": Case(objective="MonteCarloEM"),
    "mnist, IWAE 10": Case(objective="IWAE", K=10),
    "mnist, reweighted wake-sleep 10": Case(objective="ReweightedWakeSleep", K=10),
    "mnist, DReG 10": Case(objective="DReG", K=10),
    "digits": Case(D=64, H=128, J=2),
    "digits, 8 replicas": Case(D=64, H=128, J=2, replicas=8),
}


# --- the floor ----------------------------------------------------------------------------------


def products(case: Case) -> tuple[Products, float]:
    """The matrix products of a step, and how often they come in one."""
    D, H, J, B, K = case.D, case.H, case.J, case.B, case.K
    encoder, decoder = [(B, D, H), (B, H, 2 * J)], [(B * K, J, H), (B * K, H, D)]

    def weights(layers: Products) -> Products:
        return [(i, rows, o) for rows, i, o in layers]

    def activations(layers: Products) -> Products:
        return [(rows, o, i) for rows, i, o in layers]

    if case.objective == "WakeSleep":  # wake learns the decoder; sleep dreams and learns the rest
        wake = [*encoder, *decoder, *weights(decoder), *activations(decoder[1:])]
        sleep = [*decoder, *encoder, *weights(encoder), *activations(encoder[1:])]
        return [*wake, *sleep], 1
    if case.objective == "ReweightedWakeSleep":  # no gradient passes through the draws
        wake = [*encoder, *decoder, *weights(decoder), *activations(decoder[1:])]
        return [*wake, *weights(encoder), *activations(encoder[1:])], 1
    if case.objective == "MonteCarloEM":  # 11 gradients in z for every 5 updates
        update = [*decoder, *weights(decoder), *activations(decoder[1:])]
        return [*update * 5, *[*decoder, *activations(decoder)] * 11], 1 / 5
    layers = [*encoder, *decoder]
    return [*layers, *weights(layers), *activations(layers[1:])], 1


def matrix_products(case: Case) -> Turn:
    shapes, share = products(case)
    made = {s: (torch.rand(s[0], s[1]), torch.rand(s[1], s[2])) for s in shapes}
    pairs = [made[s] for s in shapes] * max(1, case.replicas)
    left = 0.0

    def turn() -> None:
        nonlocal left
        left += share
        if left >= 1 - 1e-9:  # a Monte Carlo EM step is a fifth of these
            left -= 1
            for a, b in pairs:
                a @ b

    return turn


def one_pass(case: Case) -> Turn:
    """One fused update of all weights, which reads and writes each of them and of its state."""
    parameters = [torch.nn.Parameter(p.detach().clone()) for p in case.build().parameters()]
    for p in parameters:
        p.grad = torch.rand_like(p)
    return torch.optim.Adagrad(parameters, lr=0.02, fused=True).step


def second_floor(case: Case) -> Turn:
    """The products, and that pass: what a step cannot do without."""
    products_alone, update = matrix_products(case), one_pass(case)

    def turn() -> None:
        products_alone()
        for _ in range(max(1, case.replicas)):
            update()

    return turn


# --- other ways ---------------------------------------------------------------------------------


def by_hand(case: Case, *, fused: bool = True, machine: bool = False) -> Turn:
    """The same step as one writes it in PyTorch."""
    D, H, J = case.D, case.H, case.J
    encoder = torch.nn.Sequential(torch.nn.Linear(D, H), torch.nn.Tanh(), torch.nn.Linear(H, 2 * J))
    decoder = torch.nn.Sequential(torch.nn.Linear(J, H), torch.nn.Tanh(), torch.nn.Linear(H, D))
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adagrad(parameters, lr=0.02, fused=fused)
    rows = case.data()

    def loss_of(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        mean, log_variance = encoder(x).chunk(2, dim=-1)
        z = mean + (0.5 * log_variance).exp() * noise
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        return kl + F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")

    compute = torch.compile(loss_of, dynamic=False) if machine else loss_of

    def turn() -> None:
        x = rows[torch.randint(len(rows), (case.B,))]
        loss = compute(x, torch.randn(case.B, J))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return turn


def svi(case: Case, *, validate: bool = True) -> Turn:
    """Pyro's own loop."""
    program, rows = case.build(), case.data()
    optimizer = pyro.optim.Adagrad({"lr": 0.02})  # type: ignore[attr-defined]
    loss = Trace_ELBO(num_particles=case.K, vectorize_particles=case.K > 1, max_plate_nesting=1)
    inference = SVI(program.model, program.guide, optimizer, loss=loss)

    def turn() -> None:
        with pyro.validation_enabled(validate):
            inference.step(rows[torch.randint(len(rows), (case.B,))])

    return turn


def numpyro_scan(case: Case, steps: int = 100) -> Turn:
    """NumPyro's jitted ``lax.scan``; a turn takes that many steps."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax.example_libraries import stax
    from numpyro.infer import SVI as NumPyroSVI
    from numpyro.infer import Trace_ELBO as NumPyroELBO

    D, H, J, B = case.D, case.H, case.J, case.B
    encoder = stax.serial(
        stax.Dense(H), stax.Tanh, stax.FanOut(2),
        stax.parallel(stax.Dense(J), stax.Dense(J)),
    )  # fmt: skip
    decoder = stax.serial(stax.Dense(H), stax.Tanh, stax.Dense(D))

    def model(x):
        decode = numpyro.module("decoder", decoder, (B, J))
        with numpyro.plate("data", B):
            z = numpyro.sample("z", dist.Normal(jnp.zeros((B, J)), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x):
        encode = numpyro.module("encoder", encoder, (B, D))
        mean, log_variance = encode(x)
        with numpyro.plate("data", B):
            scale = jnp.exp(0.5 * log_variance)
            numpyro.sample("z", dist.Normal(mean, scale).to_event(1))

    rows = jnp.asarray(case.data().numpy())
    inference = NumPyroSVI(model, guide, numpyro.optim.Adagrad(0.02), NumPyroELBO())
    state = inference.init(jax.random.PRNGKey(0), rows[:B])

    @jax.jit
    def many(state, index):
        return jax.lax.scan(lambda s, i: inference.update(s, rows[i]), state, index)

    def turn() -> int:
        nonlocal state
        index = jnp.asarray(torch.randint(len(rows), (steps, B)).numpy())
        state, losses = many(state, index)
        losses.block_until_ready()
        return steps

    return turn


# --- ours ---------------------------------------------------------------------------------------


def ours(case: Case, engine: str, precision: str = "highest") -> Turn:
    """One turn of the loop inside ``pv.fit``: minibatch, noise, gradients, checks, update."""
    objective, rows = case.make_objective(), case.data()
    loops = []
    for seed in range(max(1, case.replicas)):
        program = case.build()
        parameters = dict(program.named_parameters())
        with seeded(*Stream.INIT.key(seed)):
            state = objective.init(program, rows)
        optimizer = torch.optim.Adagrad(parameters.values(), lr=0.02, fused=True)
        batches = Batches(rows, program, case.B, seed)
        learner = Learner(program, parameters, objective, optimizer)
        loops.append(Loop(learner, batches, state, seed=seed, record_every=1000))
    index, x, weight, _ = loops[0].batches(0)
    ask = Ask(False, x, weight, rows_of(loops[0].state, index), LOOK)
    options: dict[str, Any] = {"replicas": case.replicas, "precision": precision}
    step = make_step(loops[0].learner, engine, ask, prior=WeightPrior(), **options)
    if step.engine != engine:
        raise RuntimeError(step.reason)
    run = lockstep(loops, step, 10**9)

    def turn() -> int:
        return next(run)

    return turn


def variants(case: Case) -> dict[str, Callable[[], Turn]]:
    found: dict[str, Callable[[], Turn]] = {"matrix products alone": lambda: matrix_products(case)}
    found["and one pass over the weights"] = lambda: second_floor(case)
    plain = case.objective == "AEVB" and case.K == 1
    if plain and not case.replicas:
        found["PyTorch by hand"] = lambda: by_hand(case, fused=False)
        found["PyTorch by hand, fused optimizer"] = lambda: by_hand(case)
        found["PyTorch by hand, compiled"] = lambda: by_hand(case, machine=True)
        if importlib.util.find_spec("numpyro"):
            found["NumPyro, jitted scan"] = lambda: numpyro_scan(case)
    if case.objective == "AEVB":
        found["Pyro SVI, Trace_ELBO"] = lambda: svi(case)
        found["Pyro SVI, without validation"] = lambda: svi(case, validate=False)
    if not case.replicas:
        found['pyro_vae, engine="pyro"'] = lambda: ours(case, "pyro")
    found["pyro_vae, eager"] = lambda: ours(case, "eager")
    found["pyro_vae, compiled"] = lambda: ours(case, "compiled")
    if plain and case.D > 100 and has_bfloat16_products():
        found["pyro_vae, compiled, bfloat16"] = lambda: ours(case, "compiled", "medium")
    return found


def take(turn: Turn, steps: int) -> float:
    """Seconds a step, over at least so many."""
    done, start = 0, time.perf_counter()
    while done < steps:
        taken = turn()
        done += 1 if taken is None else taken
    return (time.perf_counter() - start) / done


def measure(case: Case, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """Median milliseconds a step of each variant, and medians of ratios within rounds."""
    torch.manual_seed(0)
    turns = {name: make() for name, make in variants(case).items()}
    repeats = {}
    for name, turn in turns.items():
        take(turn, 50)
        # A whole number of Monte Carlo EM's cycles.
        repeats[name] = 5 * max(1, round(seconds / take(turn, 20) / 5))
    times: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            share = 1 if "SVI" in name else max(1, case.replicas)  # per replica-step
            times[name].append(1e3 * take(turn, repeats[name]) / share)
    report = {}
    for name, values in times.items():
        report[name] = {"ms": statistics.median(values)}
        for base in ("matrix products alone", "Pyro SVI, Trace_ELBO"):
            if base in times:
                ratios = [v / b for v, b in zip(values, times[base], strict=True)]
                report[name][f"over {base}"] = statistics.median(ratios)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=CASES, help="default: mnist, digits")
    parser.add_argument("--all", action="store_true", help="every case")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.2, help="of a variant in a round")
    parser.add_argument("--json", help="write every number here")
    options = parser.parse_args()
    names = list(CASES) if options.all else options.case or ["mnist", "digits"]
    report = {}
    for name in names:
        report[name] = measure(CASES[name], options.rounds, options.seconds)
        print(f"\n{name}: {torch.get_num_threads()} threads, {options.rounds} interleaved rounds")
        print(f"{'':36s}{'ms a step':>10s}{'over products':>15s}{'over Pyro SVI':>15s}")
        for variant, numbers in report[name].items():
            over = [numbers.get(f"over {base}", float("nan"))
                    for base in ("matrix products alone", "Pyro SVI, Trace_ELBO")]  # fmt: skip
            print(f"{variant:36s}{numbers['ms']:10.3f}{over[0]:15.2f}{over[1]:15.3f}", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": about(), "cases": report}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
