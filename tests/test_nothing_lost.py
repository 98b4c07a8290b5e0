"""What ends a run otherwise than by its budget: the last whole step is saved, and is said where."""

import errno
import functools
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae.engine.learner import Learner
from pyro_vae.runs import storage, writer
from pyro_vae.training.loop import Loop

from .saved_runs import HELD_OUT, Counting, assert_same, fit, optim, small_vae


def goes_on_as_if_nothing_had_been(folder, **options):
    """To the bits of a run that nothing stopped."""
    again = fit(small_vae(seed=5), out=folder, resume=True, **options)
    whole = fit(**options)
    assert_same(
        dict(whole.program.named_parameters()), dict(again.program.named_parameters())
    )  # fmt: skip
    assert again.manifest["steps"] == whole.manifest["steps"]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, MemoryError, SystemExit])
def test_a_callback_that_raises_leaves_the_last_whole_step(tmp_path, kind):
    """The error is the user's own, with a note."""
    error = kind("from the callback")

    def callback(record):
        if record.step == 7:
            raise error

    with pytest.raises(kind) as raised:
        fit(out=tmp_path, callbacks=[callback])
    assert raised.value is error
    (note,) = error.__notes__
    assert note == (
        f"the state after step 7 lies in {tmp_path}: go on with out={str(tmp_path)!r}, resume=True"
    )
    assert pv.load(tmp_path).manifest["steps"] == 7
    goes_on_as_if_nothing_had_been(tmp_path)


def poisoned(monkeypatch, step):
    """A loss that is nan at a step, for whatever reason."""
    look = Learner.require_finite

    def looking(self, means, ask, grads=None):
        bad = ask.key[-1] + 1 == step
        return look(self, {**means, "loss": float("nan")} if bad else means, ask, grads)

    monkeypatch.setattr(Learner, "require_finite", looking)


@pytest.mark.parametrize(
    "options", [{}, {"objective": Counting()}, {"engine": "eager", "steps": 40}], ids=str
)
def test_a_loss_that_is_no_number_leaves_the_step_before(tmp_path, monkeypatch, options):
    """Also where a state was refreshed for it; the records are those of an undisturbed run."""
    with (
        monkeypatch.context() as patch,
        pytest.raises(ValueError, match="step 10: the loss is nan"),
    ):
        poisoned(patch, 10)
        fit(out=tmp_path, **options)
    loaded = pv.load(tmp_path)
    assert (loaded.manifest["steps"], loaded.manifest["stopped"]) == (9, "unfinished")
    goes_on_as_if_nothing_had_been(tmp_path, **options)


def test_steps_in_a_row_are_booked_up_to_the_one_that_fails(tmp_path, monkeypatch):
    """The captured graph takes several at once, which are all made before anyone looks."""
    options = {"engine": "eager", "steps": 40, "lr": 0.05}
    init = Loop.__init__
    monkeypatch.setattr(Loop, "__init__", lambda self, **o: init(self, **{**o, "record_every": 20}))
    x = torch.ones(64, 6)
    x[::2] = 0
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="step 17: "):
        poisoned(patch, 17)
        fit(x=x, out=tmp_path, **options)
    assert pv.load(tmp_path).manifest["steps"] == 16
    goes_on_as_if_nothing_had_been(tmp_path, x=x, **options)


def no_room(monkeypatch, folder):
    """A disk that is full under a folder, and nowhere else."""
    replace = storage.replace

    def failing(path, raw):
        if folder in path.parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(path, raw)

    monkeypatch.setattr(storage, "replace", failing)


def test_a_full_disk_and_the_state_lies_beside(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        no_room(patch, folder)
        with pytest.raises(OSError, match=r"run could not be written \(No space") as raised:
            fit(out=folder, checkpoint_every=5)
    place = raised.value.path
    assert place.parent == tmp_path and f"the state lies in {place}" in str(raised.value)
    assert pv.load(place).manifest["steps"] == 5
    goes_on_as_if_nothing_had_been(place)


def test_a_full_disk_when_a_callback_raises(tmp_path, monkeypatch):
    """The callback's own error, and a note that says where."""

    def callback(record):
        if record.step == 7:
            raise RuntimeError("mine")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="mine") as raised:
        no_room(patch, tmp_path / "run")
        fit(out=tmp_path / "run", callbacks=[callback])
    (place,) = (p for p in tmp_path.iterdir() if "rescued" in p.name)
    assert str(place) in raised.value.__notes__[-1]
    assert pv.load(place).manifest["steps"] == 7


