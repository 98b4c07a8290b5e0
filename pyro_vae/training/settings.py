"""What ``fit`` may be asked for: its options, checked by name and turned into what they mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.optim.optim import PyroOptim

from pyro_vae.progress import Record
from pyro_vae.training.batches import Batches


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of ``fit`` for one program, as its docstring tells them."""

    samples: int | None = None
    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 100
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adagrad
    lr: float = 0.02
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None
    clip: float | None = None
    weight_prior: float = 0.0
    seed: int = 0
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    engine: str = "auto"
    validation: Any = None
    evaluate_every: int | None = None
    early_stopping: int | None = None
    callbacks: Iterable[Callable[[Record], Any]] = ()
    out: str | Path | None = None
    resume: bool = False
    checkpoint_every: float | None = None
    progress: bool | Callable[[Record], Any] | None = None

    def __post_init__(self) -> None:
        _check_options(vars(self))

    def budget(self, batches: Batches) -> tuple[int, int]:
        """(updates, samples) of the run; an update at an epoch's end counts fewer rows."""
        samples, epochs, steps = self.samples, self.epochs, self.steps
        whole, size = batches.num_data, batches.batch_size
        if epochs is not None:
            samples = round(epochs * whole)
        if samples is not None:
            full, rest = divmod(samples, whole)
            return max(1, full * batches.per_epoch + -(-rest // size)), samples
        number = int(steps or 0)
        full, rest = divmod(number, batches.per_epoch)
        return number, full * whole + min(rest * size, whole)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


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


def _check_options(options: dict[str, Any]) -> None:
    _check_kinds(options)
    numbers = ("samples", "epochs", "steps", "batch_size", "lr", "clip", "weight_prior", "seed",
               "evaluate_every", "early_stopping")  # fmt: skip
    for name in numbers:
        value = options[name]
        optional = name not in ("batch_size", "lr", "weight_prior", "seed")
        if (value is None and optional) or _is_number(value):
            continue
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}), expected a number")
    if int(options["seed"]) != options["seed"] or not -(2**62) < options["seed"] < 2**62:
        raise ValueError(f"seed is {options['seed']!r}, expected a whole number below 2**62")
    budget = {name: options[name] for name in ("samples", "epochs", "steps")}
    given = {name: value for name, value in budget.items() if value is not None}
    if len(given) != 1:
        raise ValueError(
            f"the budget is {given or 'not given'}, expected exactly one of samples, epochs and "
            "steps, such as samples=150_000"
        )
    if options["early_stopping"] is not None and options["validation"] is None:
        raise ValueError("early_stopping needs held-out data: pass validation=data.validation")
    for name in ("resume", "checkpoint_every"):
        if options[name] and options["out"] is None:
            raise ValueError(f"{name} needs a folder: pass out=")
    positive = ("lr", "clip", "batch_size", "evaluate_every", "early_stopping", "checkpoint_every")
    for name, value in {**given, **{name: options[name] for name in positive}}.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}, expected a positive finite number")
    for name in ("samples", "steps", "batch_size", "evaluate_every", "early_stopping"):
        value = options[name]
        if value is not None and int(value) != value:
            raise ValueError(f"{name} is {value}, expected a whole number")
    if not (options["weight_prior"] >= 0 and math.isfinite(options["weight_prior"])):
        raise ValueError(f"weight_prior is {options['weight_prior']}, expected 0 or a precision")
