r"""What running a program again shows: whether its rows are independent of each other.

Everything per datum (evidence, weights, k-hat, repeated particles) rests on the independence of
rows.  Let l_s(x, z) (B,) be the log densities of a site s at data x and latents z.  Then

.. math:: l_s(x_I, z_I) = l_s(x, z)_I

must hold for every list I of row numbers, everything else that is random being equal.  Three lists
are tried: a permutation, all rows twice, and a subset.  Batch normalization passes the first two,
because they leave the mean and the variance of a batch as they are; the subset finds it out.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.checking.sites import Met, Mistakes, first_line, label
from pyro_vae.densities.look import ROLES
from pyro_vae.densities.plates import Role
from pyro_vae.densities.sites import Site, Sites, by_row
from pyro_vae.densities.traces import At, sites_of
from pyro_vae.noise import LOOK, Noise, NoiseMode, seeded
from pyro_vae.program.calling import batch_norm_of, evaluating, given_whole
from pyro_vae.program.rows import Rows, device_of, map_rows, num_rows

Scores = dict[tuple[Role, str], Tensor]  # role and site -> (rows,)


class Failed(Exception):
    """The program's own code raised on these rows."""

    def __init__(self, role: Role, x: Rows) -> None:
        super().__init__(role)
        self.role, self.x = role, x


def sites_at(
    program: nn.Module,
    role: Role,
    x: Rows,
    latents: dict[str, Tensor],
    noise: NoiseMode,
    into: Sites | None = None,
) -> Sites:
    """The sites of model or guide on ``x``, at these latents and this noise.

    Args:
        program, role, x, latents, noise: what is run, and where.
        into: takes the sites, also those that were met before a failure.

    Raises:
        Failed: where the program's own code raises, from that.
    """
    try:
        with seeded(*LOOK), noise:
            return sites_of(program, role, x, At(latents), into=into)
    except Exception as error:
        raise Failed(role, x) from error


def add_failure(failed: Failed, mistakes: Mistakes, advice: str = "") -> None:
    """One line for what the program's own code raised."""
    error = failed.__cause__
    shape = map_rows(lambda t: tuple(t.shape), failed.x)  # type: ignore[arg-type, return-value]
    text = first_line(error)  # type: ignore[arg-type]
    if not advice:
        advice = f"call program.{failed.role}(x[:2]) by itself to see where"
        if (whole := given_whole(error, failed.x)) is not None:  # type: ignore[arg-type]
            advice = whole
        elif "already the minibatch" in text:
            advice = "the rows of x are what a plate without subsampling of its own counts"
        elif "Shape mismatch inside plate" in text:
            advice = "declare the dimensions of an event with .to_event(n)"
        elif "Multiple sample sites" in text:
            advice = (
                "give each site a name of its own, and make a plate once: "
                'rows = pyro.plate("data", len(x)), then `with rows:` as often as needed'
            )
    mistakes.append(f"{failed.role}(x) fails on a batch of shape {shape}: {text}: {advice}")
    mistakes.cause = mistakes.cause or error


def independence(met: Met, mistakes: Mistakes) -> None:
    """Find sites whose rows see one another, and note what could not be compared."""
    program = met.program
    drawn: set[str] = set()  # latents of the guide that it can score only where it draws them
    for name, latent in met.guide.items():
        transform = latent.without_inverse()
        if transform is not None:
            drawn.add(name)
            lacks = f"{transform} of {label('guide', name)} has no inverse"
            met.notes.append(f"{lacks}: AEVB can train it, WakeSleep cannot")
    found = _changes(program, met, drawn, mistakes)
    norm = batch_norm_of(program) if found else None
    if norm is not None:
        with evaluating(program):
            if not _changes(program, met, drawn, mistakes):
                met.notes.append(
                    f"{norm} ties the rows of a batch while it trains; elbo, log_evidence, ArviZ "
                    "and the rest take its running statistics, in evaluation mode"
                )
                return
    for (role, name), changes in found.items():
        is_point = isinstance(met.sites(role)[name].base, dist.Delta)
        mistakes.add(
            label(role, name),
            f"{'location' if is_point else 'log density'} {', '.join(changes)}",
            "rows that are independent of each other",
            "look for a mean, softmax, normalization or reshape that runs over dimension 0"
            if norm is None
            else f"replace {norm} by nn.LayerNorm or nn.GroupNorm, or freeze it with .eval()",
        )


