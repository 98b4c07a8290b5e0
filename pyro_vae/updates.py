r"""Optimizer updates as pure functions, so that they can be a part of a captured step.

torch's optimizers change parameters and their own state in place, from Python.  A rule here says
the same thing as a function of tensors, entry by entry, so it fuses with what computes the
gradient and ``vmap``-s over replicas with a step size each.  The torch optimizer stays where the
state lives: what is saved, scheduled and resumed is that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_vae.optimizers import Adagrad


class Rule(Protocol):
    """One optimizer's update.

    Attributes:
        names: of the state tensors that a parameter has, each of its shape.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def __call__(
        self, p: Tensor, grad: Tensor, state: tuple[Tensor, ...], lr: Tensor, step: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """New parameter and state; ``step`` counts from 1."""
        ...


@dataclass(frozen=True)
class AdagradRule:
    r"""s <- s + g^2, w <- w - lr g / (\sqrt{s} + eps)."""

    eps: float
    names = ("sum",)

    def __call__(self, p, grad, state, lr, step):
        total = state[0] + grad * grad
        return p - lr * grad / (total.sqrt() + self.eps), (total,)


@dataclass(frozen=True)
class AdamRule:
    r"""m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, w <- w - lr m' / (\sqrt{v'} + eps).

    m' and v' are m and v over 1 - b^step.
    """

    betas: tuple[float, float]
    eps: float
    names = ("exp_avg", "exp_avg_sq")

    def __call__(self, p, grad, state, lr, step):
        (b1, b2), (m, v) = self.betas, state
        m, v = m + (1 - b1) * (grad - m), b2 * v + (1 - b2) * grad * grad
        size = lr / (1 - b1**step)
        return p - size * m / ((v / (1 - b2**step)).sqrt() + self.eps), (m, v)


def rule_of(optimizer: torch.optim.Optimizer) -> Rule | None:
    """The rule of a plain Adagrad or Adam with one group of parameters, else None."""
    if len(optimizer.param_groups) != 1:
        return None
    group = optimizer.param_groups[0]
    if group.get("weight_decay") or group.get("maximize") or group.get("amsgrad"):
        return None
    if type(optimizer) in (torch.optim.Adagrad, Adagrad) and not group["lr_decay"]:
        return AdagradRule(group["eps"])
    if type(optimizer) is torch.optim.Adam and not group.get("decoupled_weight_decay"):
        return AdamRule(tuple(group["betas"]), group["eps"])
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


def step_size(optimizer: torch.optim.Optimizer) -> float:
    """The step size of the update that comes, which is thereby counted."""
    group = optimizer.param_groups[0]
    optimizer._opt_called = True  # type: ignore[attr-defined]  # schedules look for it
    return float(optimizer.count_step(group) if isinstance(optimizer, Adagrad) else group["lr"])
