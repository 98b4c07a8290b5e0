"""The compiled engine: the same numbers from machine code, or a reason in one line."""

import copy
import functools
import math

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch._inductor
from torch import nn, optim

import pyro_vae as pv
from pyro_vae import engine
from pyro_vae.engine import choosing, fused
from pyro_vae.engine.fused import FusedStep
from pyro_vae.graphs import compiling, libraries
from pyro_vae.graphs.compiling import machine_code, pays
from pyro_vae.graphs.lifted import Refusal
from pyro_vae.objectives import AEVB, MonteCarloEM, WakeSleep
from pyro_vae.runs import storage
from pyro_vae.torch_internals import CACHE
from pyro_vae.training import fitting, setting_up
from pyro_vae.training.batches import Batches

from .programs import Parts, normal
from .quickly import some_quickly
from .saved_runs import assert_same, one_cycle
from .test_training import binary_rows, small_vae, weights

F64 = torch.float64
ADAGRAD = functools.partial(optim.Adagrad, lr=0.05)
WAITING = functools.partial(pv.optimizers.Adagrad, lr=0.05, accumulate_steps=3)
PADDED = binary_rows(40, dtype=F64)  # in batches of 16: 16, 16 and 8


def bernoulli():
    return small_vae(dtype=F64)


def train(program, x, objective=None, *, optimizer=ADAGRAD, **options):
    """A run, and the optimizer that it used; no fit may touch the global generator."""
    held = []

    def make(parameters):
        held.append(optimizer(parameters))
        return held[0]

    options = {"steps": 7, "batch_size": 16, "seed": 3, **options}
    before = torch.get_rng_state()
    run = pv.fit(program, x, objective or AEVB(), optimizer=make, **options)
    assert torch.equal(torch.get_rng_state(), before)
    return run, held[0]


def assert_alike(got, expected, tolerance=1e-10):
    """Parameters, history, the objective's state, and all that the optimizer knows."""
    (run, optimizer), (other, theirs) = got, expected
    close = functools.partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    close(weights(run.program), weights(other.program))
    close(run.state._asdict(), other.state._asdict())
    histories = [r.history.drop(columns="seconds") for r in (run, other)]
    pd.testing.assert_frame_equal(*histories, rtol=tolerance, atol=tolerance, check_like=True)
    mine, yours = optimizer.state_dict(), theirs.state_dict()
    assert mine["param_groups"] == yours["param_groups"] and mine["state"]
    close(mine["state"], yours["state"])


# --- machine code against the graph and against Pyro ----------------------------------------------


class Positive(Parts):
    """A gamma latent: its draw depends on parameters, so it stays in the graph."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(encoder=(6, 2), decoder=(2, 6))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(self.zeros(2) + 2.0, 1.0).to_event(1))
            pyro.sample("x", normal(self.decoder(z)), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            rate = self.encoder(x).exp()
            pyro.sample("z", dist.Gamma(rate + 1.0, rate).to_event(1))


CASES = {
    # Of padding, too: a move and a gradient at given z draw no noise of the short batch's form.
    "Monte Carlo EM": (bernoulli, PADDED, MonteCarloEM(2, updates_per_sample=2), {}),
    "wake-sleep, Adam, one cycle": (  # which moves the step size and the first of the betas
        bernoulli, binary_rows(48, dtype=F64), WakeSleep(),
        {"optimizer": functools.partial(optim.Adam, lr=0.02), "schedule": one_cycle},
    ),
    "gamma": (Positive, binary_rows(48, dtype=F64), AEVB("A"), {}),
}  # fmt: skip


# Quickly the one with two graphs; test_updates.py tells the optimizers from torch's.
@pytest.mark.parametrize("name", some_quickly(CASES, "Monte Carlo EM"))
def test_the_engines_end_at_the_same_numbers(name):
    build, x, objective, options = CASES[name]
    got = train(build(), x, objective, engine="compiled", **options)
    assert got[0].manifest["engine"] == "compiled" and not got[0].manifest["engine_reason"]
    for other in ("eager", "pyro"):
        expected = train(build(), x, objective, engine=other, **options)
        assert expected[0].manifest["engine"] == other
        assert_alike(got, expected)


PRIOR_AND_CLIP = {"weight_prior": 2.0, "clip": 5.0, "engine": "compiled"}


@pytest.fixture(scope="module")
def step():
    """One compiled step, for all fits of ``bernoulli()`` on 40 rows by ``PRIOR_AND_CLIP``."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        make_step = choosing.make_step

        def make(*args, **options):
            made.append(make_step(*args, **options))
            return made[0]

        patch.setattr(fitting, "make_step", make)
        train(bernoulli(), PADDED, **PRIOR_AND_CLIP)
    assert made[0].engine == "compiled"
    return made[0]


@pytest.fixture
def once(step, monkeypatch):
    monkeypatch.setattr(fitting, "make_step", lambda *args, **options: step)