def _changes(
    program: nn.Module, met: Met, drawn: set[str], mistakes: Mistakes
) -> dict[tuple[Role, str], list[str]]:
    """What changes at which site where rows are selected."""
    rows = num_rows(met.x)
    kept: list[str] = []  # random operations that no constant can stand for
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    everything = torch.arange(rows)
    if order.equal(everything):
        order = order.flip(0)
    selections = {
        "when rows are permuted": order,
        "when rows are duplicated": everything.repeat(2),
        "in a subset of the rows": order[: (rows + 1) // 2],
    }
    changes: dict[tuple[Role, str], list[str]] = {}
    alone: Scores = {}
    for how, index in {"": everything, **selections}.items():
        try:
            together, others = _selected(program, met, drawn, index.to(device_of(met.x)))
        except Failed as failed:
            advice = f"it runs on {rows} rows, so write it for any number of them"
            add_failure(failed, mistakes, advice)
            continue
        kept += others
        alone = alone or together
        for (role, name), density in together.items():
            site = met.sites(role).get(name)
            if site is not None and (role, name) in alone:
                change = _change(alone[role, name], density, index, site.event_shape)
                if change:
                    changes.setdefault((role, name), []).append(f"{change} {how}")
    if kept and changes:
        which = ", ".join(dict.fromkeys(kept))
        met.notes.append(f"rows were not compared: {which} draws other noise for other batches")
        return {}
    return changes


def _selected(
    program: nn.Module, met: Met, drawn: set[str], index: Tensor
) -> tuple[Scores, list[str]]:
    """Log densities of selected rows at their latents, and draws that no constant stood for.

    The guide draws the latents ``drawn`` anew, from noise that is the same in every row.
    """
    latents: dict[str, Tensor] = {}
    for _, name, site in met:
        if not site.observed:
            value, axis = site.value.detach(), met.axis(site)
            if axis is not None:
                axis -= len(site.event_shape)
                latents[name] = value.index_select(axis, index)
            latents.setdefault(name, value)
    x = map_rows(lambda t: t[index], met.x)
    result: Scores = {}
    kept: list[str] = []
    for role in ROLES:
        sites, noise = met.sites(role), NoiseMode(_constant)
        fixed = {n: z for n, z in latents.items() if role == "model" or n not in drawn}
        for name, site in sites_at(program, role, x, fixed, noise).items():
            axis = met.axis(sites[name]) if name in sites else None
            # The density of a site that lost its plate may have no rows to compare.
            lost = axis is None and name in met.outside
            if (role, name) in met.scored and not lost and not site.is_deterministic:
                result[role, name] = by_row(_number(site), axis)
        kept += noise.kept
    return result, kept


def _constant(index: int, noise: Noise) -> Tensor:
    """Noise that is the same in every row, so that dropout leaves rows comparable."""
    value = {"normal": 0.6, "uniform": 0.37, "exponential": 1.0}[noise.kind]
    return torch.full(noise.shape, value, dtype=noise.dtype, device=noise.device)


def _number(site: Site) -> Tensor:
    """What is compared, one number an event: the log density."""
    law = site.base
    if isinstance(law, dist.Delta):  # its density asks for equality to the last bit
        return law.v.detach().expand(site.value.shape).reshape(*site.batch_shape, -1).sum(-1)
    return site.density().detach()


def _change(alone: Tensor, together: Tensor, index: Tensor, event: torch.Size) -> str | None:
    """By how much the densities of selected rows differ from what they were, if they do."""
    if alone.dim():
        alone = alone[index.to(alone.device)]
    if alone.shape != together.shape:
        return f"has shape {tuple(together.shape)} in place of {tuple(alone.shape)}"
    # A density is a sum over an event, whose terms may cancel: a hundred roundings of each.
    size = event.numel() + alone.nan_to_num(0.0, 0.0, 0.0).abs().amax().item()
    gap = (alone - together).abs()
    gap = torch.where(alone.isfinite(), gap.nan_to_num(torch.inf), 0.0)
    if gap.amax().item() <= 100 * torch.finfo(gap.dtype).eps * size:
        return None
    worst = int(gap.flatten().argmax())
    where = f" at row {int(index[worst])}" if gap.dim() else ""
    return f"changes by {gap.flatten()[worst].item():.2g}{where}"
