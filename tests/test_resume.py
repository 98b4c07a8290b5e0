"""Runs that go on: the same bits after an interruption, and refusals of another run."""

import dataclasses
import functools
import re
import signal

import pandas as pd
import pyro
import pytest
import torch

import pyro_vae as pv
from pyro_vae.engine.learner import Learner
from pyro_vae.models import gaussian_vae
from pyro_vae.objectives import AEVB, WakeSleep
from pyro_vae.runs import storage
from pyro_vae.training import checkpoint, fitting
from pyro_vae.training.loop import Progress

from .quickly import some_quickly
from .saved_runs import (
    HELD_OUT,
    Counting,
    X,
    assert_same,
    fit,
    one_cycle,
    optim,
    rows_of_pixels,
    small_vae,
    two_schedules,
)

CASES = {
    "Adagrad": {},
    "Adam, one cycle": {"optimizer": optim.Adam, "schedule": one_cycle},
    "NAdam in float64, steps in a row": {
        "optimizer": optim.NAdam, "schedule": two_schedules, "dtype": torch.float64
    },
    "SGD with momentum, clipped": {
        "optimizer": functools.partial(optim.SGD, lr=0.01, momentum=0.9), "clip": 5.0
    },
    "wake-sleep": {
        "objective": WakeSleep(), "weight_prior": 1.0,
        "optimizer": functools.partial(pv.optimizers.Adagrad, lr=0.05, accumulate_steps=5),
    },
    "stateful objective": {"objective": Counting()},
    "dynamic binarization": {
        "x": pv.datasets.Data.from_pixels(rows_of_pixels(), binarize="dynamic")
    },
    "early stopping": {
        "lr": 1e-12, "optimizer": optim.SGD, "validation": HELD_OUT, "evaluate_every": 5,
        "early_stopping": 2,
    },
}  # fmt: skip


def captured_once():
    made, make_step = [], fitting.make_step

    def make(*args, **options):
        made[:] = made or [make_step(*args, **options)]
        return made[0]

    return make


def with_manifest(folder, **changes):
    """The same checkpoint, whole, with another manifest."""
    saved = storage.read(folder)
    saved["manifest"] |= changes
    storage.write(folder, saved)


# Every case in one engine quickly, two in both: the engine takes the step, the loop is one.
@pytest.mark.parametrize(
    ("name", "engine"),
    some_quickly(
        [(name, engine) for name in CASES for engine in ("eager", "pyro")],
        *((name, "pyro") for name in CASES),
        ("Adam, one cycle", "eager"),
        ("stateful objective", "eager"),
    ),
)
def test_a_run_that_was_interrupted_thrice_ends_with_the_same_bits(
    tmp_path, stop, monkeypatch, name, engine
):
    """In mid-epoch (4 batches each), mid-window (4 steps), mid-cycle (3) and at their ends.

    Everything that is saved is compared: parameters, optimizer, schedule, state, history.
    """
    options = {**CASES[name], "engine": engine}
    if engine == "eager":  # a graph holds no parameters, so one capture serves all five fits
        monkeypatch.setattr(fitting, "make_step", captured_once())
    whole = fit(out=tmp_path / "whole", **options)
    for number, step in enumerate((3, 4, 9)):
        stop[step] = signal.SIGINT
        with pytest.raises(KeyboardInterrupt, match=f"after step {step}; .*resume=True"):
            at = tmp_path / "parts"
            fit(small_vae(seed=number), out=at, resume=number > 0, **options)
    parts = fit(small_vae(seed=7), out=tmp_path / "parts", resume=True, **options)
    assert_same(storage.read(tmp_path / "whole"), storage.read(tmp_path / "parts"))
    assert_same(dict(whole.program.named_parameters()), dict(parts.program.named_parameters()))
    assert_same(whole.manifest, parts.manifest)
    assert_same(whole.state._asdict(), parts.state._asdict())
    history = [run.history.drop(columns="seconds") for run in (whole, parts)]
    pd.testing.assert_frame_equal(*history, check_exact=True)
    assert parts.history.seconds.is_monotonic_increasing
    expected = "early stopping" if name == "early stopping" else "budget"
    assert parts.manifest["stopped"].startswith(expected)


