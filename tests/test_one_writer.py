"""One folder, one writer; readers meanwhile; and the files of others."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from filelock import FileLock

import pyro_vae as pv
from pyro_vae.runs import storage
from pyro_vae.runs.writer import HOLDER, sole_writer

from .saved_runs import fit, small_vae

HOLD = """
import sys, time
from pathlib import Path
from pyro_vae.runs.writer import sole_writer
with sole_writer(sys.argv[1], resume=True):
    Path(sys.argv[1], "held").touch()
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """A folder that another process holds."""
    folder = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)])
    try:
        while not (folder / "held").exists():
            assert other.poll() is None
            time.sleep(0.02)
        yield folder, other
    finally:
        other.kill()
        other.wait()


def test_the_second_process_is_refused_and_a_dead_ones_lock_is_taken_over(held):
    folder, other = held
    before = sorted(path.name for path in folder.iterdir())
    for options in ({}, {"resume": True}):
        with pytest.raises(ValueError, match=rf"being written by process {other.pid} on .*, since"):
            fit(out=folder, steps=2, **options)
    with pytest.raises(ValueError, match=f"process {other.pid} on"):
        fit(steps=2).save(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (folder / HOLDER).exists()
    fit(out=folder, steps=2)
    assert pv.load(folder).manifest["steps"] == 2 and not (folder / HOLDER).exists()


def test_a_second_thread_is_refused_and_a_callback_too(tmp_path):
    said = []

    def again(_):
        try:
            fit(out=tmp_path, steps=2, resume=True)
        except ValueError as error:
            said.append(str(error))

    def in_a_thread(record):
        thread = threading.Thread(target=again, args=(record,))
        thread.start()
        thread.join()

    fit(out=tmp_path, steps=1, callbacks=[again, in_a_thread])
    assert len(said) == 2 and all(f"this very process ({os.getpid()})" in each for each in said)
    assert pv.load(tmp_path).manifest["steps"] == 1


def test_what_was_made_for_a_run_that_did_not_begin_is_taken_away(tmp_path):
    with pytest.raises(ValueError, match="early_stopping"):
        fit(out=tmp_path / "a" / "b", early_stopping=2)
    with pytest.raises(ValueError):
        fit(out=tmp_path / "a" / "b", x=torch.full((5, 6), torch.nan))
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError):
        fit(out=tmp_path / "mine", x=torch.full((5, 6), torch.nan))
    assert (tmp_path / "mine").exists()


def test_a_save_deletes_nothing_but_its_own(tmp_path):
    (tmp_path / "tensors-old").mkdir()
    mine = ["tensors-of-my-thesis.pt", "tensors-0123456789abcdef.safetensors", "mine.tmp"]
    for name in mine:
        (tmp_path / name).write_text("three years of work")
    target = tmp_path / "elsewhere"
    target.write_text("three years of work")
    for name in ("checkpoint.json.tmp", HOLDER):
        (tmp_path / name).symlink_to(target)
    fit(out=tmp_path, steps=6, checkpoint_every=1)
    assert target.read_text() == "three years of work"
    assert all((tmp_path / name).read_text() == "three years of work" for name in mine)
    ours = [p for p in tmp_path.glob("tensors-*.safetensors") if p.name not in mine]
    assert len(ours) == 2 and pv.load(tmp_path).manifest["steps"] == 6


def test_what_a_killed_save_left_is_removed(tmp_path):
    storage.write(tmp_path, {"a": torch.zeros(3)})
    (tmp_path / "other").mkdir()
    storage.write(tmp_path / "other", {"b": torch.ones(2), "a": torch.ones(3)})
    (orphan,) = (tmp_path / "other").glob("tensors-*")
    os.replace(orphan, tmp_path / orphan.name)
    (tmp_path / f"{orphan.name}.tmp").write_text("half")
    with sole_writer(tmp_path, resume=True):
        pass
    assert sorted(p.name[:8] for p in tmp_path.glob("*ten*")) == ["tensors-"]
    assert torch.equal(storage.read(tmp_path)["a"], torch.zeros(3))


def test_a_lock_dies_with_its_process_though_a_child_lives_on(tmp_path):
    """As the workers of a loader do, which inherit what is open."""
    script = (
        "import os, sys, time\nfrom pyro_vae.runs.writer import sole_writer\n"
        "with sole_writer(sys.argv[1], resume=True):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n        time.sleep(30); os._exit(0)\n"
        "    print(child, flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        child = int(other.stdout.readline())
        other.wait()
    try:
        fit(out=tmp_path / "run", steps=1)
    finally:
        os.kill(child, signal.SIGKILL)


SAVE = """
import sys, torch
from pathlib import Path
from pyro_vae.runs import storage
folder, n = Path(sys.argv[1]), 0
while True:
    n += 1
    storage.write(folder, {"n": n, "a": torch.full((2000,), float(n)), "b": torch.arange(n % 7)})
"""


@pytest.mark.parametrize("reads", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_reads_during_saves_are_whole(tmp_path, reads):
    """The old content or the new, and never "damaged"."""
    storage.write(tmp_path, {"n": 0, "a": torch.zeros(2000), "b": torch.arange(0)})
    other = subprocess.Popen([sys.executable, "-c", SAVE, str(tmp_path)])
    seen, done = set(), 0
    try:
        # however slow the disk: on until the reads have met that many saves, too
        while done < reads or len(seen) <= reads // 20:
            assert other.poll() is None, "the process that saves has ended"
            found = storage.read(tmp_path)
            assert found["a"].eq(found["n"]).all() and len(found["b"]) == found["n"] % 7
            seen.add(found["n"])
            done += 1
    finally:
        other.kill()
        other.wait()


def test_a_hangup_is_a_wish_like_sigterm(tmp_path, stop):
    stop[3] = signal.SIGHUP
    with pytest.raises(pv.training.Terminated, match=r"stopped by SIGHUP after step 3") as ended:
        fit(out=tmp_path)
    assert (ended.value.code, ended.value.signal) == (129, signal.SIGHUP)
    assert fit(small_vae(seed=5), out=tmp_path, resume=True).manifest["steps"] == 19


def test_the_holder_is_named_only_while_it_holds(tmp_path):
    with sole_writer(tmp_path / "run", resume=False) as writer:
        said = json.loads((writer.folder / HOLDER).read_text())
        assert said["pid"] == os.getpid()
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_being_written_is_told_so_though_it_holds_a_state(held):
    folder, other = held
    storage.write(folder, {"a": torch.zeros(3)})
    with pytest.raises(ValueError, match=f"being written by process {other.pid} on"):
        fit(out=folder, steps=2)


@pytest.mark.parametrize(("number", "advice"), [("ENOLCK", "another disk"), ("EACCES", "remove ")])
def test_where_there_is_no_lock_nothing_is_made(tmp_path, monkeypatch, number, advice):
    def refuse(*_, **__):
        raise OSError(getattr(errno, number), "no")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(ValueError, match=rf"cannot be locked \(no\): .*{advice}"):
        fit(out=tmp_path / "a" / "b", steps=2)
    assert not (tmp_path / "a").exists()
