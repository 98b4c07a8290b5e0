r"""Optimizer updates as pure functions, so that they can be a part of a captured step.

torch's optimizers change parameters and their own state in place, from Python.  A rule here says
the same thing as a function of tensors, entry by entry, so it fuses with what computes the
gradient and ``vmap``-s over replicas with a step size each.  The torch optimizer stays where the
state lives: what is saved, scheduled and resumed is that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_vae.optimizers import Adagrad


class Rule(Protocol):
    """One optimizer's update.

    Attributes:
        names: of the state tensors that a parameter has, each of its shape.
        num_numbers: how many :meth:`numbers` there are.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def num_numbers(self) -> int: ...

    def numbers(self, group: dict[str, Any], step: int) -> tuple[float, ...]:
        """What update number ``step`` (1, 2, ...) takes from the optimizer's group as it is now.

        Schedules change step sizes, and some of them more than that.
        """
        ...

    def __call__(
        self, p: Tensor, grad: Tensor, state: tuple[Tensor, ...], numbers: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """New parameter and state."""
        ...


@dataclass(frozen=True)
class AdagradRule:
    r"""s <- s + g^2, w <- w - lr g / (\sqrt{s} + eps)."""

    eps: float
    names = ("sum",)
    num_numbers = 1

    def numbers(self, group, step):
        return (float(group["lr"]),)

    def __call__(self, p, grad, state, numbers):
        (lr,) = numbers
        total = state[0] + grad * grad
        return p - lr * grad / (total.sqrt() + self.eps), (total,)


@dataclass(frozen=True)
class AdamRule:
    r"""m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, w <- k w - lr m' / (\sqrt{v'} + eps).

    m' and v' are m and v over 1 - b^step; k is 1, and for AdamW 1 - lr weight_decay.
    """

    eps: float
    names = ("exp_avg", "exp_avg_sq")
    num_numbers = 6

    def numbers(self, group, step):
        # Python's doubles: in float32, 1 - 0.999^1 has lost four of its seven digits.
        b1, b2 = map(float, group["betas"])
        size, root = float(group["lr"]) / (1 - b1**step), (1 - b2**step) ** 0.5
        kept = 1 - float(group["lr"]) * float(group["weight_decay"])
        return 1 - b1, b2, 1 - b2, size, root, kept

    def __call__(self, p, grad, state, numbers):
        new_share, keep, new_share_sq, size, root, kept = numbers
        m, v = state
        m, v = m + new_share * (grad - m), keep * v + new_share_sq * grad * grad
        return p * kept - size * m / (v.sqrt() / root + self.eps), (m, v)


def rule_of(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor] | None = None
) -> Rule | None:
    """The rule of a plain Adagrad or Adam, or of AdamW, with one group of parameters, else None.

    Args:
        optimizer: of ``torch.optim``, or the paper's.
        parameters: those that the group must hold, in this order.
    """
    if len(optimizer.param_groups) != 1:
        return None
    group = optimizer.param_groups[0]
    if parameters is not None and [*map(id, group["params"])] != [*map(id, parameters)]:
        return None
    decoupled = type(optimizer) is torch.optim.AdamW  # from the gradient: a factor of w
    if group.get("maximize") or group.get("amsgrad"):
        return None
    if group.get("weight_decay") and not decoupled:
        return None
    if type(optimizer) in (torch.optim.Adagrad, Adagrad) and not group["lr_decay"]:
        return AdagradRule(group["eps"])
    adam = type(optimizer) is torch.optim.Adam and not group.get("decoupled_weight_decay")
    if adam or decoupled:
        return AdamRule(group["eps"])
    return None


def bind(optimizer: torch.optim.Optimizer, rule: Rule) -> list[Tensor]:
    """The count of updates, then the state tensors of all parameters, made where there are none.

    All parameters share one count, which the optimizer's own state then holds as well.
    """
    parameters = optimizer.param_groups[0]["params"]
    states = [optimizer.state[p] for p in parameters]
    step = torch.as_tensor(states[0].get("step", 0.0), dtype=torch.float32)
    count = step.to(parameters[0].device, copy=True)
    tensors = [
        state.get(name, torch.zeros_like(p, memory_format=torch.preserve_format)).detach()
        for p, state in zip(parameters, states, strict=True)
        for name in rule.names
    ]
    rebind(optimizer, rule, [count, *tensors])
    return [count, *tensors]


def rebind(optimizer: torch.optim.Optimizer, rule: Rule, tensors: list[Tensor]) -> None:
    """Let the optimizer's state be these tensors, as :func:`bind` orders them."""
    count, *rest = tensors
    entries = iter(rest)
    for p in optimizer.param_groups[0]["params"]:
        state: dict[str, Any] = optimizer.state[p]
        state["step"] = count
        for name in rule.names:
            state[name] = next(entries)


def numbers_of(optimizer: torch.optim.Optimizer, rule: Rule, step: int) -> tuple[float, ...]:
    """The numbers of the update that comes, number ``step``, which is thereby counted."""
    group = optimizer.param_groups[0]
    optimizer._opt_called = True  # type: ignore[attr-defined]  # schedules look for it
    if isinstance(optimizer, Adagrad):
        group = {**group, "lr": optimizer.count_step(group)}
    return rule.numbers(group, step)


def unbind(optimizer: torch.optim.Optimizer, rule: Rule, tensors: list[Tensor]) -> None:
    """Let each parameter have a state of its own again, as torch's own ``step`` expects it."""
    rebind(optimizer, rule, [t.clone() for t in tensors])
    for p in optimizer.param_groups[0]["params"]:
        optimizer.state[p]["step"] = tensors[0].clone()
    if isinstance(optimizer, Adagrad):  # which may have counted a step that was refused
        optimizer.param_groups[0]["steps_taken"] = int(tensors[0])
