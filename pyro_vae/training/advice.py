"""What a training warns of: steps that lead nowhere, collapse, divergence, scales at a floor."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.densities.look import Look
from pyro_vae.errors import PyroVaeWarning, users_line
from pyro_vae.graphs.products import LARGE
from pyro_vae.program.rows import Rows


def warn_about_divergence(history: Any, name: str = "") -> None:
    """Warn where a run of finite numbers ended far below where it began.

    Args:
        history: the data frame of a run.
        name: which of several runs it is, for the message.
    """
    if "bound" not in history or len(history) < 20:  # a few steps are no training
        return
    first, last = (float(history["bound"].iloc[i]) for i in (0, -1))
    if last < first - max(100.0, abs(first)):
        warnings.warn(
            f"{name}the bound ended at {last:,.0f} nats per datum, where it began at {first:,.0f}: "
            "training diverged, though every number is finite; lower lr, set clip, or let the "
            "first steps only accumulate, optimizer=pv.optimizers.Adagrad",
            PyroVaeWarning,
            stacklevel=users_line(),
        )


class Collapse:
    r"""Sees a posterior fall back on the prior, soon after it does.

    KL(q(z | x) || p(z)) of a site, averaged over ``ROWS`` rows or a larger minibatch, within
    ``NOTHING`` of 0 twice in a row after it was above ``SOMETHING``: z has ceased to say anything
    of x, from which training seldom comes back.  Where it never said anything there is no fall;
    ``pv.diagnose`` tells of that.

    One row may well have a KL of 0, and a sampled KL is noisy, hence the average and the second
    look.  A guide that starts away from the prior often comes near it before it learns, hence
    ``PATIENCE`` looks where the fall is from where the training began.
    """

    NOTHING, SOMETHING = 0.01, 0.5
    ROWS, PATIENCE = 100, 50

    def __init__(self) -> None:
        self._highest: dict[str, tuple[float, int]] = {}
        self._sums: dict[str, tuple[float, int]] = {}  # of rows that are not enough for a look
        self._low: dict[str, int] = {}  # looks in a row that saw nothing
        self._began = 0

    def remember(self, records: Iterable[Mapping[str, Any]]) -> None:
        """What the history of a run says that goes on."""
        for record in records:
            for column, value in record.items():
                if column.startswith("kl.") and value > self._highest.get(column, (0.0, 0))[0]:
                    self._highest[column] = float(value), int(record["step"])

    def watch(self, means: dict[str, float], rows: int, step: int, name: str = "") -> None:
        """Look at the means of a step over so many rows; warns once for each fall of a site."""
        self._began = self._began or step
        for column, value in means.items():
            if not column.startswith("kl."):
                continue
            total, seen = self._sums.get(column, (0.0, 0))
            total, seen = total + value * rows, seen + rows
            if seen < self.ROWS:
                self._sums[column] = total, seen
            else:
                self._sums[column] = 0.0, 0
                self._look(column, total / seen, step, name)

    def _look(self, column: str, value: float, step: int, name: str) -> None:
        highest, when = self._highest.get(column, (0.0, self._began))
        if value > highest:
            self._highest[column] = highest, when = value, step
        self._low[column] = self._low.get(column, 0) + 1 if abs(value) < self.NOTHING else 0
        enough = 2 if when > self._began + self.PATIENCE else self.PATIENCE
        if highest > self.SOMETHING and self._low[column] >= enough:
            self._highest[column] = 0.0, step
            warnings.warn(
                f'{name}step {step}: the posterior of site "{column[3:]}" fell back on its '
                f"prior, KL {value:.2g} nats per datum, where it was {highest:.2g} at step "
                f"{when}: it says nothing of the data any more; lower lr, warm the KL term up, "
                "pv.objectives.AEVB(kl_warmup=1000), or give the decoder less to say alone",
                PyroVaeWarning,
                stacklevel=users_line(),
            )


def warn_at_floor(program: nn.Module, x: Rows) -> None:
    """Warn where an observed site's scale sits at the floor of the program's likelihood.

    There the density would grow without bound if it could (a pixel that never changes), so log p(x)
    says how low the floor is and not how good the model.
    """
    floor: Any = getattr(getattr(program, "likelihood", None), "floor", None)
    if not isinstance(floor, float):
        return
    for name, site in Look.at(program, x, rows=None).model.items():
        scale = getattr(site.base, "scale", None)
        if not site.observed or not isinstance(scale, Tensor):
            continue
        events = scale.reshape(-1, site.event_shape.numel())
        stuck = int((events < 1.05 * floor).all(0).sum())
        if stuck:
            warnings.warn(
                f'the scale of site "{name}" is at its floor {floor:g} in {stuck} of '
                f"{events.shape[1]} dimensions for every row: log p(x) depends on the floor there; "
                "drop constant dimensions, or raise floor to the precision of the data",
                PyroVaeWarning,
                stacklevel=users_line(),
            )


def warn_if_nothing_moves(optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    """Warn where the whole budget goes into steps that only accumulate squared gradients."""
    waits = min(group.get("accumulate_steps", 0) for group in optimizer.param_groups)
    if num_steps <= waits:
        warnings.warn(
            f"no parameter will move: the budget is {num_steps} steps, and for its first {waits} "
            "this optimizer only accumulates squared gradients; raise the budget, or lower its "
            "accumulate_steps",
            PyroVaeWarning,
            stacklevel=users_line(),
        )


def warn_if_warmup_never_ends(objective: Any, num_steps: int) -> None:
    """Warn where the KL term never comes to count in full."""
    warmup = getattr(objective, "kl_warmup", 0)
    if warmup > num_steps:
        warnings.warn(
            f"the budget is {num_steps} steps and kl_warmup is {warmup}, so the KL term counts at "
            f"most {num_steps / warmup:.1%} and what is trained is never the ELBO: raise the "
            "budget, or lower kl_warmup",
            PyroVaeWarning,
            stacklevel=users_line(),
        )


def warn_if_nothing_is_rounded(graph: Any, precision: str) -> None:
    """Warn where another precision of products was asked for and none of them is large enough."""
    if graph is not None and graph.exact is not None and not graph.grads.rough:
        warnings.warn(
            f"matmul_precision is {precision!r}, and no matrix product of a step takes {LARGE:,} "
            "multiplications in float32, from which on it pays: nothing is computed otherwise than "
            "without it",
            PyroVaeWarning,
            stacklevel=users_line(),
        )
