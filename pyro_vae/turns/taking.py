"""One at a time: threads take turns where a program runs, and what goes wrong leaves no mark.

Pyro keeps its stack of handlers, its store and its validation once for a process, and so does torch
its generator; while a program runs, its own parameters are swapped and its parts are in evaluation
mode.  Two threads at once would see each other's.  So there is one lock, which every call takes for
as long as it lasts, and a training for each of its steps: beside a long training other threads are
answered between two steps.  The lock is handed on in the order of asking, counts for nothing where
it is held already, and is laid down while callbacks run, which may wait for other threads.

What is left half done where a call is stopped (an error, Ctrl-C between any two operations) is put
back as it was when the turn began; a forked child, in which the thread that had the turn does not
exist, begins so too.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import nn

from pyro_vae.turns.state import ProcessState, Whole, handlers

P = ParamSpec("P")
R = TypeVar("R")

# Two locks of C, which Ctrl-C leaves either taken or not: who waits for the second holds the
# first, so a thread that has just had its turn queues behind.
_lock: Any = threading.RLock()
_door: Any = threading.Lock()
_began: list[ProcessState] = []  # as it was when the present turn began


def has_turn() -> bool:
    """Whether this thread runs within a turn."""
    return _lock._is_owned()


def in_turn(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """``function(*args, **kwargs)`` while no other thread has the turn.

    For your own Pyro code in another thread than one that calls this package, too.

    A turn within a turn is the same turn.  Where the function raises, the state of the process and
    of the programs among the arguments is put back.
    """
    if _lock._is_owned():
        return function(*args, **kwargs)
    lock = _lock
    try:
        with _door:
            lock.acquire()
        return _undone_if_stopped(function, args, kwargs)
    finally:
        # The first call in here, so Ctrl-C comes before or after it and never in between.
        try:  # noqa: SIM105
            lock.release()
        except RuntimeError:  # stopped while it waited
            pass


def _undone_if_stopped(function: Callable[..., R], args: tuple, kwargs: dict[str, Any]) -> R:
    before, programs = ProcessState.now(), [Whole.of(a) for a in args if isinstance(a, nn.Module)]
    _began[:] = [before]

    def put_back() -> None:
        before.put_back()
        for program in programs:
            program.put_back()

    try:
        return function(*args, **kwargs)
    except BaseException:
        try:
            put_back()
        except KeyboardInterrupt:  # one more
            put_back()
            raise
        raise
    finally:
        _began.clear()


def out_of_turn(function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
    """Call back a user's function in the middle of a turn: it may wait for other threads.

    Meanwhile the process is as it was when the turn began.
    """
    if not _lock._is_owned() or not _began:
        return function(*args, **kwargs)
    lock, began, middle = _lock, _began[0], ProcessState.now()
    began.put_back()
    _began.clear()
    lock.release()
    try:
        return function(*args, **kwargs)
    finally:
        with _door:
            lock.acquire()
        _began[:] = [began]
        middle.put_back()


def taking_turns(function: Callable[P, R]) -> Callable[P, R]:
    """A function of the package's face that runs programs: within a turn, in plain surroundings."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if _lock._is_owned():
            return function(*args, **kwargs)
        with plain_surroundings(function.__name__):
            return in_turn(function, *args, **kwargs)

    return wrapper


def in_plain_surroundings(function: Callable[P, R]) -> Callable[P, R]:
    """The same for one that takes a turn for each of its steps."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if _lock._is_owned():
            return function(*args, **kwargs)
        with plain_surroundings(function.__name__):
            return function(*args, **kwargs)

    return wrapper


@contextlib.contextmanager
def plain_surroundings(name: str) -> Any:
    """Full precision, gradients that can be asked for, numpy's usual warnings, no handlers.

    A user's ``autocast`` would round sums of log densities to three digits, and under
    ``inference_mode`` nothing can be differentiated; both are left inside.

    Raises:
        ValueError: inside of a Pyro handler, or where torch's default device is "meta".
    """
    if enclosing := in_turn(handlers):
        raise ValueError(
            f"{name} is called inside of a Pyro handler ({enclosing[0]}, of this thread or of "
            "another one), expected none: put it around model and guide, such as "
            "pv.Program(pyro.poutine.condition(model, data=...), guide), and keep other threads "
            "apart by pyro_vae.turns.in_turn"
        )
    if torch.get_default_device().type == "meta":
        raise ValueError(
            f'{name} is called while torch\'s default device is "meta", whose tensors hold no '
            'numbers: call it under torch.device("cpu"), or where the program is'
        )
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(np.errstate(all="warn", under="ignore"))
        yield


def _in_a_forked_child() -> None:
    """The thread that had the turn may not exist here: then nobody has it."""
    global _door
    _door = threading.Lock()
    if _lock._is_owned():  # the one that forked had it
        return
    _lock._at_fork_reinit()
    for state in _began:
        state.put_back()
    _began.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_forked_child)
