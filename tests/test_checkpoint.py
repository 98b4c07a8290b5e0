"""Saved runs: the same bits after an interruption, and no damaged file that passes as whole."""

import dataclasses
import errno
import functools
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.engine.learner import Learner
from pyro_vae.models import bernoulli_vae, gaussian_vae, linear_gaussian, logistic_lvm
from pyro_vae.objectives import AEVB, Objective, WakeSleep
from pyro_vae.objectives.base import State
from pyro_vae.runs import run, storage
from pyro_vae.training import checkpoint, fitting
from pyro_vae.training.interrupts import Terminated
from pyro_vae.training.loop import Loop, Progress

optim = torch.optim


def small_vae(seed=0, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    defaults = {"latent_dim": 2, "hidden_dim": 8, "init_std": None}
    return bernoulli_vae.build(6, **{**defaults, **options}).to(dtype)


def rows_of_pixels(n=50, seed=1):
    return torch.rand(n, 6, generator=torch.Generator().manual_seed(seed))


X = (rows_of_pixels() < 0.4).float()
HELD_OUT = (rows_of_pixels(30, 2) < 0.4).float()


class Counting(Objective):
    """Rows and shared state that every later number depends on."""

    refresh_every = 3

    def init(self, program, x):
        return State({"seen": torch.zeros(len(x))}, {"total": torch.zeros(())})

    def refresh(self, program, x, state):
        return {"seen": state.rows["seen"] + 1}, {"refreshed": torch.ones(len(x))}

    def terms(self, program, x, state):
        loss, stats = AEVB("A").terms(program, x, state)
        loss = loss * (1 + state.rows["seen"]) * (1 + 0.01 * state.shared["total"])
        return loss, {**stats, "seen": state.rows["seen"]}

    def advance(self, shared, means):
        return {"total": shared["total"] + means.get("refreshed", 0.25)}


def one_cycle(optimizer):
    return optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=40)


