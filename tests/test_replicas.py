"""Replicas: side by side, and each one the run that it would have been alone."""

import copy
import functools
import io
import math

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn, optim

import pyro_vae as pv
from pyro_vae.engine import choosing
from pyro_vae.engine.fused import FusedStep
from pyro_vae.objectives import AEVB, MonteCarloEM, ScoreFunction, WakeSleep
from pyro_vae.training import fitting, setting_up
from pyro_vae.training.batches import Batches
from pyro_vae.training.loop import Loop

from .quickly import some_quickly
from .saved_runs import assert_same
from .test_compiled import Branching, Positive
from .test_training import binary_rows, small_vae, weights

F64 = torch.float64
X = binary_rows(40, dtype=F64)  # in batches of 16: 16, 16 and 8
HELD_OUT = binary_rows(30, seed=2, dtype=F64)
RATES = [0.02, 0.05, 0.1]
OBJECTIVES = {
    "AEVB": AEVB(), "wake-sleep": WakeSleep(), "Monte Carlo EM": MonteCarloEM(2, 0.9, 2)
}  # fmt: skip


def bernoulli(seed=0):
    return small_vae(seed, dtype=F64)


def fit(program=None, x=X, objective=None, **options):
    options = {"steps": 7, "batch_size": 16, "engine": "eager", **options}
    return pv.fit(bernoulli() if program is None else program, x, objective, **options)


def assert_alike(got, expected, tolerance=1e-10):
    """Parameters, history, state and manifest; with replicas, how and how fast may differ."""
    close = functools.partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    for run, other in zip(got, expected, strict=True):
        close(weights(run.program), weights(other.program))
        close(run.state._asdict(), other.state._asdict())
        histories = [r.history.drop(columns="seconds") for r in (run, other)]
        pd.testing.assert_frame_equal(*histories, rtol=tolerance, atol=tolerance, check_like=True)
        how = {"seconds", "engine", "engine_reason"}
        manifests = [{k: v for k, v in r.manifest.items() if k not in how} for r in (run, other)]
        assert_same(*manifests)


@pytest.fixture
def made(monkeypatch):
    """The steps that fits have made; single eager runs of one objective share a graph."""
    steps, shared = [], {}

    def make(learner, engine, ask, **options):
        key = id(learner.objective), engine, options["replicas"]
        if key not in shared or options["replicas"]:
            shared[key] = choosing.make_step(learner, engine, ask, **options)
        steps.append(shared[key])
        return steps[-1]

    monkeypatch.setattr(fitting, "make_step", make)
    return steps


# --- each is its single run -----------------------------------------------------------------------


# Monte Carlo EM is told from its single runs below, where a callback ends it.
@pytest.mark.parametrize("name", some_quickly(OBJECTIVES, "AEVB", "wake-sleep"))
def test_replicas_are_their_single_runs(name, made):
    """Seeds count on from the first; the short last batch is padded in all of them."""
    program, objective = bernoulli(), OBJECTIVES[name]
    singles = [
        fit(copy.deepcopy(program), objective=objective, seed=5 + r, lr=RATES[r]) for r in range(3)
    ]
    for engine in ("eager", "compiled") if name == "AEVB" else ("eager",):
        own = copy.deepcopy(program)

        runs = fit(own, objective=objective, replicas=3, seed=5, lr=RATES, engine=engine)

        assert isinstance(made[-1], FusedStep) and made[-1].stacked and not made[-1].reason
        assert {run.manifest["engine"] for run in runs} == {engine}
        assert_alike(runs, singles)
        assert runs[0].program is own
        assert [run.manifest["seed"] for run in runs] == [5, 6, 7]
        assert [run.manifest["lr"] for run in runs] == RATES


def test_moves_of_all_replicas_are_one_compiled_function(made):
    """Each with its own step of the chains, which differ from the first refresh on."""
    program, objective = bernoulli(), MonteCarloEM(2, 0.9, 2)
    options = {"objective": objective, "steps": 12}
    singles = [fit(copy.deepcopy(program), seed=5 + r, lr=RATES[r], **options) for r in range(2)]
    runs = fit(program, replicas=2, seed=5, lr=RATES[:2], engine="compiled", **options)
    assert made[-1]._unit is not None and made[-1].stacked
    assert_alike(runs, singles)
    assert runs[0].state.shared["log_step"] != runs[1].state.shared["log_step"]


def halving(optimizer):
    return optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)


