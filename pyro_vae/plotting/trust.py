"""How far to trust a posterior, and by how much models differ: khat, calibration, evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pyro_vae import errors
from pyro_vae.evidence.comparing import compare_evidence
from pyro_vae.plotting.figures import COLOURS, array_of, axes_of, lines_of, plain, two_of

BAD = 0.7  # khat above which log p(x) of a datum is not to be trusted
TOP = 2.0  # of khat, on a picture


def khat_map(evidence: Any, z: Any = None, *, dims: Sequence[int] = (0, 1), ax: Any = None) -> Any:
    r"""Pareto's :math:`\hat k` of each datum: sorted, or over the plane of its latents.

    Data above 0.7, whose log p(x) and posterior the guide serves badly, are crosses; values above
    2 are drawn at 2.

    Args:
        evidence: of ``pv.log_evidence``; or an array of khat, (N,).
        z: latents of the same data, (N, J), ``pv.encode(program, x)``; None sorts the data.
        dims: which two numbers of z.
        ax: matplotlib Axes to draw into; None makes a figure.

    Returns:
        The Axes.

    Raises:
        ValueError: no khat at all, or latents of other data.
    """
    khat = array_of(getattr(evidence, "khat", evidence), "khat").astype(float).ravel()
    if np.isnan(khat).all():
        raise ValueError(
            "there is no khat of any datum, expected numbers: it comes of weights, "
            'pv.log_evidence(program, x, method="importance")'
        )
    large = ~(khat <= BAD)
    shown = np.minimum(np.where(np.isnan(khat), TOP, khat), TOP)
    title = f"{int(large.sum()):,} of {len(khat):,} data above {BAD}"
    if z is None:
        axis = axes_of(ax, 5.6, 3.8)
        order = np.argsort(shown, kind="stable")
        share = (np.arange(len(khat)) + 0.5) / len(khat)
        axis.axhline(BAD, color="black", linewidth=1, linestyle="--")
        for mine, look in _dots(large[order]):
            axis.scatter(share[mine], shown[order][mine], **look, clip_on=False)
        axis.set(xlabel="share of the data", ylabel=r"$\hat k$", xlim=(0, 1))
        axis.set_ylim(None, max(1.0, 1.05 * float(shown.max())))
    else:
        plane = array_of(z, "z")
        plane = plane.reshape(len(plane), -1)
        if len(plane) != len(khat) or plane.shape[1] < 2:
            raise ValueError(
                f"z has shape {plane.shape}, expected ({len(khat)}, 2 or more), the latents of the "
                "same data: pass pv.encode(program, x), or leave it out"
            )
        axis = axes_of(ax, 5.6, 4.6)
        first, second = two_of(dims, plane.shape[1])
        dots = None
        for mine, look in _dots(large):
            look = {"marker": look["marker"], "s": look["s"] * (1.8 if "label" in look else 1.0)}
            where = plane[mine, first], plane[mine, second]
            dots = axis.scatter(*where, c=shown[mine], cmap="cividis_r", vmin=0,
                                vmax=2 * BAD, **look)  # fmt: skip
        bar = axis.figure.colorbar(dots, ax=axis, label=r"$\hat k$", extend="both")
        bar.ax.axhline(BAD, color="white", linewidth=2)
        axis.set(xlabel=f"z[{first}]", ylabel=f"z[{second}]")
        title += " (crosses)"
    axis.set_title(title, fontsize=10, loc="left")
    return axis


def _dots(large: np.ndarray) -> Any:
    yield ~large, {"marker": "o", "s": 10, "color": COLOURS[0]}
    yield large, {"marker": "x", "s": 22, "color": COLOURS[1], "label": "bad"}


def evidence_differences(evidence: Any, *, ax: Any = None) -> Any:
    """Models by log p(x): each one's difference to the best, with its paired 95 % interval.

    Args:
        evidence: name -> what ``pv.log_evidence`` returned, or the table that
            ``pv.compare_evidence`` made of it.
        ax: matplotlib Axes to draw into; None makes a figure.

    Returns:
        The Axes.

    Raises:
        ValueError, TypeError: as of :func:`pyro_vae.compare_evidence`, of what is not comparable.
    """
    table = compare_evidence(evidence) if isinstance(evidence, Mapping) else evidence
    if lacking := [c for c in ("mean_diff", "mean_dse", "mean") if c not in table]:
        raise TypeError(
            f"evidence is {type(evidence).__name__} without {', '.join(lacking)}, expected a dict "
            "of what pv.log_evidence returns, or the table of pv.compare_evidence"
        )
    axis = axes_of(ax, 6.4, 1.4 + 0.4 * len(table))
    places = np.arange(len(table))
    half = 1.96 * table["mean_dse"].to_numpy()
    axis.axvline(0, color="black", linewidth=1, linestyle="--")
    dots = {"linestyle": "", "marker": "o", "capsize": 3, "color": COLOURS[0]}
    axis.errorbar(table["mean_diff"].to_numpy(), places, xerr=half, **dots)
    axis.set_yticks(places, [plain(name) for name in table.index])
    axis.set_ylim(len(table) - 0.5, -0.5)
    for place, (mean, share) in enumerate(zip(table["mean"], table["bad_khat"], strict=True)):
        text = f"{mean:,.2f}" + (f", khat > 0.7: {share:.0%}" if share > 0 else "")
        beside = axis.get_yaxis_transform()
        axis.text(1.02, place, text.replace("-", "−"), transform=beside, va="center", fontsize=9)
    axis.text(1.02, -0.6, "log p(x)", transform=axis.get_yaxis_transform(), fontsize=9,
              va="bottom")  # fmt: skip
    axis.set_xlabel("difference to the best, nats a datum (95 % interval)")
    return axis


def calibration_ranks(
    ranks: Any, *, prob: float = 0.95, names: Sequence[str] | None = None, ax: Any = None
) -> Any:
    """Is the guide the posterior of the model's own data?  The ranks' distribution less uniform.

    A guide that is stays in the grey band at all places with the given probability.  Curves that
    leave it are named: one that rises and falls says that draws lie too high; an S that starts
    upwards, that they scatter too little.

    Args:
        ranks: of ``pyro_vae.calibration.simulated_ranks``, or the calibration part of a diagnosis.
        prob: of the band.
        names: which quantities; None takes all.
        ax: matplotlib Axes to draw into; None makes a figure.

    Returns:
        The Axes.
    """
    ranks, names = _ranks(ranks, names)
    u, lower, upper, curves = ranks.curves(errors.within("prob", prob, "(0, 1)", "0.95 is usual"))
    axis = axes_of(ax, 5.6, 3.8)
    axis.fill_between(u, lower, upper, color="0.85", linewidth=0)
    out = {n: float((np.abs(curves[n]) / np.where(curves[n] > 0, upper, -lower)).max())
           for n in names}  # fmt: skip
    outside = sorted((n for n in names if out[n] > 1), key=lambda n: -out[n])
    for name in names:
        if name not in outside:
            axis.plot(u, curves[name], color="0.45", linewidth=0.9)
    for name, look in lines_of(outside):
        axis.plot(u, curves[name], label=plain(name), **look)
    if outside:
        axis.legend(frameon=False, fontsize=8)
    said = f"{len(outside)} of {len(names)} leave the {100 * prob:g} % band"
    axis.set_title(said, fontsize=10, loc="left")
    axis.set(xlabel="rank of the truth, from 0 to 1", ylabel="share below, less uniform")
    axis.set_xlim(0, 1)
    return axis


def coverage(ranks: Any, *, names: Sequence[str] | None = None, ax: Any = None) -> Any:
    """How many truths lie in the guide's central intervals, against their probability.

    Below the diagonal intervals are too narrow.

    Args:
        ranks, names, ax: as of :func:`calibration_ranks`; None takes the latents.

    Returns:
        The Axes.
    """
    ranks, names = _ranks(ranks, names, latents=True)
    axis = axes_of(ax, 4.4, 4.2)
    probs = np.linspace(0.05, 0.95, 19)
    covered = [ranks.coverage(float(prob)) for prob in probs]
    axis.plot([0, 1], [0, 1], color="black", linewidth=1)
    for name, look in lines_of(names):
        axis.plot(probs, [each[name] for each in covered], label=plain(name), **look)
    axis.set(
        xlabel="probability of the guide's interval", ylabel="share of truths inside",
        xlim=(0, 1), ylim=(0, 1),
    )  # fmt: skip
    axis.legend(frameon=False, fontsize=8)
    return axis


def _ranks(ranks: Any, names: Sequence[str] | None, latents: bool = False) -> tuple[Any, list[str]]:
    """The ranks themselves, and the quantities to draw."""
    if not callable(getattr(ranks, "curves", None)):
        ranks = getattr(ranks, "ranks", ranks)  # of a part of a diagnosis
    if not callable(getattr(ranks, "curves", None)):
        raise TypeError(
            f"ranks is {type(ranks).__name__}, expected what pyro_vae.calibration.simulated_ranks "
            'returns, or diagnosis.parts["calibration"]'
        )
    known = list(ranks.ranks)
    if names is None:
        return ranks, [n for n in known if ranks.is_latent[n] or not latents]
    if strange := [n for n in names if n not in known]:
        raise ValueError(f'names has "{strange[0]}", expected some of {", ".join(known)}')
    return ranks, list(names)