def two_schedules(optimizer):
    s = optim.lr_scheduler
    return s.SequentialLR(
        optimizer, [s.ConstantLR(optimizer), s.MultiStepLR(optimizer, [2, 3])], [4]
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


def fit(program=None, x=X, **options):
    options = {"steps": 19, "batch_size": 16, "seed": 3, "engine": "pyro", **options}
    return pv.fit(small_vae() if program is None else program, x, **options)


@pytest.fixture
def stop(monkeypatch):
    """Send a signal to this process within these steps; one record holds four steps."""
    look, at = Learner.require_finite, {}

    def looking(self, means, ask, grads=None):
        if ask.key[-1] + 1 in at:
            signal.raise_signal(at.pop(ask.key[-1] + 1))
        return look(self, means, ask, grads)

    monkeypatch.setattr(Learner, "require_finite", looking)
    monkeypatch.setattr(fitting, "Loop", lambda **o: Loop(**{**o, "record_every": 4}))
    return at


def captured_once():
    made, make_step = [], fitting.make_step

    def make(*args, **options):
        made[:] = made or [make_step(*args, **options)]
        return made[0]

    return make


def assert_same(a, b, path=""):
    """Equal to the last bit, wall time aside."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for name in a.keys() - {"seconds"}:
            assert_same(a[name], b[name], f"{path}/{name}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for number, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{path}/{number}")
    else:
        assert a == b or (a != a and b != b), path


def with_manifest(folder, **changes):
    """The same checkpoint, whole, with another manifest."""
    saved = storage.read(folder)
    saved["manifest"] |= changes
    storage.write(folder, saved)


# --- going on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["eager", "pyro"])
@pytest.mark.parametrize("name", CASES)
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
            fit(small_vae(seed=number), out=tmp_path / "parts", resume=True, **options)
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
        pass

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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed is 4, the checkpoint has 3"),
        ({"batch_size": 15}, "batch_size is 15, the checkpoint has 16"),
        ({"objective": AEVB("A")}, r"objective is \"AEVB\(estimator='A'\)\", the checkpoint has"),
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
def test_resume_refuses_another_run_and_names_what_differs(tmp_path, change, message):
    """The program is as it was afterwards: a refusal changes nothing."""
    fit(out=tmp_path)
    program = small_vae(seed=5, dtype=change.get("dtype", torch.float32))
    before = {name: value.clone() for name, value in program.named_parameters()}
    with pytest.raises(ValueError, match=f"holds another run: .*{message}.*: pass the settings"):
        fit(program, out=tmp_path, resume=True, **change)
    assert_same(before, dict(program.named_parameters()))


def test_resume_names_all_differences_at_once(tmp_path):
    fit(out=tmp_path)
    with pytest.raises(ValueError, match=r"seed is 4.*clip is 1.0.*optimizer lr is 0.5"):
        fit(out=tmp_path, resume=True, lr=0.5, clip=1.0, seed=4)


def test_resume_refuses_another_program(tmp_path):
    fit(out=tmp_path)
    with pytest.raises(ValueError, match=r"network.0.weight\" has shape \(9, 2\), .* \(8, 2\)"):
        fit(small_vae(hidden_dim=9), out=tmp_path, resume=True)
    torch.manual_seed(0)
    other = gaussian_vae.build(6, latent_dim=2, hidden_dim=8)
    with pytest.raises(ValueError, match="program is 'GaussianVAE', the checkpoint has 'Bern"):
        fit(other, out=tmp_path, resume=True)


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
    assert caught[0].filename == checkpoint.__file__ or caught[0].filename == __file__


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


# --- signals ------------------------------------------------------------------------------------


SCRIPT = """
import pathlib, sys, torch, pyro_vae as pv
from pyro_vae.models import bernoulli_vae
def schedule(optimizer):
    def rate(step):
        if step == 30:
            pathlib.Path(sys.argv[1], "started").touch()
        return 1.0
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
torch.set_num_threads(1)
program = bernoulli_vae.build(6, latent_dim=2, hidden_dim=8)
pv.fit(program, torch.zeros(50, 6), steps=10**9, schedule=schedule, out=sys.argv[1] + "/run")
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)],
    ids=["INT", "TERM"],
)
def test_a_signal_saves_the_state_and_ends_the_process(tmp_path, number, code):
    """Python dies of an unhandled KeyboardInterrupt by SIGINT itself, as the shell expects."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "started").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.05)
        process.send_signal(number)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code and output == ""
    if number == signal.SIGINT:
        assert "stopped by SIGINT after step" in errors.splitlines()[-1]
    else:
        assert errors == ""
    loaded = pv.load(tmp_path / "run")
    assert loaded.manifest["steps"] >= 30 and loaded.manifest["stopped"] == "unfinished"


def test_sigterm_is_an_exit_with_a_message_for_the_command_line(tmp_path, stop):
    stop[3] = signal.SIGTERM
    with pytest.raises(
        Terminated, match=r"stopped by SIGTERM after step 3; .*resume=True"
    ) as ended:
        fit(out=tmp_path)
    assert isinstance(ended.value, SystemExit) and ended.value.code == 143
    assert (ended.value.path, ended.value.signal) == (tmp_path, signal.SIGTERM)
    stop[5] = signal.SIGINT
    with pytest.raises(KeyboardInterrupt, match="after step 5") as stopped:
        fit(out=tmp_path, resume=True)
    assert (stopped.value.path, stopped.value.signal) == (tmp_path, signal.SIGINT)
    assert "\n" not in str(stopped.value) + str(ended.value)


def test_a_second_interrupt_does_not_wait_and_the_handlers_come_back(tmp_path, stop, monkeypatch):
    """It comes while the first is saving: the plain KeyboardInterrupt, and no half checkpoint."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fit(out=tmp_path, steps=2)
    stop[3] = signal.SIGINT
    fsync = os.fsync
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as stopped:
        patch.setattr(os, "fsync", lambda f: signal.raise_signal(signal.SIGINT) or fsync(f))
        fit(out=tmp_path, resume=True)
    assert not hasattr(stopped.value, "path")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert pv.load(tmp_path).manifest["steps"] == 2


