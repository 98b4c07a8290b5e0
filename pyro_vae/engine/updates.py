r"""Optimizer updates as pure functions, so that they can be a part of a captured step.

torch's optimizers change parameters and their own state in place, from Python.  A rule here says
the same thing as a function of tensors, entry by entry, so it fuses with what computes the
gradient and ``vmap``-s over replicas with a step size each.  The torch optimizer stays where the
state lives: what is saved, scheduled and resumed is that.

Each group of parameters has a rule of its own, all of one kind.  What is a number may differ from
group to group and, by a schedule, from step to step; what decides which tensors there are may not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_vae.optimizers import Adagrad


class Rule(Protocol):
    """The update of a parameter.

    Attributes:
        names: of the state tensors that it has, each of its shape.
        num_numbers: how many :meth:`numbers` there are.
        counts: whether torch keeps the number of updates beside them, as "step".
    """

    @property
    def counts(self) -> bool: ...

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
        self, p: Tensor, grad: Tensor, state: tuple[Tensor, ...], numbers: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """New parameter and state."""
        ...


@dataclass(frozen=True)
class AdagradRule:
    r"""s <- s + g^2, w <- w - lr g / (\sqrt{s} + eps)."""

    decays: bool = False  # g + weight_decay w in place of g
    names = ("sum",)
    num_numbers = 3
    counts = True

    def numbers(self, group, step):
        rate = float(group["lr"]) / (1 + (step - 1) * float(group["lr_decay"]))
        return rate, float(group["eps"]), float(group["weight_decay"])

    def __call__(self, p, grad, state, numbers):
        lr, eps, decay = numbers
        grad = grad + decay * p if self.decays else grad
        total = state[0] + grad * grad
        return p - lr * grad / (total.sqrt() + eps), (total,)


@dataclass(frozen=True)
class AdamRule:
    r"""m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, w <- k w - lr m' / (\sqrt{v'} + eps).

    m' and v' are m and v over 1 - b^step, under ``amsgrad`` of the largest v; k is 1, and for AdamW
    1 - lr weight_decay.
    """

    decays: bool = False
    decoupled: bool = False
    amsgrad: bool = False
    num_numbers = 8
    counts = True

    @property
    def names(self):
        return ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if self.amsgrad else ()))

    def numbers(self, group, step):
        # Python's doubles: in float32, 1 - 0.999^1 has lost four of its seven digits.
        b1, b2 = map(float, group["betas"])
        size, root = float(group["lr"]) / (1 - b1**step), (1 - b2**step) ** 0.5
        decay = float(group["weight_decay"])
        kept = 1 - float(group["lr"]) * decay if self.decoupled else 1.0
        return 1 - b1, b2, 1 - b2, size, root, kept, float(group["eps"]), decay

    def __call__(self, p, grad, state, numbers):
        new_share, keep, new_share_sq, size, root, kept, eps, decay = numbers
        grad = grad + decay * p if self.decays and not self.decoupled else grad
        m, v, *most = state
        m, v = m + new_share * (grad - m), keep * v + new_share_sq * grad * grad
        most = [torch.maximum(most[0], v)] if self.amsgrad else []
        root_of = (most[0] if most else v).sqrt() / root + eps
        return p * kept - size * m / root_of, (m, v, *most)


@dataclass(frozen=True)
class SGDRule:
    r"""w <- w - lr g; with momentum b <- mu b + g, w <- w - lr b, Nesterov's w - lr (g + mu b)."""

    decays: bool = False
    momentum: bool = False
    nesterov: bool = False
    num_numbers = 3
    counts = False

    @property
    def names(self):
        return ("momentum_buffer",) if self.momentum else ()

    def numbers(self, group, step):
        return float(group["lr"]), float(group["momentum"]), float(group["weight_decay"])

    def __call__(self, p, grad, state, numbers):
        lr, momentum, decay = numbers
        grad = grad + decay * p if self.decays else grad
        if not self.momentum:
            return p - lr * grad, ()
        moved = momentum * state[0] + grad
        return p - lr * (grad + momentum * moved if self.nesterov else moved), (moved,)


@dataclass(frozen=True)
class RMSpropRule:
    r"""v <- a v + (1 - a) g^2, w <- w - lr g / (\sqrt{v} + eps), and momentum as that of SGD.

    ``centered`` takes the mean of g, squared, from v.
    """

    decays: bool = False
    momentum: bool = False
    centered: bool = False
    num_numbers = 6
    counts = True

    @property
    def names(self):
        more = ("momentum_buffer",) if self.momentum else ()
        return ("square_avg", *more, *(("grad_avg",) if self.centered else ()))

    def numbers(self, group, step):
        keep = float(group["alpha"])
        eps, momentum, decay = (float(group[n]) for n in ("eps", "momentum", "weight_decay"))
        return float(group["lr"]), keep, 1 - keep, eps, momentum, decay

    def __call__(self, p, grad, state, numbers):
        lr, keep, new_share, eps, momentum, decay = numbers
        grad = grad + decay * p if self.decays else grad
        held = dict(zip(self.names, state, strict=True))
        held["square_avg"] = keep * held["square_avg"] + new_share * grad * grad
        spread = held["square_avg"]
        if self.centered:
            held["grad_avg"] = held["grad_avg"] + new_share * (grad - held["grad_avg"])
            spread = spread - held["grad_avg"] * held["grad_avg"]
        move = grad / (spread.sqrt() + eps)
        if self.momentum:
            move = held["momentum_buffer"] = momentum * held["momentum_buffer"] + move
        return p - lr * move, tuple(held[n] for n in self.names)


