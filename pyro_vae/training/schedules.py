"""Learning-rate schedulers: called after each update, or told the loss on held-out data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from pyro_vae.optimizers import options_of
from pyro_vae.recording import form_of
from pyro_vae.runs.held import object_record


def scheduler_of(schedule: Callable[..., Any], optimizer: torch.optim.Optimizer) -> Any:
    """What a schedule makes of the run's own optimizer."""
    made = schedule(optimizer)
    if not all(callable(getattr(made, name, None)) for name in ("step", "state_dict")):
        got = "None" if made is None else type(made).__name__
        raise TypeError(
            f"schedule returned {got}, expected a learning-rate scheduler: return it, lambda "
            "optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.999)"
        )
    if getattr(made, "optimizer", optimizer) is not optimizer:
        raise ValueError(
            f"schedule returned a {type(made).__name__} of another optimizer, expected one of the "
            "optimizer that it is given: make it inside the callable"
        )
    return made


METRICS = ("metrics", "metric", "loss", "val_loss")


def is_told(scheduler: Any, watched: bool) -> bool:
    """Whether a scheduler's ``step`` asks for the held-out loss, as ReduceLROnPlateau's does.

    Args:
        scheduler: of learning rates.
        watched: whether there is a held-out bound to tell it.

    Raises:
        ValueError: there is none to tell it; or it asks for something else.
    """
    kind = type(scheduler).__name__
    asked = _asked(scheduler)
    if len(asked) > 1 or not {*asked} <= {*METRICS}:
        raise ValueError(
            f"schedule returned a {kind} which has step({', '.join(asked)}), expected one with "
            "step(), which is called after each update, or step(metrics), which is told the "
            "held-out loss at each evaluation: pass one of these"
        )
    if not asked:
        return False
    if not watched:
        raise ValueError(
            f"schedule returned a {kind}, which is told the held-out loss, and there is none: pass "
            "validation=data.validation under an objective with a bound, or a schedule of steps, "
            "functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.999)"
        )
    return True


def _asked(scheduler: Any) -> list[str]:
    """What ``scheduler.step`` cannot be called without."""
    return [
        option.name
        for option in inspect.signature(scheduler.step).parameters.values()
        if option.default is option.empty
        and option.kind not in (option.VAR_POSITIONAL, option.VAR_KEYWORD)
    ]


def schedule_record(schedule: Any, scheduler: Any) -> Any:
    """What a schedule was made with, before its first step, and what its functions do.

    Its ``state_dict`` would leave out functions, and of a class of the user's whatever it likes.
    """
    if schedule is None:
        return None
    held: Any = object_record(scheduler, without=("optimizer",))
    # Some write to the optimizer's groups: OneCycleLR its max_lr.
    groups = options_of(scheduler.optimizer) if hasattr(scheduler, "optimizer") else {}
    return held | {f"{name} of the optimizer": form_of(value) for name, value in groups.items()}