def test_an_interrupt_in_the_last_save_is_obeyed_after_it(tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def interrupting(file):
        calls.append(file)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        fsync(file)

    monkeypatch.setattr(os, "fsync", interrupting)
    with pytest.raises(KeyboardInterrupt, match="after step 19"):
        fit(out=tmp_path)
    assert pv.load(tmp_path).manifest["stopped"] == "budget"


def test_handlers_are_taken_over_only_with_a_folder_and_in_the_main_thread(tmp_path):
    """An ignored SIGINT (a shell's background job) stays ignored."""
    seen = []

    def look(record):
        seen.append([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)])

    plain = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    fit(steps=1, callbacks=[look])
    thread = threading.Thread(target=lambda: fit(steps=1, callbacks=[look], out=tmp_path / "a"))
    thread.start()
    thread.join()
    assert seen == [plain, plain] and (tmp_path / "a" / "checkpoint.json").exists()
    fit(steps=1, callbacks=[look], out=tmp_path / "b")
    assert all(own != before for own, before in zip(seen[2], plain, strict=True))
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        fit(steps=1, callbacks=[look], out=tmp_path / "c")
        assert seen[3][0] == signal.SIG_IGN == signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, plain[0])


# --- the files ----------------------------------------------------------------------------------


def test_values_of_every_kind_come_back(tmp_path):
    """Weights of any dtype, views, empty tensors; and what JSON alone would change."""
    base = torch.arange(6.0).reshape(2, 3)
    kinds = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool",
             "complex64")  # fmt: skip
    content = {
        "tensors": {kind: base.to(getattr(torch, kind)) for kind in kinds},
        "views": [base.T, base[:, 1], torch.ones(()).expand(3), base, base],
        "small": (torch.tensor(2.5), torch.empty(0, 4)),
        "numbers": [1, True, None, 0.1, 1 / 3, 2**70, math.inf, -math.inf, "text"],
        "names": {0: {"step": torch.ones(())}, 1: ()},
        "$tensor": "no tensor",
        "counter": Counter({3: 2, 5: 1}),
        "betas": (0.9, (0.999, [])),
        "empty": {},
    }
    storage.write(tmp_path, content)
    found = storage.read(tmp_path)
    assert_same(found, content)
    assert_same(content, found)
    assert type(found["counter"]) is Counter and type(found["betas"]) is tuple
    assert found["numbers"][1] is True and math.isnan(math.nan)
    storage.write(tmp_path, {"nan": math.nan})
    assert math.isnan(storage.read(tmp_path)["nan"])
    assert len(list(tmp_path.iterdir())) == 2  # the tensors of before are gone
    json.loads((tmp_path / "checkpoint.json").read_text(), parse_constant=pytest.fail)


def test_what_cannot_be_saved_is_refused_before_the_first_step(tmp_path, monkeypatch):
    def schedule(optimizer):
        scheduler = optim.lr_scheduler.ConstantLR(optimizer)
        scheduler.odd = {1, 2}
        return scheduler

    monkeypatch.setattr(Learner, "require_finite", None)  # no step can be taken
    with pytest.raises(ValueError, match="scheduler/odd is a set, which a checkpoint cannot hold"):
        fit(out=tmp_path, schedule=schedule)
    with pytest.raises(ValueError, match="safetensors cannot hold"):
        storage.write(tmp_path, {"z": torch.zeros(1, dtype=torch.complex128)})