def test_a_folder_that_vanishes_is_made_again(tmp_path):
    folder = tmp_path / "run"
    fit(out=folder, callbacks=[lambda record: shutil.rmtree(folder, ignore_errors=True)])
    assert pv.load(folder).manifest["steps"] == 19
    goes_on_as_if_nothing_had_been(folder)


def test_another_run_in_the_place_of_this_one_is_not_written_over(tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    fit(out=other, steps=3)

    def moved(record):
        if record.step == 5:
            folder.rename(tmp_path / "moved")
            shutil.copytree(other, folder)

    with pytest.raises(OSError, match="another run lies there now") as raised:
        fit(out=folder, callbacks=[moved], seed=4)
    assert pv.load(folder).manifest["steps"] == 3
    assert pv.load(raised.value.path).manifest["steps"] == 19


def test_what_is_half_written_is_not_saved(tmp_path, monkeypatch):
    """An optimizer that fails in the midst of its update: the last save stays, and is said."""
    step = optim.Adagrad.step

    def failing(self, closure=None):
        if len(tried) == 9:
            with torch.no_grad():
                self.param_groups[0]["params"][0].zero_()
            raise RuntimeError("in the midst")
        tried.append(0)
        return step(self)

    tried: list = []
    with monkeypatch.context() as patch, pytest.raises(RuntimeError) as raised:
        patch.setattr(optim.Adagrad, "step", failing)
        fit(out=tmp_path, checkpoint_every=4)
    assert "the state after step 8 lies in" in raised.value.__notes__[-1]
    goes_on_as_if_nothing_had_been(tmp_path)


def test_nothing_that_is_no_number_is_saved(tmp_path):
    """A callback that breaks a parameter; and an optimizer that divides by nothing."""

    def callback(record):
        if record.step == 6:
            next(record.program.parameters()).data[0] = torch.nan

    with pytest.raises(ValueError, match=r"network.0.weight\" is infinite or nan after step 6"):
        fit(out=tmp_path / "a", callbacks=[callback], checkpoint_every=3)
    assert pv.load(tmp_path / "a").manifest["steps"] == 3
    # Weights on pixels that are never set have gradient 0, and 0 / 0 is no number.
    options = {"x": torch.zeros(50, 6), "optimizer": functools.partial(optim.Adagrad, lr=1, eps=0)}
    burst = r'posterior.network.0.weight" is made infinite or nan by the update of Adagrad'
    program = small_vae()
    with pytest.raises(ValueError, match=rf'step 1: "{burst}.* those before this step'):
        fit([program, small_vae(seed=1)], engine="eager", **options)
    assert all(p.isfinite().all() for p in program.parameters())
    with pytest.raises(ValueError, match=rf'step 2: .*"{burst}.* in the step before') as raised:
        fit(engine="pyro", out=tmp_path / "c", **options)
    assert "no step of the run" in raised.value.__notes__[-1]
    assert not (tmp_path / "c").exists()


def test_the_best_is_saved_beside_the_last(tmp_path):
    def callback(record):
        if record.step == 15:
            raise RuntimeError("mine")

    options = {"validation": HELD_OUT, "evaluate_every": 5, "keep": "best", "lr": 0.5}
    with pytest.raises(RuntimeError):
        fit(out=tmp_path, callbacks=[callback], **options)
    saved = storage.read(tmp_path)
    assert saved["progress"]["steps"] == 15 and "best" in saved
    goes_on_as_if_nothing_had_been(tmp_path, **options)


def test_a_signal_while_the_state_is_rescued_loses_nothing(tmp_path, monkeypatch):
    beside = writer.write

    def interrupted(folder: Path, content):
        signal.raise_signal(signal.SIGINT)
        beside(folder, content)

    def callback(record):
        if record.step == 7:
            raise RuntimeError("mine")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="mine"):
        patch.setattr(writer, "write", interrupted)
        fit(out=tmp_path, callbacks=[callback])
    assert pv.load(tmp_path).manifest["steps"] == 7