@pytest.mark.parametrize("optimizer", [ADAGRAD, WAITING])
def test_padding_prior_clip_and_accumulating_steps_are_those_of_the_eager_engine(optimizer, once):
    """Nine steps are three epochs, each with a short batch; Pyro's draws for those differ."""
    got = train(bernoulli(), PADDED, optimizer=optimizer, steps=9, **PRIOR_AND_CLIP)
    assert (got[0].history.grad_norm > 5.0).any()  # the clip bites
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "make_step", choosing.make_step)
        eager = {**PRIOR_AND_CLIP, "engine": "eager"}
        expected = train(bernoulli(), PADDED, optimizer=optimizer, steps=9, **eager)
    assert_alike(got, expected)


def test_what_pads_a_batch_does_not_matter(once, monkeypatch):
    """Other rows in its place, and not a bit changes."""
    expected = train(bernoulli(), PADDED, **PRIOR_AND_CLIP)

    class Otherwise(Batches):
        def __call__(self, number):
            index, x, weight, count = super().__call__(number)
            x[count:] = 1 - x[count:]
            return index, x, weight, count

    monkeypatch.setattr(setting_up, "Batches", Otherwise)
    assert_alike(train(bernoulli(), PADDED, **PRIOR_AND_CLIP), expected, tolerance=0)


def test_a_step_that_is_not_finite_writes_nothing(once):
    """T17: parameters, accumulators and counts are those before; site and step are named."""
    program, held, kept = bernoulli(), [], []

    def spoil(record):
        if record.step == 2:
            with torch.no_grad():
                program.likelihood.network[2].bias[0] = math.inf
            kept.extend((weights(program), copy.deepcopy(held[0].state_dict())))

    def optimizer(parameters):
        held.append(WAITING(parameters))
        return held[0]

    with pytest.raises(ValueError, match=r'step 3: .*model\'s site "x"'):
        train(program, PADDED, optimizer=optimizer, callbacks=[spoil], **PRIOR_AND_CLIP)
    assert torch.equal(weights(program), kept[0])
    assert_same(held[0].state_dict(), kept[1])
    assert kept[1]["param_groups"][0]["steps_taken"] == kept[1]["state"][0]["step"] == 2


@pytest.fixture
def asked(monkeypatch):
    """How many updates were asked for at a time."""
    numbers = []
    answer = FusedStep.answer

    def spy(self, asks):
        numbers.append(len(asks[0]))
        return answer(self, asks)

    monkeypatch.setattr(FusedStep, "answer", spy)
    monkeypatch.setattr(fused, "SECONDS_AT_ONCE", 60.0)
    return numbers


def test_updates_that_are_prepared_together_are_those_taken_one_by_one(once, asked, monkeypatch):
    """Records, evaluations and saves see the program at their own step."""
    seen = []
    options = {
        **PRIOR_AND_CLIP, "optimizer": WAITING, "steps": 1000, "evaluate_every": 13,
        "validation": PADDED, "callbacks": [lambda r: seen.append(weights(r.program).sum())],
    }  # fmt: skip
    together = train(bernoulli(), PADDED, **options)
    assert max(asked) == 5 and len(asked) < 300  # 5 to a record, fewer to an evaluation
    monkeypatch.setattr(fused, "AT_ONCE", 1)
    assert_alike(train(bernoulli(), PADDED, **options), together, tolerance=0)
    assert set(asked[-1000:]) == {1} and seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def test_updates_after_one_that_is_not_finite_write_nothing(once, asked, monkeypatch):
    """The fourth of five that were prepared together fails, and the fifth would not have."""
    held = []

    class Spoilt(Batches):
        def __call__(self, number):
            index, x, weight, count = super().__call__(number)
            return index, x * math.inf if number == 503 else x, weight, count

    def optimizer(parameters):
        held.append(WAITING(parameters))
        return held[-1]

    options = {**PRIOR_AND_CLIP, "optimizer": optimizer}
    expected = bernoulli()
    train(expected, PADDED, **{**options, "steps": 503})
    monkeypatch.setattr(setting_up, "Batches", Spoilt)
    program = bernoulli()
    with pytest.raises(ValueError, match="step 504: the loss is nan"):
        train(program, PADDED, **{**options, "steps": 1000})
    assert asked[-1] == 5 and torch.equal(weights(program), weights(expected))
    assert_same(held[1].state_dict(), held[0].state_dict())


def test_a_save_after_so_many_updates_is_not_late(tmp_path, once, asked):
    options = {**PRIOR_AND_CLIP, "steps": 1000, "callbacks": [lambda r: r.step > 700]}
    saved = {"out": tmp_path, "checkpoint_every": 7}
    train(bernoulli(), PADDED, **options, **saved)
    assert max(asked) == 5 and {1, 2, 4} <= set(asked)  # 5 to a record, fewer to a seventh


def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(tmp_path, once):
    options = {"optimizer": WAITING, **PRIOR_AND_CLIP}
    whole = train(bernoulli(), PADDED, out=tmp_path / "whole", **options)
    for steps in (4, 5, 7):
        again = {"out": tmp_path / "parts", "resume": True, "steps": steps}
        parts = train(bernoulli(), PADDED, **{**options, **again})
    assert_same(storage.read(tmp_path / "whole"), storage.read(tmp_path / "parts"))
    assert_alike(parts, whole, tolerance=0)