@pytest.mark.parametrize("function", ["open", "write", "fsync", "replace", "unlink"])
def test_a_crash_at_any_point_leaves_a_checkpoint_that_can_be_read(tmp_path, monkeypatch, function):
    """Each call that reaches the disk fails once: what is read is the old or the new, whole."""
    old, new = {"a": torch.zeros(3), "n": 1}, {"a": torch.ones(3), "n": 2}
    number, failed, outcomes = 0, True, []
    while failed:
        folder = tmp_path / str(number)
        folder.mkdir()
        storage.write(folder, old)
        calls, failed = [], False
        with monkeypatch.context() as patch:

            def failing(real, *args, number=number, calls=calls, **kwargs):
                calls.append(args)
                if len(calls) == number + 1:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real(*args, **kwargs)

            if function == "open":
                patch.setattr(storage, "open", functools.partial(failing, open), raising=False)
            elif function == "write":
                patch.setattr(storage, "open", functools.partial(short, failing), raising=False)
            elif function == "unlink":
                method = functools.partial(failing, storage.Path.unlink)
                patch.setattr(storage.Path, "unlink", functools.partialmethod(method))
            else:
                patch.setattr(os, function, functools.partial(failing, getattr(os, function)))
            try:
                storage.write(folder, new)
            except OSError:
                failed = True
        found = storage.read(folder)
        assert_same(found, old if found["n"] == 1 else new)
        outcomes.append(found["n"])
        storage.write(folder, new)  # and the next save tidies up
        assert len(list(folder.iterdir())) == 2
        number += 1
    attempts = {"open": 2, "write": 2, "fsync": 4, "replace": 2, "unlink": 1}[function]
    assert len(outcomes) == attempts + 1 and outcomes[-1] == 2
    assert outcomes[0] == (2 if function == "unlink" else 1)


