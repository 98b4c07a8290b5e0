"""Which engine a run gets: names, what each can do, and when compiling pays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)
from pyro.infer import ReweightedWakeSleep as PyroReweightedWakeSleep
from pyro.infer.elbo import ELBO
from torch import nn

from pyro_vae import defaults
from pyro_vae.densities.sites import Sites, latents_of
from pyro_vae.engine.capture import Graph, capture
from pyro_vae.engine.functions import NO_PRIOR, WeightPrior, gradient_function
from pyro_vae.engine.fusing import fuse
from pyro_vae.engine.learner import Ask, Learner
from pyro_vae.engine.sources import GradientSource, GraphSource, HandlerSource
from pyro_vae.engine.steps import OneByOne, Step
from pyro_vae.engine.svi import SVISource
from pyro_vae.engine.updates import KNOWN, rules_of
from pyro_vae.graphs import compiling
from pyro_vae.graphs.lifted import Refusal
from pyro_vae.graphs.probing import close
from pyro_vae.noise import NoiseMode, keyed, seeded
from pyro_vae.objectives.aevb import AEVB
from pyro_vae.objectives.base import Objective, State
from pyro_vae.objectives.enumerated import EnumeratedELBO, MixedELBO
from pyro_vae.program.calling import batch_norm_of, left_as_it_was, trainable
from pyro_vae.program.rows import Rows, device_of
from pyro_vae.torch_internals import has_bfloat16_products

ENGINES = ("auto", "compiled", "eager", "pyro")
PRECISIONS = (PRECISION := defaults.MATMUL_PRECISION, "medium")  # of large matrix products


# Pyro's own that cannot say what a datum loses, and what to pass in their place.
REFUSED: dict[type, str] = {
    PyroReweightedWakeSleep: "which normalizes weights over the whole batch and has two losses: "
    "pass pv.objectives.ReweightedWakeSleep(), whose weights are each datum's",
    JitTraceGraph_ELBO: "which torch.jit compiles with parameters of Pyro's store, where a program "
    "has none: pass TraceGraph_ELBO()",
    TraceTailAdaptive_ELBO: "which reports no loss: pass pv.objectives.AEVB()",
    Trace_MMD: "whose loss compares a batch with draws and is no sum over data: pass an ELBO",
}


def translate(objective: Any) -> Objective | ELBO:
    """Our objective for Pyro's ELBOs that have one; others stay Pyro's.

    ``Trace_ELBO`` is ``AEVB("A")``, for a guide with latents that are not reparameterized
    ``MixedELBO`` (:func:`suited`), ``TraceMeanField_ELBO`` ``AEVB("B")`` and ``TraceEnum_ELBO``
    ``EnumeratedELBO``; so are those that torch.jit compiles, whose name starts with Jit.

    Raises:
        TypeError: for what is no objective.
        ValueError: for one of Pyro's whose loss is none of a datum.
    """
    if isinstance(objective, type) and issubclass(objective, ELBO):
        raise TypeError(
            f"objective is the class {objective.__name__}, expected an instance: "
            f"write {objective.__name__}()"
        )
    if isinstance(objective, Objective):
        return objective
    if type(objective) in (Trace_ELBO, JitTrace_ELBO):
        return AEVB("A", objective.num_particles)
    if type(objective) in (TraceMeanField_ELBO, JitTraceMeanField_ELBO):
        return AEVB("B", objective.num_particles)
    if type(objective) in (TraceEnum_ELBO, JitTraceEnum_ELBO):
        return EnumeratedELBO(objective.num_particles)
    for kind, why in REFUSED.items():
        if isinstance(objective, kind):
            raise ValueError(f"objective is Pyro's {type(objective).__name__}, {why}")
    if isinstance(objective, ELBO):
        return objective
    raise TypeError(
        f"objective is {objective!r}, expected one of pv.objectives or a Pyro ELBO, such as "
        "pv.objectives.AEVB()"
    )


def suited(given: Any, chosen: Objective | ELBO, guide: Sites) -> Objective | ELBO:
    """What an objective comes to for this guide.

    Pyro's ``Trace_ELBO`` takes latents of all kinds.

    Raises:
        ValueError: for one of Pyro's that would leave a part of this guide as it is.
    """
    drawn = [name for name, site in latents_of(guide).items() if not site.has_rsample]
    if drawn and type(given) in (Trace_ELBO, JitTrace_ELBO):
        return MixedELBO(given.num_particles)
    if drawn and isinstance(chosen, (RenyiELBO, TraceTMC_ELBO)):
        raise ValueError(
            f'latent site "{drawn[0]}" has the guide {guide[drawn[0]].family}, which is not '
            f"reparameterized, so its gradient under Pyro's {type(chosen).__name__} would silently "
            "be zero: pass pv.objectives.MixedELBO(), EnumeratedELBO() or ReweightedWakeSleep()"
        )
    return chosen


def gradient_source(
    program: nn.Module,
    objective: Objective | ELBO,
    x: Rows,
    state: State,
    prior: WeightPrior = NO_PRIOR,
    precision: str = PRECISION,
) -> GradientSource:
    """Gradients by a captured graph, or by the next best thing and why, where there is none.

    Args:
        program: model and guide.
        objective: ours, or one of Pyro's own.
        x: an example batch.
        state: the objective's for these rows.
        prior: of the weights.
        precision: of matrix products.

    Raises:
        ValueError: where that precision is not at hand.
    """
    require_precision(precision, device_of(x))
    if not isinstance(objective, Objective):
        reason = f"{type(objective).__name__} is Pyro's own objective"
        return in_full(precision, SVISource(program, objective, prior, reason))
    graph = capture(program, objective, x, state, prior)
    if isinstance(graph, Refusal):
        handlers = HandlerSource(program, objective, prior, f"not captured: {graph}")
        return in_full(precision, handlers)
    return GraphSource(graph.at(precision))


def in_full(precision: str, source: GradientSource) -> GradientSource:
    """A source without a graph, whose products are in full precision and no other.

    Raises:
        ValueError: another was asked for.
    """
    if precision != PRECISION:
        why = source.reason or 'engine="pyro" runs the program as it is'
        raise ValueError(
            f"matmul_precision={precision!r} changes the products of a captured graph, and there "
            f"is none ({why}): leave it out"
        )
    return source


def require_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision of products that this machine has no instructions for.

    Raises:
        ValueError: naming those that it has.
    """
    if precision == PRECISION or device.type != "cpu" or has_bfloat16_products():
        return
    raise ValueError(
        f"matmul_precision is {precision!r}, for which this processor has no instructions (AVX-512 "
        f"BF16 or AMX), so it would be slower: leave it out, or pass {PRECISION!r}"
    )


