"""The captured step against the program that it came from, over all models and objectives.

A model file in ``models/`` and an objective exported by ``pyro_vae.objectives`` are tested here
before their author writes a test.  All comparisons are at the same noise, in float64.
"""

import copy
import functools
import importlib
import inspect
import pkgutil
import random
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from scipy import stats
from torch import nn

from pyro_vae import engine, models, objectives
from pyro_vae.densities.dreams import dream
from pyro_vae.densities.particles import densities
from pyro_vae.engine.functions import gradient_function
from pyro_vae.evaluation import RowFunction, row_chunks
from pyro_vae.graphs import lifting
from pyro_vae.graphs.lifted import Refusal
from pyro_vae.models import bernoulli_vae
from pyro_vae.noise import NoiseMode, keyed
from pyro_vae.objectives import (
    AEVB,
    IWAE,
    Autoencoder,
    DReG,
    MonteCarloEM,
    Objective,
    ReweightedWakeSleep,
    ScoreFunction,
    State,
    StickingTheLanding,
    WakeSleep,
)
from pyro_vae.program import materialize, trainable
from pyro_vae.program.base import Program
from pyro_vae.program.rows import map_rows, num_rows

from .oracles import assert_equal, fed

ROWS, COLUMNS, KEY = 7, 6, (5, 3, 1)


def normal(mean, scale=1.0):
    return dist.Normal(mean, scale).to_event(1)


# --- programs with inner structure ----------------------------------------------------------------


class Parts(Program):
    """A base for the programs below: a few linear maps in float64."""

    def __init__(self, **sizes):
        super().__init__()
        for name, (inputs, outputs) in sizes.items():
            self.add_module(name, nn.Linear(inputs, outputs))
        self.double()

    def zeros(self, *shape):
        return torch.zeros(shape, dtype=torch.float64)


class Hierarchy(Parts):
    """The prior of the first latent depends on the second, and a site is deterministic."""

    def __init__(self):
        super().__init__(down=(2, 3), decoder=(3, 6), up=(6, 3), top=(3, 2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", normal(self.zeros(2)))
            z1 = pyro.sample("z1", normal(self.down(z2), 0.7))
            mean = pyro.deterministic("mean", self.decoder(z1).tanh(), event_dim=1)
            pyro.sample("x", normal(mean), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", normal(self.top(self.up(x).tanh()), 0.6))
            pyro.sample("z1", normal(self.up(x) + self.down(z2), 0.5))


class Regression(Parts):
    """A dict with a covariate, whose slope is a parameter that ``pyro.param`` makes."""

    def __init__(self):
        super().__init__(decoder=(2, 6), encoder=(6, 2))

    def model(self, x):
        slope = pyro.param("slope", torch.full((6,), 0.3, dtype=torch.float64))
        with pyro.plate("data", len(x["x"])):
            z = pyro.sample("z", normal(self.zeros(2)))
            law = normal(self.decoder(z) + slope * x["age"][:, None], 0.8)
            pyro.sample("x", law, obs=x["x"])

    def guide(self, x):
        with pyro.plate("data", len(x["x"])):
            pyro.sample("z", normal(self.encoder(x["x"] - x["age"][:, None]), 0.5))


class GlobalScale(Parts):
    """A latent outside the plate, and a plate of which ``x`` is a part."""

    size = 20

    def __init__(self):
        super().__init__(decoder=(2, 6), encoder=(6, 2))
        self.mean = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

    def model(self, x):
        scale = pyro.sample("scale", dist.Normal(self.zeros(), 1.0))
        with pyro.plate("data", self.size, subsample_size=len(x)):
            z = pyro.sample("z", normal(self.zeros(2)))
            pyro.sample("x", normal(self.decoder(z) * scale), obs=x)

    def guide(self, x):
        pyro.sample("scale", dist.Normal(self.mean, 0.3))
        with pyro.plate("data", self.size, subsample_size=len(x)):
            pyro.sample("z", normal(self.encoder(x), 0.5))


class Subsampled(GlobalScale):
    """The same plate without a global latent; three particles of the rows are more than N."""

    size = 8

    def model(self, x):
        with pyro.plate("data", self.size, subsample_size=len(x)):
            z = pyro.sample("z", normal(self.zeros(2) + self.mean))
            pyro.sample("x", normal(self.decoder(z)), obs=x)

    def guide(self, x):
        with pyro.plate("data", self.size, subsample_size=len(x)):
            pyro.sample("z", normal(self.encoder(x), 0.5))


class Views(Parts):
    """A plate to the left of the data's: three latents of each row, seen by their sum."""

    def __init__(self):
        super().__init__(decoder=(2, 6), encoder=(6, 2))
        self.shift = nn.Parameter(torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("views", 3, dim=-2):
                z = pyro.sample("z", normal(self.zeros(2)))  # (3, B, 2)
            pyro.sample("x", normal(self.decoder(z).tanh().sum(-3)), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("views", 3, dim=-2):
            pyro.sample("z", normal(self.encoder(x) + self.shift[:, None], 0.5))


class Dropped(Parts):
    """Dropout in both networks: noise that belongs to no site."""

    def __init__(self):
        super().__init__(decoder=(2, 6), encoder=(6, 2))
        self.dropout = nn.Dropout(0.4)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(self.zeros(2)))
            pyro.sample("x", normal(self.dropout(self.decoder(z))), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(self.dropout(x)), 0.5))


class Convolved(Parts):
    """Images (B, 1, 4, 4), observed flat; convolutions know one batch dimension and no more."""

    def __init__(self):
        super().__init__(head=(8, 2), up=(2, 8))
        self.encoder = nn.Conv2d(1, 2, 2, stride=2).double()
        self.decoder = nn.ConvTranspose2d(2, 1, 2, stride=2).double()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(self.zeros(2)))
            logits = self.decoder(self.up(z).reshape(-1, 2, 2, 2))
            law = dist.Bernoulli(logits=logits.flatten(1)).to_event(1)
            pyro.sample("x", law, obs=x.flatten(1))

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.head(self.encoder(x).flatten(1)), 0.5))


