"""The sections of a page on a comparison, of this session or of a folder."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyro_vae import plotting
from pyro_vae.comparison import Comparison
from pyro_vae.reporting.parts import Section, number

MOST_DRAWN = 6  # models and objectives whose samples are shown


def sections_of_comparison(
    comparison: Comparison, data: Any, image_shape: Any, seed: int
) -> list[Section]:
    """What was compared, the table, curves; samples and reconstructions where runs are at hand.

    Args:
        comparison: its runs may be missing, as of one that was read from a file.
        data: held-out data, or None.
        image_shape: as of :func:`pyro_vae.plotting.reconstructions`.
        seed: of the draws.
    """
    sections = [_what(comparison), _table(comparison), _curves(comparison)]
    if comparison.runs:
        sections.append(_draws(comparison, data, image_shape, seed))
    return sections


def _what(comparison: Comparison) -> Section:
    sizes, about = comparison.dataset.sizes, comparison.dataset.attrs
    section = Section("what", "What was compared")
    section.facts = [
        ("models", ", ".join(map(str, comparison.dataset.model.values))),
        ("objectives", ", ".join(map(str, comparison.dataset.objective.values))),
        ("seeds", str(sizes["seed"])),
        ("training samples a run", f"{int(comparison.dataset.samples.mean()):,}"),
        ("data", str(about.get("data", "not said"))),
        ("binarize", str(about.get("binarize", "not said"))),
        ("held-out data", f"{sizes['datum']:,}"),
    ]
    if "test_digest" in about:
        section.facts.append(("their sha256", f"{about['test_digest'][:12]}…"))
    return section


def _table(comparison: Comparison) -> Section:
    table = comparison.table().reset_index()
    section = Section("table", "The table")
    one = comparison.dataset.sizes["seed"] == 1
    section.columns = [
        "model and objective", "ELBO", "log p(x)", "against the first", "sd over seeds",
        "khat > 0.7", "rhat > 1.1", "samples", "seconds",
    ]  # fmt: skip
    for place, row in table.iterrows():
        half = row["against first ±"] if one else row["against first 95 %"]
        section.rows.append(
            [
                f"{row['model']}, {row['objective']}",
                f"{number(row['bound'])} ± {number(row['bound ±'])}",
                f"{number(row['log p(x)'])} ± {number(row['log p(x) ±'])}",
                f"{number(row['against first'])} ± {number(half)}" if place else "—",
                number(row["sd over seeds"]),
                _share(row["khat > 0.7"]),
                _share(row["rhat > 1.1"]),
                f"{int(row['samples']):,}",
                number(row["seconds"], 1),
            ]
        )
    if table["rhat > 1.1"].isna().all():  # no chains
        where = section.columns.index("rhat > 1.1")
        for each in (section.columns, *section.rows):
            each.pop(where)
    section.note = (
        "Nats per held-out datum; ± of ELBO and log p(x) is one standard error over data. "
        + (
            "With one seed ± of a difference is one standard error, and says how two runs differ, "
            "not two algorithms."
            if one
            else "± of a difference is half the width of its 95 % interval, paired by datum and "
            "seed, over both."
        )
    )
    section.draw(
        lambda: plotting.comparison_table(comparison),
        "Each row's difference of log p(x) to the first, with its interval; as in the table",
        "",
    )
    return section


def _share(value: float) -> str:
    return f"{value:.0%}" if np.isfinite(value) else "—"


def _curves(comparison: Comparison) -> Section:
    section = Section("curves", "How they learnt")
    for by in ("samples", "seconds"):
        section.draw(
            lambda by=by: plotting.learning_curves(comparison, by=by),  # type: ignore[misc]
            f"Held-out ELBO of each row against {by}",
            "Thin lines are seeds, thick ones their means.",
        )
    return section


def _draws(comparison: Comparison, data: Any, image_shape: Any, seed: int) -> Section:
    section = Section("samples", "What they draw and reconstruct")
    first = {key[:2]: (key[2], run) for key, run in reversed(comparison.runs.items())}
    shown = list(reversed(first.items()))[:MOST_DRAWN]
    if len(first) > MOST_DRAWN:
        section.text.append(f"The first {MOST_DRAWN} of {len(first)} rows.")
    for (model, objective), (of, run) in shown:
        name = f"{model}, {objective}, seed {of}"
        section.draw(
            lambda run=run: plotting.samples(  # type: ignore[misc]
                run, 40, like=data, image_shape=image_shape, seed=seed
            ),
            f"Draws of {name}",
            f"Draws of {name}.",
        )
        if data is not None and not str(objective).startswith("MonteCarloEM"):
            section.draw(
                lambda run=run: plotting.reconstructions(  # type: ignore[misc]
                    run, data, image_shape=image_shape
                ),
                f"Held-out data, and below each what {name} makes of it",
                f"Data and reconstructions of {name}.",
            )
    return section
