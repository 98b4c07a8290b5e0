"""The sections of a page on a run, or on a program alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pyro_vae import plotting
from pyro_vae.diagnostics import Diagnosis, diagnose
from pyro_vae.evidence.bound import elbo_and_error
from pyro_vae.plotting.programs import codes_of, latent_of
from pyro_vae.plotting.walks import ordered
from pyro_vae.program.inputs import gathered
from pyro_vae.reporting.parts import Section, number
from pyro_vae.reporting.plane import plane_of

QUICK = {"num_particles": 1000, "num_simulations": 1000, "num_close": 5}
MOST_QUICK = 300  # data that a quick diagnosis looks at
SETTINGS = (
    "objective", "optimizer", "lr", "batch_size", "seed", "steps", "engine", "binarize", "device",
    "dtype",
)  # fmt: skip


def sections_of_run(
    run: Any, data: Any, diagnosis: Any, image_shape: Any, seed: int, progress: Any
) -> list[Section]:
    """What was run, curves, draws, reconstructions, the latent plane, latents, diagnosis.

    Args:
        run: a run, or a program.
        data: held-out data, or None.
        diagnosis: as of :func:`pyro_vae.report`.
        image_shape: as of :func:`pyro_vae.plotting.reconstructions`.
        seed: of the noise.
        progress: as of ``pv.diagnose``.
    """
    program, manifest = getattr(run, "program", run), getattr(run, "manifest", {})
    guided = not str(manifest.get("objective", "")).startswith("MonteCarloEM")
    if isinstance(data, (tuple, list, Dataset)):  # the first of which are no rows
        data = gathered(data, program)
    found, why = _diagnosed(program, data, diagnosis, guided, seed, progress)
    sections = [_what(program, manifest, data, found, guided)]
    if len(getattr(run, "history", ())):
        sections.append(_curves(run))
    drawn = Section("samples", "What the program draws")
    few = _first(data, 1000)
    drawn.draw(
        lambda: plotting.samples(program, 48, like=few, image_shape=image_shape, seed=seed),
        "Draws of the prior, decoded: means of p(x | z)",
        "z from its prior, and the mean of p(x | z); of a table draws of x.",
    )
    sections.append(drawn)
    if data is not None and guided:
        sections.append(_reconstructions(program, data, image_shape))
    sections.append(_plane(program, few if guided else None, few, image_shape))
    if data is not None and guided:
        sections.append(_latents(program, data))
    sections.append(_trust(program, data, found, why))
    return sections


def _diagnosed(
    program: Any, data: Any, diagnosis: Any, guided: bool, seed: int, progress: Any
) -> tuple[Diagnosis | None, str]:
    """A diagnosis, or why there is none."""
    if isinstance(diagnosis, Diagnosis):
        return diagnosis, ""
    if diagnosis == "none":
        return None, "It was left out. pv.diagnose(program, x) makes it."
    if not guided:
        return None, "The run was trained without a guide, so there is no posterior to judge."
    if data is None:
        return None, "No data were passed. pv.diagnose(program, x) makes it."
    options: Any = diagnosis
    if isinstance(diagnosis, str):
        options = QUICK if diagnosis == "quick" else {}
    rows = _first(data, MOST_QUICK) if diagnosis == "quick" else data
    options = {"seed": seed, "progress": progress, **options}
    try:
        return diagnose(program, rows, **options), ""
    except ValueError as error:
        return None, f"Not answered: {' '.join(str(error).split())}."


def _first(data: Any, num: int) -> Any:
    """The first so many data, in the form that they have."""
    if data is None:
        return None
    if hasattr(data, "iloc"):
        return data.iloc[:num]
    if isinstance(data, dict):
        return {name: value[:num] for name, value in data.items()}
    return data[:num]


def _rows(data: Any) -> int:
    return len(next(iter(data.values())) if isinstance(data, dict) else data)


def _what(program: Any, manifest: Any, data: Any, found: Any, guided: bool) -> Section:
    section = Section("what", "What was run")
    parameters = sum(p.numel() for p in program.parameters())
    section.facts = [("program", type(program).__name__), ("parameters", f"{parameters:,}")]
    for name, label in (("prior", "prior"), ("likelihood", "likelihood"),
                        ("posterior", "posterior")):  # fmt: skip
        if isinstance(part := getattr(program, name, None), torch.nn.Module):
            section.facts.append((label, type(part).__name__))
    section.facts += [
        (name.replace("_", " "), f"{manifest[name]}") for name in SETTINGS if name in manifest
    ]
    if manifest:
        section.facts += [
            ("training data", f"{manifest['num_data']:,} rows"),
            ("their sha256", f"{manifest['data_digest'][:12]}…"),
            ("training samples", f"{manifest['samples']:,}"),
            ("seconds", number(manifest["seconds"], 1)),
            ("ended by", str(manifest.get("stopped", ""))),
        ]
    if data is not None:
        section.facts.append(("judged on", f"{_rows(data):,} held-out rows"))
    section.columns = ["nats per datum", "value", "standard error", "data"]
    if data is not None and guided:
        bound, error = elbo_and_error(program, data)
        each = number(float(bound.mean())), number(error), f"{len(bound):,}"
        section.rows.append(["held-out ELBO", *each])
    trust = None if found is None else found.parts.get("weights")
    if trust is not None:
        e = trust.evidence
        each = number(e.mean()), number(e.mean_standard_error()), f"{len(e.value):,}"
        section.rows.append(["log p(x), by importance sampling", *each])
    if not section.rows:
        section.columns = []
    return section


def _curves(run: Any) -> Section:
    section = Section("curves", "How it learnt")
    history = run.history
    last = history.iloc[-1]
    said = [f"{name} {number(float(last[name]))}" for name in ("bound", "validation_bound")
            if name in last and np.isfinite(last[name])]  # fmt: skip
    ends = f", ending at {' and '.join(said)} nats per datum" if said else ""
    band = "The band is one standard error over held-out data."
    band = band if "validation_bound" in history else ""
    for by in ("samples", "seconds"):
        section.draw(
            lambda by=by: plotting.learning_curves(run, by=by),  # type: ignore[misc]
            f"Learning curve against {by}{ends}".replace("_", " "),
            f"Against {by}. {band}".strip(),
        )
    return section


def _reconstructions(program: Any, data: Any, image_shape: Any) -> Section:
    section = Section("reconstructions", "Data and their reconstructions")
    section.draw(
        lambda: plotting.reconstructions(program, data, num=12, image_shape=image_shape),
        "Held-out data, and below each its reconstruction",
        "The mean of p(x | z) at the guide's mean of z.",
    )
    return section


def _not_drawn(error: Exception, call: str) -> str:
    """What a picture lacks; a page has no ``site=``, so the call that has."""
    said = f"Not drawn: {' '.join(str(error).split())}."
    return said + (f" {call} draws each." if "site=" in said else "")


def _plane(program: Any, x: Any, like: Any, image_shape: Any) -> Section:
    section = Section("plane", "The latent plane")
    try:
        section.plane = plane_of(program, like if x is None else x, image_shape)
    except (ValueError, RuntimeError) as error:
        section.text.append(_not_drawn(error, "pv.plotting.traversals(run, data, site=...)"))
        section.draw(
            lambda: plotting.traversals(program, x),
            "What moves as each latent goes from one end of its prior to the other",
            "Each latent from the prior's quantile 0.02 to 0.98, the others at its median.",
        )
    return section


def _latents(program: Any, data: Any) -> Section:
    section = Section("latents", "Where the data lie")
    dims = (0, 1)
    try:
        latent = latent_of(program, _first(data, 1000))
        if latent.dim > 2:
            order, _ = ordered(latent, _first(data, 1000))
            dims = (int(order[0]), int(order[1]))
        name, codes = codes_of(program, data, latent.name)
    except ValueError as error:
        section.text.append(_not_drawn(error, "pv.plotting.latent_scatter(run, data, site=...)"))
        return _with_kl(section, program, data)  # which several latents have, too
    center, spread = codes.mean(0)[list(dims)[: latent.dim]], codes.std(0)[list(dims)[: latent.dim]]
    said = ", ".join(f"{number(c)} ± {number(s)}" for c, s in zip(center, spread, strict=True))
    section.draw(
        lambda: plotting.latent_scatter(program, data, dims=dims, site=name),
        f"Posterior means of {len(codes):,} data; mean and standard deviation {said}",
        "Posterior means of held-out data, by label where they have one.",
    )
    return _with_kl(section, program, data)


def _with_kl(section: Section, program: Any, data: Any) -> Section:
    section.draw(
        lambda: plotting.kl_per_latent(program, data),
        "KL of each latent from the prior, sorted",
        "How much each latent says of a datum, on average.",
    )
    return section


def _trust(program: Any, data: Any, found: Diagnosis | None, why: str) -> Section:
    section = Section("trust", "How far to trust the posterior")
    if found is None:
        section.text.append(why)
        return section
    section.findings = [(f.question, f.verdict, f.text) for f in found.findings]
    section.text.append(found.title + ".")
    section.note = found.foot()
    trust, calibration = found.parts.get("weights"), found.parts.get("calibration")
    if trust is not None:
        section.draw(
            lambda: plotting.khat_map(trust.evidence),
            "khat of each datum, sorted",
            "Above 0.7, weights do not say how far off log p(x) is.",
        )
    if calibration is not None:
        section.draw(
            lambda: plotting.calibration_ranks(calibration),
            "Distribution of the ranks of simulated truths, less the uniform one",
            "A guide that is the posterior stays within the band.",
        )
    return section
