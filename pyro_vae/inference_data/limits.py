"""How large a result will be, and what is refused for it before anything is drawn."""

from __future__ import annotations

from torch import Tensor

from pyro_vae.inference_data.programs import Plan


def bytes_of(
    plan: Plan,
    rows: int,
    particles: int,
    num_prior: int,
    predictive: bool,
    held_out: int = 0,
    refined: bool = False,
) -> tuple[int, str]:
    """What the draws of a program take, and what most of that is."""
    table = plan.form.log_q.element_size()
    local = sum(_bytes(plan.form.latents[name][0]) for name in plan.own)
    ours = sum(_bytes(plan.form.latents[name]) for name in plan.shared)
    replicated = sum(_bytes(value[0]) for value in plan.observed.values())
    predicted = replicated if predictive else 0
    each = local * (2 if refined else 1) + 4 * table + predicted
    needed = rows * (particles * each + num_prior * (local + predicted))
    needed += held_out * particles * (local + replicated) + (particles + num_prior) * ours
    most = ""
    if ours > rows * each:
        most = f", of which {', '.join(plan.shared)}, which all rows share, are most"
    elif predicted > local + 4 * table:
        most = ", of which x in the predictive groups is most (predictive=False leaves it out)"
    return needed, most


def refuse_size(needed: int, most: str, rows: int, particles: int, max_bytes: int) -> None:
    """Compare what the result will take with what it may, before anything is drawn."""
    if needed > max_bytes:
        raise ValueError(
            f"the result would take {mebibytes(needed)} MiB for {rows:,} rows and {particles:,} "
            f"draws of each{most}, more than max_bytes = "
            f"{mebibytes(max_bytes)} MiB: pass fewer rows, lower num_draws (or chains, "
            'num_prior), raise max_bytes, or write it to a file, out="posterior.nc"'
        )


def mebibytes(size: int) -> str:
    """Three digits, and no power of ten."""
    return format(size / 2**20, ",.0f" if size >= 100 << 20 else ".3g")


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
