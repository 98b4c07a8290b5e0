"""The paper's optimizer; any other is ``torch.optim``'s own."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae import defaults, errors
from pyro_vae.noise import LOOK, seeded
from pyro_vae.torch_internals import compiler_left_out


class Adagrad(torch.optim.Adagrad):
    r"""Adagrad that only accumulates squared gradients for its first steps.

    .. math:: s \leftarrow s + g^2, \qquad w \leftarrow w - \eta\, g / \sqrt{s}

    Plain Adagrad starts from s = 0, so its first step has length eta whatever the gradient.
    Wake-sleep does not recover from that on MNIST at eta = 0.02; with 100 steps that accumulate
    and do not move, as in the paper's author's own code, it does.

    Args:
        params, lr, and the rest: as in ``torch.optim.Adagrad``.
        accumulate_steps: how many steps only accumulate.

    Differs from the author's code in adding eps outside the root.
    """

    def __init__(
        self, params: Any, lr: float = 0.02, *, accumulate_steps: int = 100, **options: Any
    ) -> None:
        accumulate_steps = errors.whole("accumulate_steps", accumulate_steps, 0)
        errors.within("lr", lr, "[0, inf)")
        super().__init__(params, lr=lr, **options)
        for group in self.param_groups:  # in the groups, so that it is saved with the state
            group["accumulate_steps"] = accumulate_steps
            group["steps_taken"] = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = self.count_step(group)
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate

    @staticmethod
    def count_step(group: dict[str, Any]) -> Any:
        """The step size of the update that comes, which is thereby counted: 0 while s grows."""
        group["steps_taken"] += 1
        return group["lr"] * (group["steps_taken"] > group["accumulate_steps"])


def _class_of(optimizer: Callable[..., Any]) -> type[torch.optim.Optimizer] | None:
    """The class that is to be given a step size; None where that is said, or hidden, already."""
    kind, said = optimizer, {}
    if isinstance(optimizer, functools.partial):
        kind, said = optimizer.func, optimizer.keywords
    fits = isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and "lr" not in said
    return kind if fits else None  # type: ignore[return-value]


def step_size(optimizer: Callable[..., Any], lr: Any) -> float | None:
    """The step size that an optimizer is made with; None where it brings its own.

    Adagrad's default is the paper's 0.02.  Other classes keep the default that their author gave
    them: in torch 0.001 for Adam, AdamW, RAdam and SGD, 0.002 for Adamax and NAdam, 0.01 for
    RMSprop, 1 for Adadelta.  Gradients are sums over the minibatch, which Adagrad, Adam and their
    like do not feel, and SGD does: its 0.001 is what 0.1 would be for means over 100 rows.

    Raises:
        ValueError: none is given and the class has no default; or one is given to a function,
            which would not pass it on.
    """
    kind = _class_of(optimizer)
    name = getattr(optimizer, "__name__", type(optimizer).__name__)
    if kind is None:
        if lr is not None:
            raise ValueError(
                f"lr is {lr!r}, and the optimizer is made by {name}, which brings its own: set it "
                "there, or pass a class, optimizer=torch.optim.Adam"
            )
        return None
    if lr is not None:
        return errors.positive("lr", lr)
    if issubclass(kind, torch.optim.Adagrad):
        return defaults.LR
    option = inspect.signature(kind).parameters.get("lr")
    own = None if option is None else option.default
    if isinstance(own, (int, float)):
        return float(own)
    raise ValueError(
        f"lr is not given and {kind.__name__} has no default, expected a step size: pass lr=1e-3"
    )


@compiler_left_out()
def make_optimizer(
    optimizer: Callable[..., torch.optim.Optimizer], parameters: dict[str, Tensor], lr: float | None
) -> torch.optim.Optimizer:
    values = list(parameters.values())
    make: Callable[..., Any] = optimizer
    if lr is not None:
        try:
            return make(values, lr=lr, fused=True)
        except (TypeError, RuntimeError):  # this class, or this device, has no fused kernel
            return make(values, lr=lr)
    made = make(values)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer returned {type(made).__name__}, expected a torch.optim.Optimizer: pass a "
            "class such as torch.optim.Adam, or a callable on parameters"
        )
    _require_these(made, parameters)
    return made


def _require_these(optimizer: torch.optim.Optimizer, parameters: dict[str, Tensor]) -> None:
    """Refuse an optimizer that moves something else, which trains a part or nothing."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    expected = "expected one that moves the parameters it is given, all of them"
    others = held - {id(p) for p in parameters.values()}
    if others:
        raise ValueError(
            f"optimizer returned a {type(optimizer).__name__} with {len(others)} parameters that "
            f"are not the program's, {expected}: make it inside the callable, "
            "lambda parameters: torch.optim.Adam(parameters, lr=1e-3)"
        )
    left = [name for name, p in parameters.items() if id(p) not in held]
    if left:
        raise ValueError(
            f'optimizer returned a {type(optimizer).__name__} without "{left[0]}" '
            f"({len(left)} of {len(parameters)} parameters are left out), {expected}: freeze by "
            "requires_grad_(False) what is not to be learnt"
        )


def options_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the optimizer was made with, by name: plain values."""
    options: dict[str, Any] = {}
    for number, group in enumerate(optimizer.param_groups):
        for name, value in group.items():
            if name not in ("params", *SWITCHES):
                plain = value.tolist() if isinstance(value, torch.Tensor) else value
                options[f"{name} of group {number}" if number else name] = plain
    return options


SWITCHES = ("fused", "foreach", "capturable")  # how an optimizer computes, not what


def takes_a_step(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> bool:
    """Whether a copy of it, with this state, can take a step, of gradients that are zero.

    What a state must hold is known to the class alone, and only its step looks.  A class whose
    copies take no step with a state of their own either is not judged.
    """
    return _steps(optimizer, saved) or not _steps(optimizer, None)


def _steps(optimizer: torch.optim.Optimizer, saved: dict[str, Any] | None) -> bool:
    with seeded(*LOOK):
        try:
            tried = copy.deepcopy(optimizer)
            if saved is not None:
                restore_optimizer(tried, copy.deepcopy(saved))
            for group in tried.param_groups:
                for p in group["params"]:
                    p.grad = torch.zeros_like(p)
            tried.step()
        except Exception:  # a class of anybody's
            return False
    return True


@compiler_left_out()
def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        group |= {name: own[name] for name in SWITCHES if name in own}  # of this device
    optimizer.load_state_dict(saved)
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for slot, parameter in enumerate(parameters):
        for name, value in saved["state"].get(slot, {}).items():
            if isinstance(value, Tensor):  # torch gives some the parameter's dtype
                own = optimizer.state[parameter]
                own[name] = value.to(own[name].device)