STRUCTURED = (Hierarchy, Regression, GlobalScale, Subsampled, Views, Dropped, Convolved)


def sizes_of(build):
    """What a build must be told: how many data share the weights."""
    return {"num_data": 3 * ROWS} if "num_data" in inspect.signature(build).parameters else {}


FOLDER = {
    info.name: functools.partial(module.build, COLUMNS, **sizes_of(module.build))
    for info in pkgutil.iter_modules(models.__path__)
    if hasattr(module := importlib.import_module(f"pyro_vae.models.{info.name}"), "build")
}
PROGRAMS = FOLDER | {program.__name__: program for program in STRUCTURED}
EXPORTED = [getattr(objectives, name) for name in objectives.__all__]
OBJECTIVES = {
    str(objective): objective
    for objective in (
        AEVB("A"),
        AEVB("A", 3),
        *(c() for c in EXPORTED if issubclass(c, Objective) and c is not Objective),
    )
}
# A global latent has no row of its own to dream, nor weights of a datum.
GLOBAL = {
    str(WakeSleep()): 'site "scale" is outside pyro.plate("data", ...)',
    **{
        str(o): f"{type(o).__name__} judges each draw by its own datum, and 'scale' is outside"
        for o in (IWAE(), DReG(), ReweightedWakeSleep(), ScoreFunction())
    },
    str(Autoencoder()): "an auto-encoder has a code and a loss for each datum",
}
REFUSED = {("GlobalScale", objective): reason for objective, reason in GLOBAL.items()}
REFUSED |= {("bayesian_vae", objective): 'outside pyro.plate("data"' for objective in GLOBAL}
REFUSED |= {  # the density of a draw is computed a second time
    ("Dropped", str(o)): "the guide draws noise outside pyro.sample"
    for o in (StickingTheLanding(), DReG())
}
NO_CHAINS = {(p, str(MonteCarloEM())) for p in ("GlobalScale", "bayesian_vae", "Dropped")}
PAIRS = [(p, o) for p in PROGRAMS for o in OBJECTIVES if (p, o) not in {*REFUSED, *NO_CHAINS}]


