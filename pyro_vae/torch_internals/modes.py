"""Modes, which see every operation, and what torch does when it meets them or an optimizer."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import overrides
from torch.utils import _python_dispatch

DYNAMO = "torch._dynamo"


class TorchDispatchMode(_python_dispatch.TorchDispatchMode):
    """torch's, which imports its compiler at the first operation to be left alone by it.

    These are left alone by it where somebody else has imported it.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        own = vars(cls).get("__torch_dispatch__")
        super().__init_subclass__(**options)
        if own is not None:
            cls._left_alone, cls.__torch_dispatch__ = cls.__torch_dispatch__, own  # type: ignore[attr-defined, method-assign]

    def __enter__(self) -> Any:
        if DYNAMO in sys.modules:
            type(self).__torch_dispatch__ = type(self)._left_alone  # type: ignore[attr-defined, method-assign]
        return super().__enter__()


@contextlib.contextmanager
def compiler_left_out() -> Iterator[None]:
    """Let torch make and save optimizers without the import of its compiler.

    Each of these functions asks it to keep out when it is first called.  Nobody has to who is not
    there; once it has been imported, by whomever, they ask again.
    """
    asking: list[Any] = []
    if DYNAMO not in sys.modules:
        found = vars(torch.optim.Optimizer).values()
        inner = [getattr(f, "__wrapped__", None) for f in found if callable(f)]
        asking = [f for f in inner if f is not None and not hasattr(f, ASKED)]
    for function in asking:
        setattr(function, ASKED, function)
    try:
        yield
    finally:
        for function in asking:
            if getattr(function, ASKED, None) is function:
                delattr(function, ASKED)


ASKED = "__dynamo_disable"  # where torch keeps what came of it


Modes = tuple[list[Any], list[Any]]


def modes() -> Modes:
    """What this thread's operations are seen by: modes of dispatch and of functions."""
    if not torch._C._len_torch_dispatch_stack() and not torch._C._len_torch_function_stack():
        return [], []
    return (
        _python_dispatch._get_current_dispatch_mode_stack(),
        overrides._get_current_function_mode_stack(),
    )


def put_back_modes(before: Modes) -> None:
    """Make them so again."""
    for own, now, kept in zip((_python_dispatch, overrides), modes(), before, strict=True):
        if now != kept:
            for _ in now:
                own._pop_mode()
            for mode in kept:
                own._push_mode(mode)


def ready_to_end() -> None:
    """Import what torch would import while Python ends: ahead of an exit by a signal."""
    with contextlib.suppress(ImportError):
        importlib.import_module("tabulate")