def test_a_run_that_was_killed_goes_on_from_the_last_regular_save(tmp_path, stop, monkeypatch):
    """No signal and no goodbye: steps 7 and 8 are done again, to the same bits."""

    class PowerCut(BaseException):
        path = "nowhere"  # as of one that has been saved

    whole = fit(out=tmp_path / "whole", objective=Counting())
    look = Learner.require_finite

    def cut(self, means, ask, grads=None):
        if ask.key[-1] == 8:
            raise PowerCut
        return look(self, means, ask, grads)

    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(Learner, "require_finite", cut)
        fit(out=tmp_path / "cut", checkpoint_every=3, objective=Counting())
    loaded = pv.load(tmp_path / "cut")
    assert (loaded.manifest["steps"], loaded.manifest["stopped"]) == (6, "unfinished")
    assert "AEVB" not in repr(loaded) and "Counting" in repr(loaded)
    fit(out=tmp_path / "cut", resume=True, objective=Counting())
    assert_same(storage.read(tmp_path / "whole"), storage.read(tmp_path / "cut"))
    assert whole.manifest["steps"] == 19


def test_the_loops_progress_is_saved_by_name(tmp_path):
    """A field that somebody adds to it is saved with no change elsewhere."""
    fit(out=tmp_path, steps=6, validation=HELD_OUT, evaluate_every=2)
    saved = storage.read(tmp_path)["progress"]
    assert list(saved) == [field.name for field in dataclasses.fields(Progress)]
    assert (saved["steps"], saved["samples"], saved["batches"]) == (6, 16 * 5 + 2, 6)
    assert saved["best"].shape == (len(HELD_OUT),)


def test_auto_goes_on_with_the_engine_of_the_checkpoint(tmp_path):
    """A larger budget would have compiled, and a run does not change its rounding halfway."""
    fit(out=tmp_path, engine="auto", steps=2, validation=X)
    run = fit(
        small_vae(seed=5), out=tmp_path, engine="auto", steps=10**7, resume=True,
        validation=X, evaluate_every=1, callbacks=[lambda record: True],
    )  # fmt: skip
    assert run.manifest["engine"] == "eager" and run.manifest["stopped"] == "callback"