def is_quick(program, objective):
    """Every objective on two programs, and every program under the objectives of the paper."""
    if program in ("linear_gaussian", "Hierarchy") or objective in (str(AEVB()), str(WakeSleep())):
        return True
    return program not in FOLDER and objective == str(AEVB("A", 3))


def program_and_rows(name):
    """A program with random parameters in float64, and rows that it dreamt itself."""
    program = PROGRAMS[name]().double()
    shape = (ROWS, 1, 4, 4) if name == "Convolved" else (ROWS, COLUMNS)
    x = torch.zeros(shape, dtype=torch.float64)
    if name == "Regression":
        x = {"x": x, "age": torch.linspace(-1, 1, ROWS, dtype=torch.float64)}
    materialize(program, x)
    with torch.no_grad():
        for parameter in program.parameters():
            inputs = parameter[0].numel() if parameter.dim() else 1
            parameter.normal_(0.0, 0.4 / inputs**0.5)
    return program, dream(program, x)[0]


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


# --- the draws themselves -------------------------------------------------------------------------

DRAWS = 20_000
LAWS = {
    "normal_": (lambda t: t.normal_(1.0, 2.0), stats.norm(1.0, 2.0)),
    "normal": (lambda t: torch.normal(t + 1.0, t + 2.0), stats.norm(1.0, 2.0)),
    "normal of a number": (lambda t: torch.normal(1.0, t + 2.0), stats.norm(1.0, 2.0)),
    "randn": (lambda t: torch.randn(len(t)), stats.norm()),
    "randn_like": (torch.randn_like, stats.norm()),
    "rand": (lambda t: torch.rand(len(t)), stats.uniform()),
    "rand_like": (torch.rand_like, stats.uniform()),
    "uniform_": (lambda t: t.uniform_(-1.0, 3.0), stats.uniform(-1.0, 4.0)),
    "exponential_": (lambda t: t.exponential_(2.0), stats.expon(scale=0.5)),
    "cauchy_": (lambda t: t.cauchy_(1.0, 2.0), stats.cauchy(1.0, 2.0)),
}


@pytest.mark.parametrize("name", LAWS)
def test_draw_from_given_noise_has_the_law_of_torchs_own(name):
    """Kolmogorov-Smirnov against scipy; the same draw again from the same key."""
    draw, law = LAWS[name]
    found = []
    for _ in range(2):
        with NoiseMode(keyed(*KEY)) as mode:
            found.append(draw(torch.zeros(DRAWS, dtype=torch.float64)))
        assert len(mode.asked) == 1 and not mode.kept

    assert torch.equal(*found)
    assert stats.kstest(found[0].numpy(), law.cdf).pvalue > 1e-4


def test_counts_from_given_noise_have_the_frequencies_of_torchs_own():
    p = torch.tensor([0.1, 0.2, 0.7])
    row, rows = p.expand(DRAWS, 3), torch.arange(DRAWS)
    with NoiseMode(keyed(*KEY)) as mode:
        counts = {
            "bernoulli": torch.bernoulli(row).mean(0),
            "bernoulli_": torch.empty(DRAWS, 3).bernoulli_(row).mean(0),
            "bernoulli_ of a number": torch.empty(DRAWS).bernoulli_(0.7).mean().reshape(1),
            "multinomial": torch.multinomial(row, 1).flatten().bincount(minlength=3) / DRAWS,
            "with replacement": torch.multinomial(row, 2, True)[:, 1].bincount(minlength=3) / DRAWS,
        }
        pairs = torch.multinomial(row, 2)
    assert not mode.kept
    for name, got in counts.items():
        expected = p[-len(got) :]
        error = (expected * (1 - expected) / DRAWS).sqrt()
        assert ((got - expected).abs() < 4.5 * error).all(), name
    # Without replacement: the second is drawn from what the first has left.
    assert (pairs[rows, 0] != pairs[rows, 1]).all()
    both = ((pairs[:, 0] == 2) & (pairs[:, 1] == 1)).double().mean()
    expected = 0.7 * 0.2 / 0.3
    assert abs(both - expected) < 4.5 * (expected * (1 - expected) / DRAWS) ** 0.5