def test_programs_of_their_own_with_all_that_fit_offers(made):
    """Initializations, Adam, a schedule, a weight prior, held-out curves; a clip that bites one."""
    programs = [bernoulli(seed) for seed in range(3)]
    with torch.no_grad():
        programs[1].likelihood.network[2].bias.add_(4.0)  # wrong about most pixels: steep
    options = {
        "optimizer": optim.Adam, "schedule": halving, "weight_prior": 2.0, "lr": 0.01,
        "seed": [2] * 3, "validation": HELD_OUT, "evaluate_every": 3,
    }  # fmt: skip
    options["objective"] = AEVB()
    alone = {**options, "seed": 2}
    free = [fit(copy.deepcopy(p), **alone) for p in programs]
    low, high, also_low = (run.history.grad_norm.max() for run in free)
    clip = (high + max(low, also_low)) / 2
    assert high > 1.2 * clip > 1.2 * max(low, also_low)
    singles = [fit(copy.deepcopy(p), clip=clip, **alone) for p in programs]

    runs = fit(programs, clip=clip, **options)

    assert isinstance(made[-1], FusedStep)
    assert [run.program for run in runs] == programs
    assert_alike(runs, singles)
    bitten = [not torch.equal(weights(a.program), weights(b.program))
              for a, b in zip(singles, free, strict=True)]  # fmt: skip
    assert bitten == [False, True, False]
    assert all(run.history.validation_bound.count() == 3 for run in runs)
    for run in runs:
        last = float(pv.elbo(run.program, HELD_OUT, seed=2).mean())
        assert run.history.validation_bound.iloc[-1] == pytest.approx(last, rel=1e-12)


ONE_BY_ONE = {
    "aten._standard_gamma.default draws by itself": (Positive, {"objective": AEVB("A")}),
    "NAdam with these options": (bernoulli, {"optimizer": optim.NAdam, "lr": 1e-3}),
    "Python code depends on the values": (lambda: small_vae(likelihood=Branching()).double(), {}),
    "": (bernoulli, {"engine": "pyro"}),
}


@pytest.mark.parametrize("reason", ONE_BY_ONE)
def test_what_cannot_be_batched_runs_one_after_another_and_says_why(reason):
    build, options = ONE_BY_ONE[reason]
    program = build()
    singles = [fit(copy.deepcopy(program), seed=seed, **options) for seed in (5, 6, 7)]

    runs = fit(program, replicas=3, seed=5, **options)

    assert_alike(runs, singles, tolerance=0)
    assert all(reason in run.manifest["engine_reason"] for run in runs)
    assert all(bool(run.manifest["engine_reason"]) == bool(reason) for run in runs)


def test_noise_is_not_shared():
    """One seed and one step size are one run; another seed is another from the first step on."""
    runs = fit(seed=[1, 2, 1], replicas=3, steps=2)
    first, other, same = (weights(run.program) for run in runs)
    assert torch.equal(first, same)
    assert (first - other).abs().max() > 1e-3
    assert runs[0].history.loss[0] == runs[2].history.loss[0] != runs[1].history.loss[0]


# --- what they leave ------------------------------------------------------------------------------


def test_each_program_owns_its_parameters_and_goes_on_alone(tmp_path):
    """Views of what was stacked would be saved with the parameters of all the others."""
    runs = fit(replicas=8, seed=5, optimizer=optim.Adam)
    for p in runs[3].program.parameters():
        assert p.is_leaf and p.is_contiguous()
        assert p.untyped_storage().nbytes() == p.numel() * p.element_size()
    sizes = []
    for program in (runs[3].program, bernoulli()):
        torch.save(program.state_dict(), buffer := io.BytesIO())
        sizes.append(buffer.tell())
    assert sizes[0] == sizes[1]

    runs[3].save(tmp_path)
    loaded = pv.load(tmp_path)
    assert torch.equal(weights(loaded.program), weights(runs[3].program))
    fresh = bernoulli(9)
    fresh.load_state_dict(runs[3].program.state_dict())
    assert torch.equal(weights(fresh), weights(runs[3].program))
    before = [weights(run.program) for run in runs]
    again, alone = fit(runs[3].program), fit(fresh)
    assert torch.equal(weights(again.program), weights(alone.program))
    moved = [not torch.equal(weights(r.program), w) for r, w in zip(runs, before, strict=True)]
    assert moved == [r == 3 for r in range(8)]


def test_a_callback_that_ends_one_ends_all_at_the_same_step():
    """Also where it is the last replica's, and the chains of others were due to move."""
    seen = []

    def callback(record):
        seen.append((id(record.program), record.step))
        return len(seen) == 3 * 4  # the third replica's fourth record

    options = {"objective": MonteCarloEM(2, 0.9, 2), "steps": 100}
    runs = fit(replicas=3, callbacks=iter([callback]), **options)

    assert [step for _, step in seen] == [n for n in range(1, 5) for _ in range(3)]
    assert len({who for who, _ in seen}) == 3
    ends = [lambda record: record.step == 4]
    singles = [fit(seed=seed, callbacks=ends, **options) for seed in range(3)]
    assert_alike(runs, singles)
    for run in runs:
        assert (run.manifest["steps"], run.manifest["stopped"]) == (4, "callback")
        assert run.manifest["leapfrogs"] == 2 * 32  # two moves of 16 rows
        assert list(run.history.step) == [1, 2, 3, 4]


