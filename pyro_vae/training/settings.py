"""What ``fit`` may be asked for: its options, checked by name and turned into what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from pyro.optim.optim import PyroOptim

from pyro_vae import errors
from pyro_vae.engine.choosing import PRECISIONS
from pyro_vae.optimizers import step_size
from pyro_vae.progress import Record
from pyro_vae.training.batches import Batches


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of ``fit`` for one program, as its docstring tells them; its defaults are there.

    Numbers of any kind become Python's own.

    Raises:
        ValueError, TypeError: naming the option.
    """

    samples: int | None
    epochs: float | None
    steps: int | None
    batch_size: int
    optimizer: Callable[..., torch.optim.Optimizer]
    lr: float | None
    schedule: Callable[[torch.optim.Optimizer], Any] | None
    clip: float | None
    weight_prior: float
    seed: int
    device: torch.device | str | None
    dtype: torch.dtype | None
    engine: str
    matmul_precision: str
    validation: Any
    evaluate_every: int | None
    early_stopping: int | None
    keep: str | None
    callbacks: Iterable[Callable[[Record], Any]]
    out: str | Path | None
    resume: bool
    checkpoint_every: float | None
    progress: bool | Callable[[Record], Any] | None

    def __post_init__(self) -> None:
        _check_kinds(vars(self))
        for name, value in _numbers(vars(self)).items():
            object.__setattr__(self, name, value)  # frozen for everyone else
        if self.keep is None:
            object.__setattr__(self, "keep", "best" if self.early_stopping else "last")
        _check_together(vars(self))

    def budget(self, batches: Batches) -> tuple[int, int]:
        """(updates, samples) of the run; an update at an epoch's end counts fewer rows."""
        samples, epochs, steps = self.samples, self.epochs, self.steps
        whole, size = batches.num_data, batches.batch_size
        if epochs is not None:
            samples = round(epochs * whole)
        if samples is not None:
            full, rest = divmod(samples, whole)
            return max(1, full * batches.per_epoch + -(-rest // size)), samples
        number = steps or 0
        full, rest = divmod(number, batches.per_epoch)
        return number, full * whole + min(rest * size, whole)


def _check_kinds(options: dict[str, Any]) -> None:
    """Functions where functions belong, and not what they make."""
    optimizer, schedule = options["optimizer"], options["schedule"]
    callbacks, validation, dtype = (options[n] for n in ("callbacks", "validation", "dtype"))

    def makes(value: Any) -> bool:
        return callable(value) and not isinstance(value, PyroOptim)

    # To look into an iterator would empty it.
    listed = isinstance(callbacks, Iterable) and (
        isinstance(callbacks, Iterator) or all(map(callable, callbacks))
    )
    rate = "functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.999)"
    for name, fits, expected in (
        ("optimizer", makes(optimizer), "a class, torch.optim.Adam, or a callable on parameters"),
        ("schedule", schedule is None or makes(schedule), f"a callable on the optimizer: {rate}"),
        ("callbacks", listed, "a list of functions of a Record: callbacks=[function]"),
        ("validation", not isinstance(validation, str), "rows like those of x: data.validation"),
        ("dtype", isinstance(dtype, torch.dtype | None), "a type of torch: torch.float64"),
    ):
        if not fits:
            value = options[name]
            got = f"an instance of {type(value).__name__}" if "\n" in repr(value) else repr(value)
            raise TypeError(f"{name} is {got}, expected {expected}")
    device = options["device"]
    try:
        device is None or torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError) as error:
        why = str(error).strip().splitlines()[0]
        raise ValueError(
            f'device is {device!r}, which does not work here ({why}), expected "cpu", "cuda" or '
            "another one that torch knows; leave it out to stay where the program is"
        ) from error


def _numbers(options: dict[str, Any]) -> dict[str, Any]:
    """Those options that are numbers, checked; None where an option is not used."""
    made: dict[str, Any] = {
        "batch_size": errors.whole("batch_size", options["batch_size"]),
        "lr": step_size(options["optimizer"], options["lr"]),
        "weight_prior": errors.within(
            "weight_prior", options["weight_prior"], "[0, inf)", "a precision, 0 for none"
        ),
        "seed": errors.seed_number(options["seed"]),
    }
    for names, checked in (
        (("samples", "steps", "evaluate_every", "early_stopping"), errors.whole),
        (("epochs", "clip", "checkpoint_every"), errors.positive),
    ):
        for name in names:
            value = options[name]
            made[name] = None if value is None else checked(name, value)
    if isinstance(options["checkpoint_every"], Integral):  # updates, not seconds
        made["checkpoint_every"] = int(options["checkpoint_every"])
    return made


def _check_together(options: dict[str, Any]) -> None:
    budget = {name: options[name] for name in ("samples", "epochs", "steps")}
    given = {name: value for name, value in budget.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            f"the budget is {given or 'not given'}, expected exactly one of samples, epochs and "
            "steps, such as samples=150_000"
        )
    if options["early_stopping"] is not None and options["validation"] is None:
        raise ValueError("early_stopping needs held-out data: pass validation=data.validation")
    if (precision := options["matmul_precision"]) not in PRECISIONS:
        tf32 = " (TF32 is torch.set_float32_matmul_precision's, for a process)"
        raise ValueError(
            f"matmul_precision is {precision!r}, expected one of "
            f"{', '.join(map(repr, PRECISIONS))}{tf32 if precision == 'high' else ''}"
        )
    if options["keep"] not in ("best", "last"):
        raise ValueError(f'keep is {options["keep"]!r}, expected "best" or "last"')
    if options["keep"] == "best" and options["validation"] is None:
        raise ValueError('keep="best" needs held-out data: pass validation=data.validation')
    for name in ("resume", "checkpoint_every"):
        if options[name] and options["out"] is None:
            raise ValueError(f"{name} needs a folder: pass out=")
