"""Ours against the published curves: at the budgets that both have reached."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pyro_vae.paper.published import Published, the

# The first lies behind the first evaluation of each of figure 2's MNIST curves.
BUDGETS = (
    320_000, 500_000, 1_000_000, 2_000_000, 3_000_000, 5_000_000, 10_000_000, 20_000_000,
    30_000_000, 60_000_000, 100_000_000, 200_000_000,
)  # fmt: skip


def value_at(samples: Sequence[float], nats: Sequence[float], budget: float) -> float:
    """Straight in log samples between two points of a curve; nan outside of it."""
    if not len(samples) or not samples[0] <= budget <= samples[-1]:
        return math.nan
    return float(np.interp(math.log(budget), np.log(samples), nats))


def difference_rows(
    about: Mapping[str, Any],
    theirs: Published | None,
    ours: Iterable[tuple[Sequence[float], Sequence[float]]],
    budgets: Sequence[float] = BUDGETS,
) -> list[dict[str, Any]]:
    """A row for each budget that the published curve and all of our seeds have reached.

    ``ours`` is the mean over seeds, ``sd over seeds`` their standard deviation (nan of one),
    ``difference`` ours minus the published value: positive is better than the paper.
    """
    curves, rows = list(ours), []
    for budget in budgets if theirs is not None else ():
        values = np.array([value_at(*curve, budget) for curve in curves])
        published = theirs.at(budget) if theirs is not None else math.nan
        if not len(values) or not np.isfinite([*values, published]).all():
            continue
        rows.append(
            {
                **about,
                "samples": int(budget),
                "published": published,
                "ours": float(values.mean()),
                "sd over seeds": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
                "seeds": len(values),
                "difference": float(values.mean()) - published,
            }
        )
    return rows


ABOUT = ("data", "num_data", "latent_dim", "method")


def difference_table(figure: int, curves: Sequence[Mapping[str, Any]]) -> Any:
    """The table of a figure of learning curves.

    Args:
        figure: 2 or 3.
        curves: one of each seed: ``data``, ``latent_dim``, ``method`` and, of figure 3,
            ``num_data``; ``samples``, and nats under ``train`` and ``test``.
    """
    import pandas as pd

    names = [name for name in ABOUT if any(name in curve for curve in curves)]
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for curve in curves:
        groups.setdefault(tuple(curve[name] for name in names), []).append(curve)
    rows = []
    for key, seeds in groups.items():
        about = dict(zip(names, key, strict=True))
        for split in ("test", "train"):
            theirs = the(figure=figure, split=split, **about)
            ours = [(curve["samples"], curve[split]) for curve in seeds]
            rows += difference_rows({**about, "split": split}, theirs, ours)
    columns = [*names, "split", "samples", "published", "ours", "sd over seeds", "seeds"]
    return pd.DataFrame(rows, columns=[*columns, "difference"]).set_index([*names, "split"])


def last_differences(table: Any, split: str = "test") -> list[tuple[str, Any]]:
    """Of each curve the row at the largest budget, and the curve's name in words."""
    found = []
    if not len(table):
        return []
    for key, rows in table.groupby(level=list(range(table.index.nlevels)), sort=False):
        about = dict(zip(table.index.names, key, strict=True))
        if about["split"] == split:
            found.append((in_words(about), rows.iloc[-1]))
    return found


def in_words(about: Mapping[str, Any]) -> str:
    data = {"mnist": "MNIST", "frey_face": "Frey Face"}.get(about["data"], about["data"])
    number = f", N {about['num_data']:,}" if about.get("num_data") else ""
    return f"{data} Nz {about['latent_dim']}{number}, {about['method']}"
