"""What each method of ``log_evidence`` asks of a program, its data and its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pyro_vae.chains.latents import Latents
from pyro_vae.densities.look import Look
from pyro_vae.evidence.exact import advice, discrete_latents
from pyro_vae.evidence.importance import require_weights
from pyro_vae.evidence.markov import require_enough_draws
from pyro_vae.evidence.truths import unconstrained
from pyro_vae.program.rows import Rows, first_rows


def require_possible(
    program: nn.Module,
    rows: Rows,
    look: Look,
    options: Any,
    true_latents: Mapping[str, Tensor] | None,
) -> Tensor | None:
    """Refuse what a method cannot do with a program; the true latents, without constraints."""
    method = options.method
    if method == "exact":
        return None
    if method == "importance" and options.proposal == "guide":
        require_weights(look)
        return None
    _require_real(look, method)
    few = first_rows(rows, 2)
    if method in ("importance", "reciprocal"):
        require_enough_draws(options.num_draws, options.chains, Latents.of(program, few).dim)
    if true_latents is None:
        return None
    return unconstrained(Latents.of(program, few), true_latents, rows)


def _require_real(look: Look, method: str) -> None:
    """Refuse discrete latents where a method moves along gradients, with what to use."""
    for name, site in discrete_latents(look).items():
        raise ValueError(
            f'latent site "{name}" is discrete ({site.family}), expected latents that move along '
            f"gradients for method={method!r}: {advice(look)}"
        )