def test_a_finished_run_takes_no_step_and_writes_nothing(tmp_path, monkeypatch):
    first = fit(out=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    monkeypatch.setattr(Learner, "require_finite", None)  # no step can be taken
    second = fit(small_vae(seed=5), out=tmp_path, resume=True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    pd.testing.assert_frame_equal(first.history, second.history, check_exact=True)
    assert_same(dict(first.program.named_parameters()), dict(second.program.named_parameters()))
    assert second.manifest["stopped"] == "budget"


def test_a_larger_budget_extends_a_finished_run(tmp_path):
    """The parameters are those of one long run; a smaller budget is refused."""
    fit(out=tmp_path, steps=7)
    extended = fit(small_vae(seed=5), out=tmp_path, steps=19, resume=True)
    assert_same(
        dict(fit().program.named_parameters()), dict(extended.program.named_parameters())
    )  # fmt: skip
    with pytest.raises(ValueError, match="the budget is 18 steps, the checkpoint has taken 19"):
        fit(out=tmp_path, steps=18, resume=True)


def test_what_a_callback_ended_stays_ended_until_the_budget_grows(tmp_path):
    run = fit(out=tmp_path, callbacks=[lambda record: record.step == 5])
    assert run.manifest["stopped"] == "callback"
    again = fit(out=tmp_path, resume=True)
    assert (again.manifest["stopped"], again.manifest["steps"]) == ("callback", 5)
    assert fit(out=tmp_path, steps=20, resume=True).manifest["steps"] == 20


def test_resume_starts_where_nothing_was_saved(tmp_path):
    with pytest.warns(pv.PyroVaeWarning, match="holds no run yet: resume=True starts anew"):
        run = fit(out=tmp_path / "new" / "folder", resume=True)
    assert_same(dict(fit().program.named_parameters()), dict(run.program.named_parameters()))


def test_a_saved_run_is_not_overwritten(tmp_path):
    fit(out=tmp_path)
    with pytest.raises(ValueError, match=r"holds a saved run.*resume=True.*another folder"):
        fit(out=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out=.*file.*name another folder"):
        fit(out=tmp_path / "file")


@pytest.mark.parametrize("option", [{"resume": True}, {"checkpoint_every": 3}])
def test_options_of_saving_need_a_folder(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} needs a folder: pass out="):
        fit(**option)
    with pytest.raises(ValueError, match="checkpoint_every is -1"):
        fit(out="anywhere", checkpoint_every=-1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run for those that are refused, which leave it as it is."""
    folder = tmp_path_factory.mktemp("saved")
    fit(out=folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed is 4, the checkpoint has 3"),
        ({"batch_size": 15}, "batch_size is 15, the checkpoint has 16"),
        ({"objective": AEVB("A")}, "objective.estimator is 'A', the checkpoint has 'B'"),
        ({"optimizer": optim.Adam}, "optimizer is 'Adam', the checkpoint has 'Adagrad'"),
        ({"lr": 0.1}, "optimizer lr is 0.1, the checkpoint has 0.02"),
        ({"optimizer": functools.partial(optim.Adagrad, lr=0.02, eps=1e-3)}, "optimizer eps is"),
        ({"schedule": two_schedules}, "schedule is 'SequentialLR', the checkpoint has None"),
        ({"weight_prior": 1.0}, "weight_prior is 1.0, the checkpoint has 0.0"),
        ({"clip": 1.0}, "clip is 1.0, the checkpoint has None"),
        ({"engine": "eager"}, "engine is 'eager', the checkpoint has 'pyro'"),
        ({"dtype": torch.float64}, "dtype is 'float64', the checkpoint has 'float32'"),
        ({"x": X[:49]}, "num_data is 49, the checkpoint has 50"),
        ({"x": 1 - X}, "data_digest is"),
        ({"x": X.double()}, "data_digest is"),
        ({"validation": HELD_OUT}, "validation_digest is"),
    ],
)
def test_resume_refuses_another_run_and_names_what_differs(saved, change, message):
    """The program is as it was afterwards: a refusal changes nothing."""
    program = small_vae(seed=5, dtype=change.get("dtype", torch.float32))
    before = {name: value.clone() for name, value in program.named_parameters()}
    with pytest.raises(ValueError, match=f"holds another run: .*{message}.*: pass the settings"):
        fit(program, out=saved, resume=True, **change)
    assert_same(before, dict(program.named_parameters()))


def test_resume_names_all_differences_at_once(saved):
    with pytest.raises(ValueError, match=r"seed is 4.*clip is 1.0.*optimizer lr is 0.5"):
        fit(out=saved, resume=True, lr=0.5, clip=1.0, seed=4)


def test_resume_refuses_another_program(saved):
    with pytest.raises(ValueError, match=r"network.0.weight\" has shape \(9, 2\), .* \(8, 2\)"):
        fit(small_vae(hidden_dim=9), out=saved, resume=True)
    torch.manual_seed(0)
    other = gaussian_vae.build(6, latent_dim=2, hidden_dim=8)
    with pytest.raises(ValueError, match="program is 'GaussianVAE', the checkpoint has 'Bern"):
        fit(other, out=saved, resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threads": 64}, "threads is 1, was 64"),
        ({"device": "cuda:0"}, "device is cpu, was cuda:0"),
        ({"source_digest": "0" * 64}, "source_digest is [0-9a-f]+, was 000"),
        ({"versions": {"torch": "1.0"}}, f"torch is {re.escape(torch.__version__)}, was 1.0"),
    ],
)
def test_resume_warns_where_the_surroundings_differ(tmp_path, change, message):
    """T27: these change the last bits, and are no reason to lose a run."""
    fit(out=tmp_path, steps=3)
    with_manifest(tmp_path, **change)
    with pytest.warns(pv.PyroVaeWarning, match=message) as caught:
        fit(out=tmp_path, steps=6, resume=True)
    assert caught[0].filename in (checkpoint.__file__, fit.__code__.co_filename)


def test_data_have_a_digest_in_every_form():
    """Equal values of one dtype are equal data, whatever holds them; order of names aside."""
    from pyro_vae.runs.manifest import data_digest

    whole = data_digest(X)
    assert whole == data_digest(X.numpy()) == data_digest({"x": X}) and len(whole) == 64
    assert data_digest(X[::2]) == data_digest(X[::2].clone()) == data_digest(X.numpy()[::2])
    u = torch.arange(50)
    assert data_digest({"x": X, "u": u}) == data_digest({"u": u, "x": X})
    others = [X.double(), X.reshape(25, 12), 1 - X, {"x": X, "u": u}, {"x": X, "v": u}]
    assert len({whole, *map(data_digest, others)}) == 6
    data = pv.datasets.Data.from_pixels(X)
    assert data_digest(data) == data.digest


def steps_of(size=2, gamma=0.1):
    return lambda optimizer: optim.lr_scheduler.StepLR(optimizer, size, gamma=gamma)


def factors(value):
    return lambda optimizer: optim.lr_scheduler.LambdaLR(optimizer, lambda step: value)


@pytest.mark.parametrize(
    ("schedule", "other", "said"),
    [
        (steps_of(), steps_of(gamma=0.9), "schedule.gamma is 0.9, the checkpoint has 0.1"),
        (steps_of(), steps_of(3), "schedule.step_size is 3, the checkpoint has 2"),
        (
            factors(1.0),
            factors(0.0),
            "schedule.lr_lambdas[0].value, as <lambda> has it, is 0.0",
        ),
        (
            functools.partial(optim.lr_scheduler.ExponentialLR, gamma=0.5),
            functools.partial(optim.lr_scheduler.ExponentialLR, gamma=0.9),
            "schedule.gamma is 0.9",
        ),
    ],
)
def test_a_schedule_with_other_arguments_is_another_run(tmp_path, schedule, other, said):
    """Its class and state would come back, and go on with one argument or the other."""
    fit(out=tmp_path, schedule=schedule, steps=4)
    with pytest.raises(ValueError, match=re.escape(said)):
        fit(out=tmp_path, schedule=other, steps=8, resume=True)
    again = fit(out=tmp_path, schedule=schedule, steps=8, resume=True)
    assert again.manifest["steps"] == 8


class Plain(torch.nn.Module):
    """A prior with no record, which holds its scale in one of several ways."""

    def __init__(self, how, scale):
        super().__init__()
        self.zero = torch.nn.Parameter(torch.zeros(2))
        if how == "list":
            self._held = [scale]
        elif how == "buffer":
            self.register_buffer("held", torch.tensor(scale), persistent=False)
        elif how == "function":
            self.act = torch.tanh if scale == 1.0 else torch.relu
        self.scale_of = (lambda: scale) if how == "closure" else None
        self.object = object()  # which nobody can compare

    def forward(self):
        return pyro.distributions.Normal(self.zero, 1.0).to_event(1)


@pytest.mark.parametrize("how", ["list", "buffer", "function", "closure"])
def test_a_part_without_a_record_is_compared_by_what_it_holds(tmp_path, how):
    fit(small_vae(prior=Plain(how, 1.0)), out=tmp_path, steps=2)
    with pytest.raises(ValueError, match=r"holds another run: prior\."):
        fit(small_vae(prior=Plain(how, 2.0)), out=tmp_path, steps=4, resume=True)
    fit(small_vae(seed=5, prior=Plain(how, 1.0)), out=tmp_path, steps=4, resume=True)
