"""Ctrl-C under asyncio and in notebooks, and processes that are forked, spawned or pooled."""

import asyncio
import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time

import pyro
import pytest
import torch

import pyro_vae as pv
from pyro_vae.turns import in_turn
from pyro_vae.turns.state import ProcessState

from .test_threads import WAIT, X, net, train, unchanged

pytestmark = pytest.mark.filterwarnings("ignore")


def interrupting(after=2):
    """A callback that presses Ctrl-C at its so-many-th call."""
    calls = []

    def press(record):
        calls.append(record)
        if len(calls) == after:
            os.kill(os.getpid(), signal.SIGINT)

    return press


def long_run(**options):
    return train(net(1), "pyro", 400, **options)  # a record at every other step


@pytest.fixture
def signals():
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    state = ProcessState.now()
    yield
    assert {n: signal.getsignal(n) for n in before} == before
    assert unchanged(state)


def test_ctrl_c_ends_a_coroutine_that_trains(signals, tmp_path):
    async def work(**options):
        return long_run(callbacks=[interrupting()], **options)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(work())
    with pytest.raises(KeyboardInterrupt, match="the state lies in"):
        asyncio.run(work(out=tmp_path / "run"))
    assert pv.load(tmp_path / "run", net(1)).manifest["stopped"] == "unfinished"


@pytest.mark.parametrize("saved", [False, True])
def test_ctrl_c_ends_a_thread_that_trains_for_asyncio(saved, signals, tmp_path):
    options = {"out": tmp_path / "run"} if saved else {}
    ended = []

    def work():
        try:
            long_run(callbacks=[interrupting()], **options)
        except BaseException as error:
            ended.append(error)
            raise

    async def main():
        await asyncio.get_running_loop().run_in_executor(None, work)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert isinstance(ended[0], KeyboardInterrupt)
    if saved:
        assert pv.load(tmp_path / "run", net(1)).manifest["stopped"] == "unfinished"


def test_ctrl_c_in_a_notebook_leaves_a_program_that_is_whole(signals, monkeypatch):
    """In the middle of a step it waits for the end of the update."""
    vae, taken = net(1), []

    class SGD(torch.optim.SGD):
        def step(self, *args):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # here it would come, between two updates
            taken.append(super().step(*args))

    with pytest.raises(KeyboardInterrupt):
        train(vae, "pyro", 400, optimizer=SGD)
    assert len(taken) == 1
    once = train(net(1), "pyro", 1, optimizer=torch.optim.SGD).program
    for mine, theirs in zip(vae.parameters(), once.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_ctrl_c_while_another_thread_has_its_turn_comes_at_once(signals):
    began, end = threading.Event(), threading.Event()

    def hold():
        began.set()
        end.wait(WAIT)

    holder = threading.Thread(target=in_turn, args=(hold,))
    holder.start()
    began.wait(WAIT)
    presser = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    presser.start()
    start = time.monotonic()
    try:
        for call in (lambda: pv.elbo(net(1), X),):
            with pytest.raises(KeyboardInterrupt):
                call()
        assert time.monotonic() - start < 5
    finally:
        end.set()
        holder.join(WAIT)
    assert pv.elbo(net(1), X).isfinite().all()


# --- processes ------------------------------------------------------------------------------------


def bound_and_loss(vae):
    bound = pv.elbo(vae, X)
    return torch.cat([bound, torch.tensor(train(vae, "pyro", 2).history["loss"].to_numpy())])


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_pool_of_processes_gives_the_same_numbers(method):
    expected = bound_and_loss(net(1))
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        got = pool.submit(bound_and_loss, net(1)).result(4 * WAIT)
    assert torch.allclose(got, expected)


def in_a_child(work):
    """What a forked child exits with: 0 where ``work`` gives True."""
    pid = os.fork()
    if not pid:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child hangs")


def test_a_fork_while_another_thread_has_its_turn_is_no_deadlock():
    """Nor does the child see what that thread had changed."""
    vae, state = net(1), ProcessState.now()
    expected, began, end = pv.elbo(vae, X), threading.Event(), threading.Event()

    def hold():
        torch.manual_seed(99)
        pv.elbo(vae, X)
        with pyro.poutine.scale(scale=3.0), pyro.validation_enabled(True):
            began.set()
            end.wait(WAIT)
        raise ValueError  # puts back the seed

    def told():
        with pytest.raises(ValueError):
            in_turn(hold)

    holder = threading.Thread(target=told)
    holder.start()
    began.wait(WAIT)
    try:
        assert in_a_child(lambda: unchanged(state) and torch.equal(pv.elbo(vae, X), expected)) == 0
        assert in_a_child(lambda: train(net(2), "pyro", 2) is not None) == 0
    finally:
        end.set()
        holder.join(WAIT)
    assert unchanged(state)


def test_a_fork_within_a_turn_keeps_it():
    assert in_turn(in_a_child, lambda: pv.elbo(net(1), X).isfinite().all()) == 0
