"""Ranks: processes that train one program together, and what they tell each other.

Of W processes each takes the W-th part of every batch, and gradients are added up before the
update, so that all of them hold the same parameters at every step.  ``torch.distributed`` carries
the numbers: gloo between CPUs, NCCL between GPUs.

Before anything is exchanged the ranks :meth:`~Ranks.meet`.  One whose part failed says so there in
place of its numbers, so that all raise its error and none waits for it; a process that was killed
cannot, and the others raise :class:`Lost`.
"""

from __future__ import annotations

import builtins
import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae.engine.learner import Ask
from pyro_vae.objectives.base import State

T = TypeVar("T")
FAILED = 1 << 10  # said where ranks meet, above any signal's number


class Lost(ConnectionError):
    """Another process of this training is gone."""


class Ranks:
    """This process among those of one training.

    Args:
        rank: 0, 1, ... of this process.
        size: how many there are; a single one exchanges nothing.

    Attributes:
        wished: the number of a signal that ends the training after the step at hand.
        signals: those that this process has caught.
        saves: whether this rank has a handler of signals that saves.
        failing: whether what this rank computed last is not finite: its error is then the one that
            all ranks raise.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.wished = 0
        self.signals: list[int] = []
        self.saves = False
        self.failing: Callable[[], bool] = lambda: False
        self._parted = False  # an error was told, so there is nobody left to meet

    # --- rows -----------------------------------------------------------------------------------

    def places(self, number: int) -> Tensor:
        """Which places of a batch of so many rows are this rank's: ceil(B / W) in a row.

        What is beyond the batch's end is its last place; :meth:`weight` leaves it out.
        """
        return self._places(number).clamp_max(number - 1)

    def _places(self, number: int) -> Tensor:
        each = -(-number // self.size)
        return torch.arange(self.rank * each, (self.rank + 1) * each)

    def weight(self, weight: Tensor) -> Tensor:
        """This rank's part of the weights of a batch."""
        places = self._places(len(weight))
        beyond = places >= len(weight)
        mine = weight[places.clamp_max(len(weight) - 1).to(weight.device)]
        return mine.masked_fill(beyond.to(weight.device), 0.0)

    def own(self, ask: Ask) -> Ask:
        """An ask about a batch, whose rows are this rank's already, with their weight and state."""
        if self.size == 1:
            return ask
        places = self.places(len(ask.weight))
        rows = {n: v[places.to(v.device)] for n, v in ask.state.rows.items()}
        return ask._replace(weight=self.weight(ask.weight), state=State(rows, ask.state.shared))

    # --- exchange -------------------------------------------------------------------------------

    def meet(self, error: BaseException | None = None) -> None:
        """Wait for all ranks; where one of them has failed all raise the same error.

        Args:
            error: why this rank cannot go on.

        Raises:
            Lost: another process is gone.
        """
        if self.size == 1:
            return
        said = FAILED if error is not None else max(self.signals, default=0)
        status = torch.tensor(said, device=_device())
        with self._reaching():
            dist.all_reduce(status, op=dist.ReduceOp.MAX)
            found = int(status)
            if found < FAILED:
                if found and not self.wished:
                    self.wished = found
                    if self.saves:
                        signal.raise_signal(found)  # to what saves, and then ends the training
                return
            self._parted = True
            told: list[Any] = [None] * self.size
            dist.all_gather_object(told, None if error is None else self._told(error))
        _, rank, kind, message, extra = min(each for each in told if each is not None)
        if rank != self.rank or error is None:
            raise _made(kind, message, extra) from error
        raise error

    def _told(self, error: BaseException) -> tuple[int, int, str, str, dict[str, Any]]:
        """An error in plain values; those of numbers that are not finite come first."""
        failing = isinstance(error, ValueError) and self.failing()
        extra = {n: v for n, v in vars(error).items() if n in ("path", "signal")}
        kinds = [kind.__name__ for kind in type(error).__mro__]
        kind = next(name for name in kinds if hasattr(builtins, name))
        message = str(error) or type(error).__name__
        if kinds[0] != kind and kind in ("Exception", "RuntimeError", "BaseException"):
            message = f"{kinds[0]}: {message}"
        if failing:
            message += f" (of the rows of process {self.rank})"
            error.args = (message,)
        return (0 if failing else 1), self.rank, kind, message, extra

    def first(self, function: Callable[[], T]) -> T:
        """What ``function`` returns to rank 0, told to all; no other rank calls it."""
        if self.size == 1:
            return function()
        self.meet()
        result: list[Any] = [None]
        error: BaseException | None = None
        if self.rank == 0:
            token = CURRENT.set(Ranks())  # a training in there is nobody else's
            try:
                result = [pytree.tree_map_only(Tensor, Tensor.cpu, function())]
            except BaseException as raised:
                error = raised
            finally:
                CURRENT.reset(token)
        self.meet(error)
        with self._reaching():
            dist.broadcast_object_list(result, src=0)
        return result[0]

    def each(self, value: T) -> list[T]:
        """What each rank passes, in order."""
        if self.size == 1:
            return [value]
        self.meet()
        values: list[Any] = [None] * self.size
        with self._reaching():
            dist.all_gather_object(values, value)
        return values

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums over ranks of tensors, by a single exchange."""
        self.meet()
        dtype = tensors[0].dtype
        for tensor in tensors[1:]:
            dtype = torch.promote_types(dtype, tensor.dtype)
        flat = torch.cat([t.reshape(-1).to(dtype) for t in tensors])
        with self._reaching():
            dist.all_reduce(flat)
        parts = flat.split([t.numel() for t in tensors])
        return [p.reshape(t.shape).to(t.dtype) for p, t in zip(parts, tensors, strict=True)]

    def gathered(self, rows: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """The rows of all ranks in the order of the batch, which has so many."""
        self.meet()
        whole = {}
        with self._reaching():
            for name, value in rows.items():
                parts = [torch.empty_like(value) for _ in range(self.size)]
                dist.all_gather(parts, value.contiguous())
                whole[name] = torch.cat(parts)[:number]
        return whole

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """While it is entered, what one rank raises all raise."""
        token = CURRENT.set(self)
        try:
            yield
            self.meet()
        except BaseException as error:
            if not self._parted:
                self.meet(error)
            raise
        finally:
            CURRENT.reset(token)

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch.distributed's errors are such
            self._parted = True
            raise Lost(
                f"process {self.rank} of {self.size} lost another one of this training: it was "
                "killed, or its machine or the network is gone; start the same command again, "
                "with resume=True where out names a folder, and it goes on from what was saved"
            ) from error


ALONE = Ranks()
CURRENT: ContextVar[Ranks | None] = ContextVar("ranks", default=None)


def current() -> Ranks:
    """Those that this code is among; :data:`ALONE` outside a training of several processes."""
    return CURRENT.get() or ALONE


def _device() -> str:
    """Where messages lie: the CPU, unless only NCCL carries them."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"


def _made(kind: str, message: str, extra: dict[str, Any]) -> BaseException:
    """An error that another rank has raised."""
    cls = getattr(builtins, kind)
    if issubclass(cls, SystemExit):
        error: BaseException = Ended(message)
        error.code = 128 + extra.get("signal", signal.SIGTERM)  # type: ignore[attr-defined]
    else:
        try:
            error = cls(message)
        except TypeError:  # of the few that want more, as UnicodeDecodeError
            error = RuntimeError(f"{kind}: {message}")
    vars(error).update(extra)
    return error


class Ended(SystemExit):
    """SIGTERM has ended another process of this training."""