def short(failing, *args):
    """A file that is full after half of what is written to it."""
    file = open(*args)  # noqa: SIM115
    write = file.write

    def half(raw):
        write(raw[: len(raw) // 2])
        return failing(write, raw[len(raw) // 2 :])

    class Short:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            file.close()

        def __getattr__(self, name):
            return half if name == "write" else getattr(file, name)

    return Short()


def tensors_file(folder):
    (path,) = folder.glob("tensors-*.safetensors")
    return path


def test_one_flipped_bit_in_any_tensor_is_found_by_name(tmp_path):
    """T26: torch loads such a file and says nothing."""
    fit(out=tmp_path, objective=Counting())
    path = tensors_file(tmp_path)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8:start])
    assert {"parameters/likelihood.network.0.weight", "optimizer/state/0/sum", "state/rows/seen",
            "state/shared/total"} <= entries.keys()  # fmt: skip
    for name, entry in entries.items():
        damaged = bytearray(raw)
        first, end = entry["data_offsets"]
        damaged[start + (first + end) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf'{path.name} tensor "{name}" differs from its sha'):
            pv.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.1, 0.7, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    fit(small_vae(hidden_dim=64), out=tmp_path)
    path = tensors_file(tmp_path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    named = 'it ends within tensor "[a-z]+/' if share > 0.4 else ""
    with pytest.raises(ValueError, match=rf"{path.name} has \d+ bytes, expected \d+: {named}"):
        pv.load(tmp_path)


def test_missing_and_foreign_tensors_and_wrong_shapes_are_named(tmp_path):
    fit(out=tmp_path)
    path, name = tensors_file(tmp_path), "parameters/likelihood.network.0.weight"
    raw = path.read_bytes()

    def changed(change):
        tensors = safetensors.torch.load(raw)
        change(tensors)
        path.write_bytes(safetensors.torch.save(tensors))
        with pytest.raises(ValueError) as refused:
            fit(out=tmp_path, resume=True)
        assert str(path) in str(refused.value)
        return str(refused.value)

    assert f'holds no tensor "{name}"' in changed(lambda t: t.pop(name))
    assert 'holds a tensor "more"' in changed(lambda t: t.update(more=torch.zeros(1)))
    wrong = changed(lambda t: t.update({name: t[name].T.contiguous()}))
    assert f'tensor "{name}" has shape [2, 8], expected [8, 2]' in wrong
    cast = changed(lambda t: t.update({name: t[name].view(torch.int32)}))
    assert f'tensor "{name}" differs from its sha256' in cast
    path.unlink()
    with pytest.raises(ValueError, match=rf"{path.name} is missing"):
        pv.load(tmp_path)


def test_an_edited_number_in_the_manifest_is_refused(tmp_path):
    fit(out=tmp_path)
    path = tmp_path / "checkpoint.json"
    text = path.read_text()
    for old, new in (('"seed": 3', '"seed": 4'), ('"lr": 0.02', '"lr": 0.03'),
                     ('"steps": 19', '"steps": 18')):  # fmt: skip
        assert text.count(old) >= 1
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=r"checkpoint.json differs from its own sha256"):
            pv.load(tmp_path)
    for broken in (text[: len(text) // 2], "", "[]", "{}", "\x00\xff"):
        path.write_text(broken, encoding="latin-1")
        with pytest.raises(ValueError, match=r"checkpoint.json is no whole JSON object"):
            pv.load(tmp_path)
    with pytest.raises(ValueError, match=r"holds no checkpoint.json: name a folder that"):
        pv.load(tmp_path / "nowhere")
    for other in (1, 99):  # format 1 counted its steps by other names
        path.write_text(text.replace('"format": 2', f'"format": {other}'))
        message = f"has format {other}, expected 2: read it with the version of pyro_vae that"
        with pytest.raises(ValueError, match=message):
            pv.load(tmp_path)


def test_saves_come_when_they_are_asked_for(tmp_path, monkeypatch):
    """Whole numbers count steps, floats seconds; by default a short run saves at its end alone."""
    steps, write = [], checkpoint.write

    def counted(folder, content):
        steps.append(content["progress"]["steps"])
        write(folder, content)

    monkeypatch.setattr(checkpoint, "write", counted)
    fit(out=tmp_path / "default")
    assert steps == [19]
    fit(out=tmp_path / "steps", checkpoint_every=8)
    assert steps[1:] == [8, 16, 19]
    fit(out=tmp_path / "seconds", checkpoint_every=1e-9, steps=3)
    assert steps[4:] == [1, 2, 3, 3]
    now = [0.0]

    def ticking():
        now[0] += 1
        return now[0]

    monkeypatch.setattr(checkpoint.time, "monotonic", ticking)
    fit(out=tmp_path / "minute", steps=130)
    assert len(steps[8:]) == 3  # about every 60 looks at a clock that ticks once a look


# --- loading ------------------------------------------------------------------------------------


BUILDS = {
    "bernoulli": lambda: bernoulli_vae.build(6, latent_dim=3, hidden_dim=4, prior_precision=2.0),
    "gaussian": lambda: gaussian_vae.build(6, latent_dim=3, hidden_dim=4, floor=0.02),
    "linear": lambda: linear_gaussian.build(6, noise="full", posterior="full"),
    "logistic": lambda: logistic_lvm.build(6, hidden_dim=5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", BUILDS)
def test_models_of_the_folder_come_back_by_name(tmp_path, name, dtype):
    """The class, the options, the precision, and every bit; no generator is touched."""
    run = fit(BUILDS[name]().to(dtype), out=tmp_path, steps=3, validation=HELD_OUT)
    before = torch.get_rng_state()
    loaded = pv.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded.program) is type(run.program)
    assert_same(dict(loaded.program.named_parameters()), dict(run.program.named_parameters()))
    assert torch.equal(pv.elbo(loaded.program, HELD_OUT), pv.elbo(run.program, HELD_OUT))
    pd.testing.assert_frame_equal(loaded.history, run.history, check_exact=True)
    assert loaded.manifest == run.manifest and repr(loaded) == repr(run)


def test_parts_of_ones_own_must_be_passed(tmp_path):
    """A checkpoint holds no classes: what it cannot name in the folder, the user gives."""
    run = fit(small_vae(prior=pv.models.bernoulli_vae.priors.StandardNormal(2)), out=tmp_path)
    assert run.program.build_record is None
    with pytest.raises(ValueError, match=r"parts of your own.*pv.load\(path, program=mine\)"):
        pv.load(tmp_path)
    mine = small_vae(seed=9, dtype=torch.float64)
    loaded = pv.load(tmp_path, program=mine)
    assert loaded.program is mine
    assert_same(dict(mine.named_parameters()), dict(run.program.named_parameters()))
    with pytest.raises(ValueError, match=r"holds another program: .*network.0.weight\" has shape"):
        pv.load(tmp_path, program=small_vae(hidden_dim=9))


@pytest.mark.parametrize("model", ["os", "os.path", "..training", "bernoulli_vae.build", ""])
def test_a_checkpoint_never_chooses_what_is_imported(tmp_path, monkeypatch, model):
    fit(out=tmp_path, steps=1)
    saved = storage.read(tmp_path)
    assert saved["build"]["model"] == "bernoulli_vae"
    saved["build"]["model"] = model
    storage.write(tmp_path, saved)
    load = pv.load  # which is itself imported at first sight
    monkeypatch.setattr(run.importlib, "import_module", pytest.fail)
    known = "known are bayesian_vae, bernoulli_vae, gaussian_vae, linear"
    with pytest.raises(ValueError, match=known):
        load(tmp_path)


class Mine(pv.Program):
    """A user's program: buffers of several dtypes, parameters of two."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 6), 0.1))
        self.frozen = nn.Parameter(torch.arange(3), requires_grad=False)
        self.register_buffer("mask", torch.tensor([True] * 5 + [False]))
        self.register_buffer("shift", torch.full((6,), scale, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = z @ self.weight + self.shift.to(x.dtype)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x * self.mask) @ self.weight.T, 1.0).to_event(1))


def rewritten():
    class Mine(globals()["Mine"]):  # same name and shapes, other words
        pass

    return Mine()


def test_a_users_program_brings_its_own_class_and_the_file_its_numbers(tmp_path):
    run = fit(Mine(scale=0.25), out=tmp_path)
    loaded = pv.load(tmp_path, program=Mine())
    assert_same(dict(loaded.program.named_parameters()), dict(run.program.named_parameters()))
    assert_same(dict(loaded.program.named_buffers()), dict(run.program.named_buffers()))
    assert loaded.program.shift.dtype == torch.float64 and loaded.program.mask.dtype == torch.bool
    with pytest.warns(pv.PyroVaeWarning, match="written otherwise: source_digest is"):
        pv.load(tmp_path, program=rewritten())


def test_the_source_of_a_part_counts_as_the_programs(tmp_path):
    """Swapping a likelihood of equal shapes changes the numbers, though the class stays."""

    class Flipped(pv.models.bernoulli_vae.likelihoods.Bernoulli):
        def forward(self, z):
            return dist.Bernoulli(logits=-self.network(z)).to_event(1)

    fit(out=tmp_path, steps=2)
    with pytest.warns(pv.PyroVaeWarning, match="source_digest"):
        fit(small_vae(likelihood=Flipped(2, 6, 8)), out=tmp_path, steps=4, resume=True)


def functions():
    decoder = nn.Linear(2, 6)

    def model(x):
        with pyro.plate("data", len(x["x"])):
            z = pyro.sample("z", dist.Normal(x["x"].new_zeros(2), 1.0).to_event(1))
            shift = pyro.param("shift", torch.zeros(6))
            logits = decoder(z) + shift + x["u"].unsqueeze(-1)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x["x"])

    def guide(x):
        scale = pyro.param("scale", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x["x"])):
            pyro.sample("z", dist.Normal(x["x"].new_zeros(2), scale).to_event(1))

    return pv.Program(model, guide, decoder=decoder)


def test_parameters_that_pyro_creates_come_back_into_a_program_that_never_ran(tmp_path):
    x = {"x": X, "u": torch.arange(50)}
    run = fit(functions(), x, out=tmp_path)
    loaded = pv.load(tmp_path, program=functions())
    assert "created.scale" in dict(loaded.program.named_parameters())
    assert_same(dict(loaded.program.named_parameters()), dict(run.program.named_parameters()))
    assert torch.equal(pv.elbo(loaded.program, x), pv.elbo(run.program, x))


def test_a_run_can_be_saved_by_hand_and_loaded_and_not_gone_on_from(tmp_path):
    run = fit(objective=Counting(), validation=HELD_OUT)
    run.save(tmp_path / "run")
    loaded = pv.load(tmp_path / "run")
    assert_same(dict(loaded.program.named_parameters()), dict(run.program.named_parameters()))
    assert_same(loaded.state._asdict(), run.state._asdict())
    pd.testing.assert_frame_equal(loaded.history, run.history, check_exact=True)
    with pytest.raises(ValueError, match=r"written by Run.save, without the optimizer: use pv.lo"):
        fit(objective=Counting(), validation=HELD_OUT, out=tmp_path / "run", resume=True)