@dataclass(frozen=True)
class Rules:
    """One optimizer's update of all parameters.

    Attributes:
        rule: of each of them.
        groups: the number of each one's group, in the order of the program.
    """

    rule: Rule
    groups: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return self.rule.names

    @property
    def num_numbers(self) -> int:
        return self.rule.num_numbers * (max(self.groups) + 1)

    def numbers(self, groups: Sequence[dict[str, Any]], step: int) -> tuple[float, ...]:
        """Those of all groups, one after another."""
        return tuple(n for group in groups for n in self.rule.numbers(group, step))

    def moved(
        self,
        number: int,
        p: Tensor,
        grad: Tensor,
        state: tuple[Tensor, ...],
        numbers: Sequence[Tensor],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Parameter ``number`` and its state after an update."""
        start = self.groups[number] * self.rule.num_numbers
        return self.rule(p, grad, state, numbers[start : start + self.rule.num_numbers])


KNOWN = "Adagrad, Adam, AdamW, RMSprop, and SGD without dampening"


def rules_of(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> Rules | None:
    """The rules of an optimizer of ``torch.optim``, or of the paper's; None of any other.

    Args:
        optimizer: of these parameters, in one group or several.
        parameters: in the order of the program.
    """
    place = {id(p): n for n, group in enumerate(optimizer.param_groups) for p in group["params"]}
    if {*map(id, parameters)} != {*place} or len(parameters) != len(place):
        return None
    found = {_rule_of(optimizer, group) for group in optimizer.param_groups}
    rule = next(iter(found))
    if len(found) > 1 or rule is None:
        return None
    return Rules(rule, tuple(place[id(p)] for p in parameters))


def _rule_of(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> Rule | None:
    kind = type(optimizer)
    if group.get("maximize") or group.get("differentiable"):
        return None
    groups = optimizer.param_groups

    def any_of(name: str) -> bool:  # what is 0 in some groups is computed in all of them
        return any(bool(each.get(name)) for each in groups)

    decays = any_of("weight_decay")
    if kind in (torch.optim.Adagrad, Adagrad):
        return AdagradRule(decays)
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        decoupled = kind is torch.optim.AdamW or bool(group.get("decoupled_weight_decay"))
        return AdamRule(decays, decoupled, bool(group["amsgrad"]))
    if kind is torch.optim.SGD and not group["dampening"]:
        return SGDRule(decays, any_of("momentum"), bool(group["nesterov"]))
    if kind is torch.optim.RMSprop:
        return RMSpropRule(decays, any_of("momentum"), bool(group["centered"]))
    return None


def bind(
    optimizer: torch.optim.Optimizer, rules: Rules, parameters: Sequence[Tensor]
) -> list[Tensor]:
    """The count of updates, then the state tensors of all parameters, made where there are none.

    All parameters share one count, which the state of an optimizer that counts then holds as well.
    """
    states = [optimizer.state[p] for p in parameters]
    step = torch.as_tensor(states[0].get("step", 0.0), dtype=torch.float32)
    count = step.to(parameters[0].device, copy=True)
    tensors = [
        _held(state, name, p).detach()
        for p, state in zip(parameters, states, strict=True)
        for name in rules.names
    ]
    rebind(optimizer, rules, parameters, [count, *tensors])
    return [count, *tensors]


def _held(state: dict[str, Any], name: str, p: Tensor) -> Tensor:
    found = state.get(name)  # SGD's is None where it has no momentum
    if found is None:
        return torch.zeros_like(p, memory_format=torch.preserve_format)
    return found


def rebind(
    optimizer: torch.optim.Optimizer,
    rules: Rules,
    parameters: Sequence[Tensor],
    tensors: list[Tensor],
) -> None:
    """Let the optimizer's state be these tensors, as :func:`bind` orders them."""
    count, *rest = tensors
    entries = iter(rest)
    for p in parameters:
        state: dict[str, Any] = optimizer.state[p]
        if rules.rule.counts:
            state["step"] = count
        for name in rules.names:
            state[name] = next(entries)


def numbers_of(optimizer: torch.optim.Optimizer, rules: Rules, step: int) -> tuple[float, ...]:
    """The numbers of the update that comes, number ``step``, which is thereby counted."""
    groups: list[dict[str, Any]] = optimizer.param_groups
    optimizer._opt_called = True  # type: ignore[attr-defined]  # schedules look for it
    if isinstance(optimizer, Adagrad):
        groups = [{**group, "lr": optimizer.count_step(group)} for group in groups]
    return rules.numbers(groups, step)


def unbind(
    optimizer: torch.optim.Optimizer,
    rules: Rules,
    parameters: Sequence[Tensor],
    tensors: list[Tensor],
) -> None:
    """Let each parameter have a state of its own again, as torch's own ``step`` expects it."""
    rebind(optimizer, rules, parameters, [t.clone() for t in tensors])
    for p in parameters if rules.rule.counts else ():
        optimizer.state[p]["step"] = tensors[0].clone()
    if isinstance(optimizer, Adagrad):  # which may have counted a step that was refused
        for group in optimizer.param_groups:
            group["steps_taken"] = int(tensors[0])