@pytest.mark.parametrize("engine", ["eager", "pyro"])
def test_an_error_says_which_replica(engine):
    programs = [bernoulli(seed) for seed in range(3)]
    with torch.no_grad():
        programs[1].likelihood.network[2].bias[0] = math.inf
    before = weights(programs[1])
    message = r'^replica 1 \(seed 6, lr 0.05\), step 1: the loss is nan .* model\'s site "x"'
    with pytest.raises(ValueError, match=message):
        fit(programs, seed=5, lr=RATES, engine=engine)
    assert torch.equal(weights(programs[1]), before)
    assert all(p.untyped_storage().nbytes() == 8 * p.numel() for p in programs[0].parameters())


@pytest.mark.parametrize("engine", ["eager", "pyro"])
def test_where_one_fails_the_others_have_taken_what_their_records_say(engine, monkeypatch):
    """The second breaks at its fourth step, before the third is asked, or together with it."""
    loops = []

    class Spoilt(Batches):
        def __call__(self, number):
            index, x, weight, count = super().__call__(number)
            return index, x * math.inf if number == 3 and self._seed == 6 else x, weight, count

    def loop(**options):
        loops.append(Loop(**options))
        return loops[-1]

    monkeypatch.setattr(setting_up, "Batches", Spoilt)
    monkeypatch.setattr(setting_up, "Loop", loop)
    programs = [bernoulli(seed) for seed in range(3)]
    with pytest.raises(ValueError, match=r"^replica 1 \(seed 6, lr 0.05\), step 4: "):
        fit(programs, seed=5, lr=RATES, engine=engine)
    monkeypatch.setattr(setting_up, "Batches", Batches)
    assert [one.progress.steps for one in loops[:3]] == (
        [3] * 3 if engine == "eager" else [4, 3, 3]
    )
    for r, (program, one) in enumerate(zip(programs, loops[:3], strict=True)):
        again = bernoulli(r)
        fit(again, seed=5 + r, lr=RATES[r], engine=engine, steps=one.progress.steps)
        torch.testing.assert_close(weights(program), weights(again), rtol=1e-10, atol=1e-10)


# --- refusals -------------------------------------------------------------------------------------


def test_impossible_replicas_are_refused_by_name():
    twice = bernoulli()
    for options, message in (
        ({"replicas": 3, "lr": [0.1, 0.2]}, r"\{'lr': 2, 'replicas': 3\}, expected one whole"),
        ({"seed": [1, 2], "lr": [0.1]}, r"\{'seed': 2, 'lr': 1\}"),
        ({"replicas": 0}, "replicas is 0, expected a whole number from 1 on"),
        ({"replicas": 1.5}, "replicas is 1.5, expected a whole"),
        ({"replicas": "many"}, "replicas is 'many' .*expected a whole number"),
        ({"seed": []}, r"\{'seed': 0\}"),
        ({"program": [twice, twice]}, "program holds one program twice"),
        ({"replicas": 2, "out": "runs"}, r"out is 'runs' with replicas.*run.save\(path\)"),
        ({"replicas": 2, "early_stopping": 2, "validation": X}, "early_stopping is 2 with repl"),
        ({"replicas": 2, "optimizer": optim.NAdam, "engine": "compiled"}, "run this: .*NAdam"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            fit(**options)


class Shifted(nn.Module):
    """A likelihood with a constant of its own."""

    def __init__(self, shift):
        super().__init__()
        self.net, self.shift = nn.Linear(2, 6), shift

    def forward(self, z):
        return dist.Bernoulli(logits=self.net(z) + self.shift).to_event(1)


def test_programs_that_differ_in_more_than_parameters_are_refused():
    """The first program's graph stands for all: what is constant in it must be so in the others."""
    wider = [bernoulli(), small_vae(1, F64, hidden_dim=9)]
    with pytest.raises(ValueError, match=r"program\[1\] has parameters .*\(9, 6\).*same options"):
        fit(wider)
    shifted = [small_vae(0, F64, likelihood=Shifted(shift)) for shift in (0.0, 0.0, 0.5)]
    with pytest.raises(ValueError, match=r"program\[2\] has loss .* where program\[0\] with"):
        fit(shifted)
    singles = [fit(copy.deepcopy(p), seed=r, engine="pyro") for r, p in enumerate(shifted)]
    assert_alike(fit(shifted, engine="pyro"), singles, tolerance=0)


class Clusters(pv.Program):
    """A discrete latent, whose closed KL in torch writes through a mask."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 3).to(F64), nn.Linear(3, 6).to(F64)

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=torch.zeros(3, dtype=F64)))
            logits = self.decoder(torch.eye(3, dtype=F64)[c])
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=self.encoder(x)))


@pytest.mark.parametrize(
    "objective",
    some_quickly([ScoreFunction(3), ScoreFunction(), WakeSleep()], "ScoreFunction()"),
    ids=repr,
)
def test_replicas_of_a_discrete_latent_are_their_single_runs(objective):
    torch.manual_seed(0)
    program = Clusters()
    alone = [fit(copy.deepcopy(program), objective=objective, seed=seed) for seed in (0, 1)]
    together = fit(program, objective=objective, replicas=2)

    assert not together[0].manifest["engine_reason"]
    assert_alike(together, alone)
