"""The captured step against the program that it came from, over all models and objectives.

A model file in ``models/`` and an objective exported by ``pyro_vae.objectives`` are tested here
before their author writes a test.  All comparisons are at the same noise, in float64.
"""

import copy
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import engine
from pyro_vae.densities.particles import densities
from pyro_vae.engine.functions import gradient_function
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.objectives import (
    AEVB,
    Objective,
    State,
)
from pyro_vae.program.base import Program
from pyro_vae.program.rows import map_rows, num_rows

from .oracles import assert_equal, fed
from .programs import (
    COLUMNS,
    KEY,
    OBJECTIVES,
    PAIRS,
    PROGRAMS,
    ROWS,
    Parts,
    is_quick,
    normal,
    program_and_rows,
)


@dataclass
class Case:
    """A program, an objective, the captured step, and what it is called with."""

    program: Program
    objective: Objective
    x: torch.Tensor | dict[str, torch.Tensor]
    state: State
    graph: engine.Graph

    def inputs(self, x=None, weight=None):
        params = {name: p.detach() for name, p in self.program.named_parameters()}
        x = self.x if x is None else x
        ones = torch.ones(num_rows(x), dtype=torch.float64)
        return params, x, ones if weight is None else weight


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(pair, id="-".join(pair), marks=() if is_quick(*pair) else pytest.mark.slow)
        for pair in PAIRS
    ],
)
def case(request):
    name, objective = request.param[0], OBJECTIVES[request.param[1]]
    torch.manual_seed(0)
    program, x = program_and_rows(name)
    with NoiseMode(keyed(8)):
        state = objective.init(program, x)
    graph = engine.capture(program, objective, x, state)
    assert isinstance(graph, engine.Graph), str(graph)
    assert not graph.grads.kept
    return Case(program, objective, x, state, graph)


# --- conformance: every model, every objective ----------------------------------------------------


def test_graph_gives_the_gradients_and_sums_of_the_program(case):
    """What the handlers compute at a key's noise is what the graph computes, particles and all."""
    args = *case.inputs(), *case.state

    got, got_sums = case.graph.grads(*args, noise=case.graph.grads.draw(KEY))

    with NoiseMode(keyed(*KEY)):
        expected, sums = gradient_function(case.program, case.objective)(*args)
    assert_equal(got, expected)
    assert_equal(got_sums, sums)
    assert sum(g.abs().sum() for g in got.values()) > 0


def test_pyros_svi_gives_the_same_loss_and_gradients(case):
    """The same objective as the ``loss`` of anyone's own SVI, at the same noise."""
    if case.objective.refresh_every:
        pytest.skip("inside SVI its state comes from noise of its own")
    program, optimizer = case.program, pyro.optim.SGD({"lr": 0.1})
    objective = copy.deepcopy(case.objective)  # it remembers, from one program to the next
    svi = SVI(program.model, program.guide, optimizer, loss=objective)
    program.zero_grad()

    with NoiseMode(keyed(*KEY)):
        loss = svi.loss_and_grads(program.model, program.guide, case.x)

    noise = case.graph.grads.draw(KEY)
    expected, sums = case.graph.grads(*case.inputs(), *case.state, noise=noise)
    for name, parameter in program.named_parameters():
        got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert_equal({name: got}, {name: expected[name]})
    scale = getattr(program, "size", getattr(program, "num_data", ROWS)) / ROWS
    assert abs(loss - scale * sums["loss"]) < 1e-8 * abs(loss)


def test_rows_of_weight_zero_leave_the_gradient_of_the_short_batch(case):
    """So the last, smaller batch of an epoch needs no graph of its own, whatever pads it."""
    short = map_rows(lambda rows: rows[:4], case.x)
    padded = map_rows(lambda rows: torch.cat([rows[:4], 1 - rows[: ROWS - 4]]), case.x)
    weight = torch.tensor([1.0] * 4 + [0.0] * (ROWS - 4), dtype=torch.float64)
    noise = case.graph.grads.draw(KEY)
    part = [n[tuple(slice(4 if size == ROWS else None) for size in n.shape)] for n in noise]

    got, sums = case.graph.grads(*case.inputs(padded, weight), *case.state, noise=noise)

    rows = {name: value[:4] for name, value in case.state.rows.items()}
    with fed(*part):
        expected, short_sums = gradient_function(case.program, case.objective)(
            *case.inputs(short), rows, case.state.shared
        )
    assert_equal(got, expected, tolerance=1e-10)
    assert_equal(sums, short_sums, tolerance=1e-10)


