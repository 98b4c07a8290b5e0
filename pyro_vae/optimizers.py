"""The paper's optimizer; any other is ``torch.optim``'s own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


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
        if accumulate_steps < 0:
            raise ValueError(f"accumulate_steps is {accumulate_steps}, expected 0 or more")
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