def test_the_optimizer_can_be_stepped_by_hand_afterwards(once):
    """In the compiled step all parameters share one count; afterwards each has its own."""
    run, optimizer = train(bernoulli(), PADDED, **PRIOR_AND_CLIP)
    for parameter in run.program.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert {float(state["step"]) for state in optimizer.state.values()} == {8.0}


# --- what cannot be compiled ----------------------------------------------------------------------


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 6)

    def forward(self, z):
        logits = self.net(z)
        return dist.Bernoulli(logits=logits / 2 if logits.max() > 9 else logits).to_event(1)


NADAM = functools.partial(optim.NAdam, lr=1e-3)
IMPOSSIBLE = {
    "not captured: Python code depends": ("eager", lambda: small_vae(likelihood=Branching()), {}),
    "NAdam with these options is not a part": ("eager", small_vae, {"optimizer": NADAM}),
    "TraceGraph_ELBO is Pyro's own": (
        "pyro", small_vae, {"objective": pyro.infer.TraceGraph_ELBO()}
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", IMPOSSIBLE)
def test_what_cannot_be_compiled_is_refused_and_auto_says_why_not(reason, monkeypatch):
    instead, build, options = IMPOSSIBLE[reason]
    match = rf'engine="compiled" cannot run this: .*{reason}.*engine="auto".* as "{instead}"'
    with pytest.raises(ValueError, match=match):
        train(build(), binary_rows(), engine="compiled", **options)
    monkeypatch.setattr(compiling, "pays", lambda graphs: True)
    run, _ = train(build(), binary_rows(), steps=2, **options)
    assert run.manifest["engine"] == instead and reason in run.manifest["engine_reason"]


def test_a_missing_compiler_is_named_with_what_to_install(monkeypatch):
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    def without(*args, **options):
        raise InductorError(InvalidCxxCompiler(), None)  # what torch raises under CXX=/nonexistent

    monkeypatch.setattr(torch._inductor, "standalone_compile", without)
    monkeypatch.setattr(libraries, "loaded", lambda key, graph: None)
    reason = r"no C\+\+ compiler was found \(on Debian or Ubuntu: apt install g\+\+\)"
    with pytest.raises(ValueError, match=rf"cannot run this: not compiled: {reason}; engine="):
        train(bernoulli(), PADDED, engine="compiled")
    monkeypatch.setattr(compiling, "pays", lambda graphs: True)
    run, _ = train(bernoulli(), PADDED, steps=2)
    assert run.manifest["engine"] == "eager" and "apt install" in run.manifest["engine_reason"]


def test_code_that_gives_other_numbers_is_refused(monkeypatch):
    """A result off by 1e-6, an input that is not written, or one that is."""
    x, y = torch.linspace(0, 1, 5, dtype=F64), torch.zeros(5, dtype=F64)

    def right(x, y):
        y.copy_(x.exp())
        return [x.sin()]

    def off(x, y):
        return [right(x, y)[0] + 1e-6]

    def unwritten(x, y):
        return [x.sin()]

    def written(x, y):
        x.add_(1e-6)
        return right(x, y)

    graph = torch.fx.experimental.proxy_tensor.make_fx(right)(x.clone(), y.clone())
    for code in (right, off, unwritten, written):
        compile_ = functools.partial(lambda code, *args, **options: code, code)
        monkeypatch.setattr(torch._inductor, "standalone_compile", compile_)
        monkeypatch.setattr(libraries, "loaded", lambda key, graph: None)
        made = machine_code(graph, x, y)
        assert made is right or (isinstance(made, Refusal) and "other numbers" in str(made))
        assert (made is right) == (code is right)
        assert not y.any() and x[0] == 0  # the examples are copied


def test_where_writing_in_place_goes_wrong_what_is_new_is_copied_over(monkeypatch, tmp_path):
    """torch 2.11 may write a weight before its last reader, and 2.13 fails on some programs."""
    made = []

    def code_of(graph, *tensors, **options):
        made.append(graph)
        return Refusal("other numbers") if len(made) == 1 else graph

    expected = train(bernoulli(), PADDED, engine="eager")
    monkeypatch.setattr(compiling, "machine_code", code_of)
    monkeypatch.setenv(CACHE, str(tmp_path))
    assert_alike(train(bernoulli(), PADDED, engine="compiled"), expected)
    assert len(made) == 2


def test_compiling_pays_from_some_number_of_steps_on():
    """A function of graph and budget alone, so that a run can be repeated."""
    graph = engine.capture(bernoulli(), AEVB(), PADDED[:16])
    answers = [pays({graph.grads: 10**k}) for k in range(1, 8)]
    assert not answers[0] and answers[-1] and answers == sorted(answers)
    other = engine.capture(small_vae(seed=1, dtype=F64), AEVB(), PADDED[16:32])
    assert answers == [pays({other.grads: 10**k}) for k in range(1, 8)]
    assert not pays({})