def test_replicas_by_vmap_are_their_single_runs(case):
    """Stacked parameters and noise: no replica sees another's."""
    params, *rest = case.inputs()
    noise = [case.graph.grads.draw((*KEY, replica)) for replica in range(3)]
    many = {name: torch.stack([p * (1 + 0.1 * r) for r in range(3)]) for name, p in params.items()}

    def run(params, noise):
        return case.graph.grads(params, *rest, *case.state, noise=noise)

    together, sums = torch.func.vmap(run)(many, [torch.stack(n) for n in zip(*noise, strict=True)])

    for replica in range(3):
        single, single_sums = run({name: p[replica] for name, p in many.items()}, noise[replica])
        assert_equal({name: g[replica] for name, g in together.items()}, single, tolerance=1e-10)
        torch.testing.assert_close(sums["loss"][replica], single_sums["loss"])
    assert sums["loss"].unique().numel() == 3


@pytest.mark.parametrize(("estimator", "elbo"), [("A", Trace_ELBO), ("B", TraceMeanField_ELBO)])
@pytest.mark.parametrize("name", PROGRAMS)
def test_aevb_is_pyros_own_elbo_on_every_program(name, estimator, elbo):
    """Trace_ELBO is A, TraceMeanField_ELBO is B, global latents and all."""
    program, x = program_and_rows(name)
    found = []
    for loss in (elbo(), AEVB(estimator)):
        program.zero_grad()
        with NoiseMode(keyed(*KEY)):
            value = loss.differentiable_loss(program.model, program.guide, x)
        value.backward()
        found.append({name: p.grad for name, p in program.named_parameters()} | {"loss": value})

    assert_equal(found[1], found[0])


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_particle_is_a_run_of_the_program_on_its_own_noise(name):
    """Wherever the sites and plates are, and however many rows the plate has."""
    program, x = program_and_rows(name)
    with NoiseMode(keyed(*KEY)) as mode:
        many = densities(program, x, 3)
    drawn = [keyed(*KEY)(index, asked) for index, asked in enumerate(mode.asked)]

    for k in range(3):
        with NoiseMode(lambda i, asked, k=k: drawn[i].reshape(3, *asked.shape)[k]):
            one = densities(program, x)
        for field in ("log_prior", "log_likelihood", "log_q", "global_log_p", "global_log_q"):
            assert_equal({field: getattr(many, field)[k]}, {field: getattr(one, field)[0]}, 1e-10)
        got = {name: value[k] for name, value in many.latents.items()}
        assert_equal(got, {name: value[0] for name, value in one.latents.items()}, 1e-10)
    assert many.scale == one.scale


class Heavy(Parts):
    """A latent with a prior for which torch knows no KL: one of the densities is None."""

    def __init__(self):
        super().__init__(decoder=(2, COLUMNS), encoder=(COLUMNS, 2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.StudentT(3.0, self.zeros(2), 1.0).to_event(1))
            pyro.sample("x", normal(self.decoder(z)), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(x), 0.5))


def test_particles_of_a_latent_without_a_closed_kl_can_be_captured():
    program, x = Heavy(), torch.randn(ROWS, COLUMNS, dtype=torch.float64)
    params = {name: p.detach() for name, p in program.named_parameters()}
    args = params, x, torch.ones(ROWS, dtype=torch.float64), {}, {}

    graph = engine.capture(program, AEVB("A", 3), x)

    assert isinstance(graph, engine.Graph), str(graph)
    got, _ = graph.grads(*args, noise=graph.grads.draw(KEY))
    with NoiseMode(keyed(*KEY)):
        expected, _ = gradient_function(program, AEVB("A", 3))(*args)
    assert_equal(got, expected)
    assert [noise.shape for noise in graph.grads.noise] == [(3, ROWS, 2)]  # by vmap over noise