# --- what cannot be captured, and says why --------------------------------------------------------


@pytest.mark.parametrize(("name", "objective"), REFUSED)
def test_refusal_of_an_objective_is_the_reason(name, objective):
    program, x = program_and_rows(name)

    refusal = engine.capture(program, OBJECTIVES[objective], x)

    assert isinstance(refusal, Refusal)
    assert REFUSED[name, objective] in str(refusal)


class Fickle(Parts):
    """A program whose decoder is scaled by ``factor(x)``."""

    def __init__(self, factor):
        super().__init__(decoder=(2, COLUMNS), encoder=(COLUMNS, 2))
        self.factor, self.calls = factor, 0

    def model(self, x):
        self.calls += 1
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(self.zeros(2)))
            pyro.sample("x", normal(self.decoder(z) * self.factor(self, x)), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(x), 0.5))


def more_draws_each_time(program, x):
    return sum(torch.rand((), dtype=torch.float64) for _ in range(program.calls))


DEPENDS, FROZEN = "depends on the values of tensors", "was frozen into it"
RERUN = "other values from run to run"
FICKLE = {
    "a branch on data": (lambda program, x: 2.0 if x.sum() > 0 else 1.0, DEPENDS),
    "a number read from data": (lambda program, x: x.mean().item(), DEPENDS),
    "an attribute that changes": (lambda program, x: 1.0 + 0.1 * program.calls, RERUN),
    "a slow drift, in float32": (lambda program, x: (1 - 1e-4) ** program.calls, RERUN),
    "a Python random number": (lambda program, x: random.random(), RERUN),
    "numpy of the data": (lambda program, x: torch.from_numpy(np.tanh(x.numpy())), FROZEN),
    "a list of the data": (lambda program, x: 1 + max(x[:, 0].tolist()), FROZEN),
    "a rare branch on a length": (lambda p, x: 2.0 if len((x > 9).nonzero()) else 1.0, DEPENDS),
    "the largest value, by numpy": (lambda p, x: float(1 + x.numpy().max()), FROZEN),
    "a changing number of draws": (more_draws_each_time, "the draws change from run to run"),
}


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("what", FICKLE)
def test_program_that_is_no_fixed_function_is_refused_with_a_reason(what, particles):
    """A frozen value would train on with the wrong numbers, and nobody would see it."""
    factor, reason = FICKLE[what]
    x = torch.randn(ROWS, COLUMNS, dtype=torch.float64)

    refusal = engine.capture(Fickle(factor), AEVB("A", particles), x)

    assert isinstance(refusal, Refusal)
    assert reason in str(refusal)
    assert "\n" not in str(refusal)


@pytest.mark.parametrize("what", ["numpy of the data", "a list of the data"])
def test_evaluation_in_chunks_freezes_nothing_either(what):
    """The first two chunks run the program; a graph of a later one must not differ from it."""
    factor, _ = FICKLE[what]
    program, x = Fickle(factor), torch.randn(60, COLUMNS)
    program.double()

    found = RowFunction(program, lambda p, rows: densities(p, rows, 2).log_w)
    for number, (_, rows) in enumerate(row_chunks(x.double(), 10)):
        with NoiseMode(keyed(0, number)), torch.no_grad():
            expected = densities(program, rows, 2).log_w
        torch.testing.assert_close(found(rows, 0, number), expected)


