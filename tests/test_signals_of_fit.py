"""Signals while `fit` saves its run: the state is kept, and the process ends as it should."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import pyro_vae as pv
from pyro_vae.training.interrupts import Terminated

from .saved_runs import fit

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
options = {"steps": 10**9, "schedule": schedule, "engine": "pyro", "out": sys.argv[1] + "/run"}
pv.fit(program, torch.zeros(50, 6), **options)
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, -signal.SIGINT),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),  # quickly in test_cli_signals.py
    ],
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


def test_handlers_are_taken_over_in_the_main_thread_and_without_a_folder_that_of_ctrl_c(tmp_path):
    """An ignored SIGINT (a shell's background job) stays ignored."""
    seen = []

    def look(record):
        seen.append([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)])

    plain = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    fit(steps=1, callbacks=[look])
    thread = threading.Thread(target=lambda: fit(steps=1, callbacks=[look], out=tmp_path / "a"))
    thread.start()
    thread.join()
    assert seen[0][0] != plain[0] and seen[0][1] == plain[1]
    assert seen[1] == plain and (tmp_path / "a" / "checkpoint.json").exists()
    fit(steps=1, callbacks=[look], out=tmp_path / "b")
    assert all(own != before for own, before in zip(seen[2], plain, strict=True))
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        fit(steps=1, callbacks=[look], out=tmp_path / "c")
        assert seen[3][0] == signal.SIG_IGN == signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, plain[0])
