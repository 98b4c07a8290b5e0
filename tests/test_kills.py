"""kill -9 at random moments of a training that saves at every step: the end has the same bits."""

import os
import random
import signal
import time
import warnings

import pytest

import pyro_vae as pv
from pyro_vae.runs import storage

from .saved_runs import assert_same, fit, optim, small_vae


def a_fit(folder):
    """In a process of its own, which is forked, as an import takes longer than all the rest."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        warnings.simplefilter("ignore", pv.PyroVaeWarning)
        fit(small_vae(), out=folder, resume=True, steps=12, checkpoint_every=1,
            engine="pyro", optimizer=optim.Adam, progress=False)  # fmt: skip
        code = 0
    finally:
        os._exit(code)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(tmp_path, kills):
    whole = tmp_path / "whole"
    fit(out=whole, steps=12, engine="pyro", optimizer=optim.Adam, checkpoint_every=1)
    expected = storage.read(whole)
    started = time.monotonic()
    assert os.waitpid(a_fit(tmp_path / "timed"), 0)[1] == 0
    length = time.monotonic() - started
    draw, reached = random.Random(0), []
    for number in range(kills):
        folder = tmp_path / str(number)
        child = a_fit(folder)
        time.sleep(draw.uniform(0.0, 1.1 * length))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        saved = (folder / storage.MANIFEST).exists()
        reached.append(pv.load(folder).manifest["steps"] if saved else 0)
        assert os.waitpid(a_fit(folder), 0)[1] == 0
        found = storage.read(folder)
        for part in ("parameters", "optimizer", "state", "history", "progress"):
            assert_same(expected[part], found[part], part)
        assert not list(folder.glob("*.tmp")) and len(list(folder.glob("tensors-*"))) <= 2
    assert len(set(reached)) > 1, reached
    print(f"{kills} of {kills} end with the same bits, killed after steps {sorted(reached)}")
