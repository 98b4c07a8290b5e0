"""What stands beside the draws as it was given: covariates, labels, true latents."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_vae.inference_data.draws import as_array
from pyro_vae.inference_data.programs import Plan
from pyro_vae.program.rows import Rows


def true_values(given: Any, plan: Plan, rows: int) -> dict[str, np.ndarray]:
    """The true latents by site, in the shapes of the latents."""
    form, shared = plan.form, plan.shared
    if given is None:
        return {}
    if not isinstance(given, dict):
        if len(form.latents) != 1:
            raise ValueError(
                f"true_latents is {type(given).__name__} and the guide has the latents "
                f"{', '.join(form.latents)}, expected a dict by site"
            )
        given = {next(iter(form.latents)): given}
    truths = {name: as_array(value) for name, value in given.items()}
    for name, truth in truths.items():
        if name not in form.latents:
            raise ValueError(
                f'true_latents has "{name}", expected latents of the guide: '
                f"{', '.join(form.latents)}"
            )
        expected = plan.shapes[name] if name in shared else (rows, *plan.shapes[name])
        each = "all rows together" if name in shared else "each row of x"
        if truth.shape != expected:
            raise ValueError(
                f'true_latents of "{name}" have shape {truth.shape}, expected {expected}: one '
                f"value for {each}"
            )
    return truths


def beside(
    x: Any, rows: Rows, plan: Plan, truths: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What is given besides x, and for each true latent the site whose dimensions it shares."""
    seen = {entry for entry in plan.look.entries.values() if entry}
    entries = rows if isinstance(rows, dict) else {}
    constants: dict[str, Any] = {name: v for name, v in entries.items() if name not in seen}
    if getattr(x, "labels", None) is not None:
        constants["labels"] = x.labels
    for name, truth in truths.items():
        if f"true_{name}" in constants:
            raise ValueError(
                f'x has an entry "true_{name}", which is what the true latents of "{name}" are '
                "called: rename the entry"
            )
        constants[f"true_{name}"] = truth
    return constants, {f"true_{name}": name for name in truths}
