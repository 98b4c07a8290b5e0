"""What is refused before anything is drawn: results that are too large, names that collide."""

from __future__ import annotations

from torch import Tensor

from pyro_vae.densities.tables import Densities
from pyro_vae.inference_data.datasets import AXES, written


def refuse_size(
    form: Densities,
    observed: dict[str, Tensor],
    particles: int,
    num_prior: int,
    predictive: bool,
    max_bytes: int,
    shared: list[str],
    own: list[str],
    rows: int,
) -> None:
    """Compare what the result will take with what it may, before anything is drawn."""
    table = form.log_q.element_size()
    local = [form.latents[name] for name in own]
    latents = sum(v[0].numel() * v.element_size() for v in local)
    ours = sum(form.latents[name].numel() * form.latents[name].element_size() for name in shared)
    replicated = sum(v[0].numel() * v.element_size() for v in observed.values())
    replicated = replicated if predictive else 0
    needed = rows * (particles * (latents + 3 * table + replicated))
    needed += rows * num_prior * (latents + replicated) + (particles + num_prior) * ours
    if needed <= max_bytes:
        return
    most = ", of which x in the predictive groups is most (predictive=False leaves it out)"
    if ours > rows * (latents + 3 * table + replicated):
        most = f", of which {', '.join(shared)}, which all rows share, are most"
    elif replicated <= latents + 3 * table:
        most = ""
    raise ValueError(
        f"the result would take {needed / 2**20:,.0f} MiB for {rows:,} rows and {particles:,} "
        f"draws of each{most}, more than max_bytes = "
        f"{max_bytes / 2**20:,.0f} MiB: pass fewer rows, lower num_draws (or chains, num_prior), "
        "or raise max_bytes"
    )


def refuse_names(names: list[str]) -> None:
    twice = {written(n) for n in names if sum(written(n) == written(m) for m in {*names}) > 1}
    if twice:
        raise ValueError(
            f'two sites or entries of x are written as "{min(twice)}", because a slash becomes a '
            "dot: rename one"
        )
    reserved = {*names} & {*AXES}
    if reserved:
        raise ValueError(
            f'"{min(reserved)}" is the name of a dimension of the result and of a site or an entry '
            "of x: rename the site or the entry"
        )