def test_a_graph_with_draws_of_its_own_is_compared_as_well():
    """Gamma draws cannot be lifted; that is no reason to trust what stands beside them."""

    class Counting(Fickle):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                rate = self.encoder(x).exp()
                pyro.sample("z", dist.Gamma(2.0 + 0 * rate, rate).to_event(1))

        def model(self, x):
            self.calls += 1
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Gamma(self.zeros(2) + 2.0, 1.0).to_event(1))
                pyro.sample("x", normal(self.decoder(z) * self.factor(self, x)), obs=x)

    x = torch.randn(ROWS, COLUMNS, dtype=torch.float64)
    steady = engine.capture(Counting(lambda p, x: 1.0), AEVB("A"), x)
    assert steady.grads.kept
    refusal = engine.capture(Counting(lambda p, x: 1.0 + 0.1 * p.calls), AEVB("A"), x)
    assert isinstance(refusal, Refusal) and RERUN in str(refusal)


def test_draws_that_no_noise_can_serve_stay_in_the_graph_and_are_named():
    """A gamma draw depends on its parameters; from one seed, graph and program still agree."""

    class Positive(Parts):
        def __init__(self):
            super().__init__(encoder=(COLUMNS, 2))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Gamma(self.zeros(2) + 2.0, 1.0).to_event(1))
                pyro.sample("x", normal(z.sum(-1, keepdim=True).expand(-1, COLUMNS)), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                rate = self.encoder(x).exp()
                pyro.sample("z", dist.Gamma(rate + 1.0, rate).to_event(1))

    program, x = Positive(), torch.rand(ROWS, COLUMNS, dtype=torch.float64)
    graph = engine.capture(program, AEVB("A"), x)
    params = {name: p.detach() for name, p in program.named_parameters()}
    args = params, x, torch.ones(ROWS, dtype=torch.float64), {}, {}

    torch.manual_seed(1)
    got, _ = graph.grads(*args, noise=graph.grads.draw(KEY))
    torch.manual_seed(1)
    expected, _ = gradient_function(program, AEVB("A"))(*args)

    assert graph.grads.kept == ("aten._standard_gamma.default",)
    assert_equal(got, expected)


@pytest.mark.parametrize("objective", [WakeSleep(2), ReweightedWakeSleep(2), ScoreFunction(2)])
@pytest.mark.parametrize("width", [5, 100])
def test_detached_draws_of_several_particles_stay_detached(objective, width, monkeypatch):
    """Nothing carries a gradient while a particle is captured, and the detachment counts later."""
    found = []

    def lift(*args, made=lifting.lift, **options):
        found.append(made(*args, **options))
        return found[-1]

    monkeypatch.setattr("pyro_vae.densities.particles.lift", lift)
    program = bernoulli_vae.build(COLUMNS, latent_dim=2, hidden_dim=width, init_std=None).double()
    x = dream(program, torch.zeros(ROWS, COLUMNS, dtype=torch.float64))[0]
    graph = engine.capture(program, objective, x)
    assert isinstance(graph, engine.Graph), str(graph)
    assert [type(f).__name__ for f in found] == ["Lifted"]  # side by side, not row after row


def test_capture_and_its_graph_leave_the_global_generator_alone():
    """Noise comes from the key, so a fit cannot change what the user draws next."""
    program, x = program_and_rows("linear_gaussian")
    before = torch.get_rng_state()

    graph = engine.capture(program, WakeSleep(), x)
    params = {name: p.detach() for name, p in program.named_parameters()}
    args = params, x, torch.ones(ROWS, dtype=torch.float64), {}, {}
    graph.grads(*args, noise=graph.grads.draw(KEY))

    assert torch.equal(torch.get_rng_state(), before)


def test_program_without_parameters_is_told_where_they_belong():
    program = Program(lambda x: None, lambda x: None)

    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        engine.capture(program, AEVB(), torch.zeros(2, 3))


def test_frozen_parameters_get_no_gradient():
    program, x = program_and_rows("linear_gaussian")
    program.weight.requires_grad_(False)

    graph = engine.capture(program, AEVB(), x)

    params = {name: p.detach() for name, p in trainable(program).items()}
    args = params, x, torch.ones(ROWS, dtype=torch.float64), {}, {}
    found, _ = graph.grads(*args, noise=graph.grads.draw(KEY))
    assert found.keys() == {n for n, _ in program.named_parameters()} - {"weight"}
