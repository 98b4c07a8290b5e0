"""Latents of data: where the guide puts them, and how much each of them says."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from pyro_vae import errors
from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import usable_rows
from pyro_vae.densities.particles import densities
from pyro_vae.densities.sites import Site
from pyro_vae.densities.traces import sites_of_both
from pyro_vae.noise import Stream, seeded
from pyro_vae.plotting.figures import COLOURS, DASHES, array_of, axes_of, plain, two_of
from pyro_vae.plotting.programs import codes_of, coordinate_names, program_of
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import map_rows, num_rows

MARKERS = "os^Dv<>P*X"
NO_LABEL = "no label"
MOST_LABELS = 10  # with a mark of their own
ACTIVE = 0.01  # nats that a latent says on average
DRAWS = 100


def latent_scatter(
    program: Any,
    x: Any,
    labels: Any = None,
    *,
    dims: tuple[int, int] = (0, 1),
    draw: bool = False,
    site: str | None = None,
    seed: int = 0,
    ax: Any = None,
) -> Any:
    """Data in the plane of two latents, at the guide's means, told apart by their labels.

    Up to ten labels have a colour and a mark each, and a legend; numbers have a colour bar.

    Args:
        program: a program or a run; or the latents themselves, an array (N, J), and x is then None.
        x: data.
        labels: (N,), whole numbers, texts or numbers; None takes those of ``x`` where it has some.
        dims: which two numbers of a larger latent; of one number, it is drawn as a histogram.
        draw: one draw of each datum's guide in place of its mean.
        site: which latent, where a datum has several.
        seed: of the draws.
        ax: matplotlib Axes to draw into; None makes a figure.

    Returns:
        The Axes.
    """
    name = "z"
    if x is None:
        z = array_of(program, "the latents")
        if not z.size or z.ndim == 0:
            raise ValueError(f"the latents have shape {z.shape}, expected (N, J): there are none")
        z = z.reshape(len(z), -1)
    else:
        name, z = codes_of(program_of(program), x, site, draw=draw, seed=seed)
        labels = getattr(x, "labels", None) if labels is None else labels
    if not np.isfinite(z).all():
        row = int(np.argwhere(~np.isfinite(z))[0, 0])
        raise ValueError(f"the latents of row {row} are not finite, expected numbers: leave it out")
    axis = axes_of(ax, 5.6, 4.8)
    names = coordinate_names(name, z.shape[1])
    kinds, values = _kinds(labels, len(z))
    if z.shape[1] == 1:
        edges = np.histogram_bin_edges(z[:, 0], bins=40)
        for number, kind in enumerate(kinds):
            line = {"color": COLOURS[number % 7], "linestyle": DASHES[number % len(DASHES)]}
            mine = z[values == kind, 0]
            axis.hist(mine, edges, histtype="step", linewidth=1.5, label=plain(kind), **line)
        if not kinds:
            axis.hist(z[:, 0], edges, color=COLOURS[0])
        axis.set(xlabel=names[0], ylabel="data")
    else:
        first, second = two_of(dims, z.shape[1])
        a, b = z[:, first], z[:, second]
        size = float(np.clip(4000 / len(z), 4, 24))
        for number, kind in enumerate(kinds):
            mine = values == kind
            filled = number < len(COLOURS)  # beyond, the same colours with hollow marks
            look: dict[str, Any] = {"marker": MARKERS[number], "linewidths": 0.3 if filled else 1.0}
            look["edgecolors"] = "white" if filled else COLOURS[number % len(COLOURS)]
            look["facecolors"] = COLOURS[number % len(COLOURS)] if filled else "none"
            axis.scatter(a[mine], b[mine], s=size, label=plain(kind), **look)
        if values is None:
            axis.scatter(a, b, s=size, color=COLOURS[0], alpha=0.6, linewidths=0)
        elif not kinds:
            dots = axis.scatter(a, b, c=values, s=size, cmap="cividis", linewidths=0)
            axis.figure.colorbar(dots, ax=axis, label="label")
            if (none := ~np.isfinite(values)).any():
                axis.scatter(a[none], b[none], s=size, color="0.6", marker="x", label="no label")
                axis.legend(frameon=False, fontsize=9)
        axis.set(xlabel=names[first], ylabel=names[second])
    if kinds:
        axis.legend(
            loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9,
            markerscale=min(3.0, 30 / size) if z.shape[1] > 1 else 1,
        )  # fmt: skip
    return axis


def _kinds(labels: Any, number: int) -> tuple[list[Any], np.ndarray | None]:
    """Labels that are told apart by a legend, none where a colour bar does; and all of them."""
    if labels is None:
        return [], None
    values = labels.detach().cpu().numpy() if hasattr(labels, "detach") else np.asarray(labels)
    if values.shape != (number,):
        raise ValueError(f"labels have shape {values.shape}, expected ({number},), one a datum")
    values, kinds = _sorted_kinds(values)
    if len(kinds) <= MOST_LABELS:
        return kinds, values
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"there are {len(kinds)} different labels, expected at most {MOST_LABELS} texts, or "
            "numbers: leave some out, or pass numbers"
        )
    return [], values


def _sorted_kinds(values: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    """Labels, of which those that are missing are a kind of their own, the last one."""
    missing = np.array([_is_missing(v) for v in values.tolist()], dtype=bool)
    there = values[~missing]
    try:
        kinds = list(np.unique(there))
    except TypeError:  # texts and numbers have no order
        kinds = sorted(set(there.tolist()), key=str)
    if not missing.any() or (values.dtype.kind == "f" and len(kinds) >= MOST_LABELS):
        return values, kinds
    values = values.astype(object)
    values[missing] = NO_LABEL
    return values, [*kinds, NO_LABEL]


def _is_missing(label: Any) -> bool:
    return label is None or type(label).__name__ == "NAType" or bool(label != label)


def kl_per_latent(
    program: Any,
    x: Any = None,
    *,
    active: float = ACTIVE,
    most: int = 60,
    seed: int = 0,
    ax: Any = None,
) -> Any:
    r"""How many nats each latent says of a datum on average, sorted; active ones are dark.

    That is :math:`E_x KL(q(z_j \mid x) \,\|\, p(z_j))`, in closed form where torch knows one, else
    by 100 draws of each datum.  A latent whose law is joint, such as a Normal with a full
    covariance or a flow, has one bar.

    Args:
        program: a program or a run; or the terms themselves, an array (J,) or (N, J), without x.
        x: data.
        active: nats from which on a latent counts as active.
        most: bars, at most.
        seed: of the draws.
        ax: matplotlib Axes to draw into; None makes a figure.

    Returns:
        The Axes.
    """
    active, most = errors.within("active", active, "[0, 1e9)"), errors.whole("most", most)
    if x is None:
        terms = np.atleast_1d(array_of(program, "the terms"))
        if not terms.size or terms.ndim > 2:
            raise ValueError(f"the terms have shape {terms.shape}, expected (J,) or (N, J)")
        terms = terms.mean(0) if terms.ndim > 1 else terms
        names = coordinate_names("z", len(terms))
    else:
        names, terms = kl_terms(program_of(program), x, seed=seed)
    order = np.argsort(-terms, kind="stable")[:most]
    shown, dark = terms[order], terms[order] > active
    axis = axes_of(ax, float(np.clip(2 + 0.32 * len(order), 4, 12)), 3.6)
    colours = [COLOURS[0] if each else "0.8" for each in dark]
    bars = axis.bar(np.arange(len(order)), shown, color=colours, edgecolor="0.3", linewidth=0.6)
    for bar, each in zip(bars, dark, strict=True):
        bar.set_hatch("" if each else "///")
    few = len(order) <= 30
    axis.set_xticks(np.arange(len(order)) if few else [])
    if few:
        long = max(len(names[j]) for j in order) * len(order) > 60
        axis.set_xticklabels([names[j] for j in order], rotation=90 if long else 0)
    total = terms.sum()
    axis.set(xlabel="latent, by its KL", ylabel=r"KL$(q \,\|\, p)$, nats a datum")
    title = f"{int((terms > active).sum())} of {len(terms)} active (above {active:g} nats)"
    axis.set_title(f"{title}; {total:.2f} nats in all", fontsize=10, loc="left")
    return axis


def kl_terms(program: Any, x: Any, *, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """The KL of each number of each latent of a datum, averaged over data, nats; their names."""
    rows = usable_rows(x, program)
    names: list[str] = []
    sums: list[np.ndarray] = []
    with torch.no_grad(), seeded(*Stream.PROFILE.key(seed)), evaluating(program):
        Look.at(program, rows)  # says in words what does not work
        for start in range(0, num_rows(rows), 1000):
            length = min(1000, num_rows(rows) - start)
            part = map_rows(partial(torch.narrow, dim=0, start=start, length=length), rows)
            guide, model = sites_of_both(program, part)
            joint = None
            names, terms = [], []
            for name, site in guide.items():
                if site.observed or site.is_global or site.is_auxiliary or name not in model:
                    continue
                if site.is_point:
                    raise ValueError(
                        f'the guide of "{name}" is a point (Delta), whose KL is infinite, expected '
                        "a density: an auto-encoder has no such terms"
                    )
                each = _by_number(site, model[name])
                if each is None:
                    if joint is None:
                        joint = densities(program, part, DRAWS, reparameterize=False).kl_terms
                    each = joint[name].reshape(-1, 1)
                names += coordinate_names(name, each.shape[1])
                terms.append(array_of(each).sum(0))
            sums.append(np.concatenate(terms) if terms else np.zeros(0))
    if not names:
        raise ValueError(
            "the guide has no latent of a datum, expected one inside pyro.plate: those that all "
            "data share have no KL a datum"
        )
    return names, np.sum(sums, 0) / num_rows(rows)


def _by_number(q: Site, p: Site) -> torch.Tensor | None:
    """KL of each number of a site, (B, J); None where either law is joint, or masked."""
    laws = q.base, p.base
    if any(len(law.event_shape) for law in laws) or q.is_masked or p.is_masked:
        return None
    try:
        terms = torch.distributions.kl_divergence(*laws)
    except NotImplementedError:
        draws = q.law.sample((DRAWS,))
        terms = (laws[0].log_prob(draws) - laws[1].log_prob(draws)).mean(0)
    terms = terms.expand(q.value.shape)
    return q.rows_first(terms).reshape(q.rows_first(q.value).shape[0], -1)