def make_step(
    learner: Learner,
    engine: str,
    ask: Ask,
    *,
    prior: WeightPrior,
    num_steps: int = 0,
    replicas: int = 0,
    precision: str = PRECISION,
) -> Step:
    """The step for an engine's name, captured for batches of the form of ``ask.x``.

    "auto" compiles where that pays over ``num_steps``, and takes the next best thing, with the
    reason, where it cannot.

    Args:
        learner: the one, or the first of replicas that are alike.
        engine: one of ``ENGINES``.
        ask: an example of what will be asked.
        prior: of the weights.
        num_steps: the budget.
        replicas: how many learners side by side; 0 is one as it is.
        precision: of large matrix products, "highest" or "medium".

    Raises:
        ValueError: for an unknown engine, or what cannot be compiled although it was asked for; or
            a precision that is not at hand.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}, expected one of {', '.join(map(repr, ENGINES))}")
    program, objective = learner.program, learner.objective
    if engine == "pyro":
        return OneByOne(in_full(precision, SVISource(program, objective, prior)))
    source = gradient_source(program, objective, ask.x, ask.state, prior, precision)
    tied = tied_rows(learner, ask)
    if replicas and tied:
        reason = f"not batched over replicas: {tied}"
        handlers = in_full(precision, SVISource(program, objective, prior, reason))
        return unless_asked(engine, OneByOne(handlers))
    # Rows that fill up a batch would count in its statistics.
    partial = SVISource(program, objective, prior) if tied else None
    if not isinstance(source, GraphSource) or not isinstance(objective, Objective):
        return unless_asked(engine, OneByOne(source, partial))
    graph = source.graph
    runs = num_steps * max(1, replicas)
    machine = engine == "compiled" or (engine == "auto" and pays(graph, objective, runs))
    if not machine and not replicas:
        return OneByOne(source, partial)
    if tied:  # the code would move copies of its own of running statistics
        return unless_asked(engine, OneByOne(GraphSource(graph, f"not compiled: {tied}"), partial))
    what = "compiled" if machine else "batched over replicas"
    rule = rules_of(learner.optimizer, list(trainable(program).values()))
    if rule is None:
        reason = (
            f"not {what}: {type(learner.optimizer).__name__} with these options is not a part of a "
            f"captured step, which torch's {KNOWN} are"
        )
        return unless_asked(engine, OneByOne(GraphSource(graph, reason)))
    step = fuse(graph, learner, rule, ask, replicas=replicas, machine=machine)
    if isinstance(step, Refusal):
        slower = unless_asked(engine, OneByOne(GraphSource(graph, f"not {what}: {step}")))
        if machine:
            compiling.warn_not_compiled(str(step))
        return slower
    return step


def require_alike(programs: Sequence[nn.Module], objective: Objective | ELBO, ask: Ask) -> None:
    """Refuse programs that are not one function of their parameters: the first stands for all.

    Raises:
        ValueError: other names or shapes; or another loss at the same parameters, rows and noise.
    """
    first, *others = programs
    shapes = {name: tuple(p.shape) for name, p in trainable(first).items()}
    for number, other in enumerate(others, start=1):
        params = {name: p.detach() for name, p in trainable(other).items()}
        found = {name: tuple(p.shape) for name, p in params.items()}
        what = f"has parameters {found}, those of program[0] are {shapes}"
        if found == shapes:
            if not isinstance(objective, Objective):
                continue
            sums = []
            for program in (first, other):
                moved = left_as_it_was(program, parameters=False)
                with moved, NoiseMode(keyed(*ask.key)), seeded(*ask.key):
                    step = gradient_function(program, objective)
                    sums.append(step(params, ask.x, ask.weight, *ask.state)[1])
            if all(close(sums[0][name], sums[1][name]) for name in sums[0]):
                continue
            what = (
                f"has loss {float(sums[1]['loss']):.6g} where program[0] with the same parameters "
                f"has {float(sums[0]['loss']):.6g}: a constant, buffer or frozen parameter differs"
            )
        raise ValueError(
            f"program[{number}] {what}; expected programs that differ in the values of trained "
            'parameters alone: build them with the same options, or pass engine="pyro"'
        )


def unless_asked(engine: str, step: Step) -> Step:
    """The next best step, or an error where "compiled" was asked for by name."""
    if engine == "compiled" != step.engine:
        raise ValueError(
            f'engine="compiled" cannot run this: {step.reason}; engine="auto" would go on as '
            f'"{step.engine}"'
        )
    return step


def tied_rows(learner: Learner, ask: Ask) -> str:
    """Why rows of a batch must be those of the data alone, each program's own; empty if not so.

    A batch normalization takes statistics of all rows of a batch; what moves buffers may.
    """
    program, objective = learner.program, learner.objective
    if not isinstance(objective, Objective):
        return ""
    norm = batch_norm_of(program)
    if norm is not None:
        return f"{norm} ties the rows of a batch"
    before = {name: buffer.clone() for name, buffer in program.named_buffers()}
    if not before:
        return ""
    with left_as_it_was(program, parameters=False):
        source = HandlerSource(program, objective, NO_PRIOR, "")
        source.grads(learner.parameters, ask.x, ask.weight, ask.state, ask.key)
        moved = [n for n, b in program.named_buffers() if not torch.equal(b, before.get(n, b))]
    return f"each step writes into the buffer {moved[0]}" if moved else ""


def pays(graph: Graph, objective: Objective, num_steps: int) -> bool:
    """Whether to compile for so many steps."""
    graphs = {graph.grads: num_steps}
    if graph.refresh is not None:
        graphs[graph.refresh] = num_steps // objective.refresh_every
    return compiling.pays(graphs)
