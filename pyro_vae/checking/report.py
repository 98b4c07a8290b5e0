"""The contract of a program, looked over once before any training.

Few mistakes in a probabilistic program raise.  An observation of the wrong shape broadcasts, a
latent that the guide forgot is drawn from the prior, a parameter that nothing uses stays where it
was, and numbers come out all the same.  :func:`check` runs model and guide a few times on a few
rows and says what is wrong, where, and what to do.

Where sites live and what shape they have is looked at in :mod:`~pyro_vae.checking.sites`, their
numbers in :mod:`~pyro_vae.checking.values`, gradients in :mod:`~pyro_vae.checking.learning`, and
what takes further runs in :mod:`~pyro_vae.checking.independence`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from torch import nn

from pyro_vae.checking import independence, learning, sites, supports, values
from pyro_vae.checking.laws import laws
from pyro_vae.checking.reach import out_of_reach
from pyro_vae.checking.sites import Met, Mistakes
from pyro_vae.densities.kl import closed_kl
from pyro_vae.densities.missing import not_taken
from pyro_vae.densities.observations import observed_site
from pyro_vae.densities.sites import latents_of
from pyro_vae.noise import LOOK, NoiseMode, keyed
from pyro_vae.program.calling import left_as_it_was, require_program
from pyro_vae.program.inputs import as_rows, gathered, stored_rows
from pyro_vae.program.parts import mean_range_of
from pyro_vae.program.rows import Rows, map_rows, num_rows, parts
from pyro_vae.turns import taking_turns

MAX_ROWS = 64


@dataclass(frozen=True)
class SiteReport:
    """One site of a program.

    Attributes:
        name: as in ``pyro.sample(name, ...)``.
        kind: "latent" (of a datum), "global", "observed", "auxiliary" (of the guide alone),
            "summed out" (marked, of the model alone), "factor" or "deterministic".
        event_shape: the shape of one event.
        model, guide: names of the distributions, None where there is none.
        kl: "closed" or "sampled": how AEVB("B") computes the site's KL term; None without one.
    """

    name: str
    kind: str
    event_shape: tuple[int, ...]
    model: str | None
    guide: str | None
    kl: str | None


@dataclass(frozen=True, repr=False)
class Report:
    """What a program that passed consists of; printing it gives a table.

    Attributes:
        program: the name of its class.
        num_rows: B, the rows it was tried on.
        sites: one :class:`SiteReport` a site.
        num_parameters: how many numbers are to be learnt.
        scale: N / B of the data plate; 1 where it is not subsampled.
        reparameterized: whether gradients flow through every draw of the guide, as AEVB needs.
        notes: what could not be checked, or cannot be done with the program.
    """

    program: str
    num_rows: int
    sites: tuple[SiteReport, ...]
    num_parameters: int
    scale: float
    reparameterized: bool
    notes: tuple[str, ...] = ()

    @property
    def closed_kl(self) -> tuple[str, ...]:
        """Names of the sites whose KL term has a closed form."""
        return tuple(site.name for site in self.sites if site.kl == "closed")

    @property
    def sampled_kl(self) -> tuple[str, ...]:
        """Names of the sites whose KL term is sampled."""
        return tuple(site.name for site in self.sites if site.kl == "sampled")

    def __repr__(self) -> str:
        table = [["site", "kind", "event", "model", "guide", "KL"]]
        for s in self.sites:
            cells = (s.name, s.kind, str(s.event_shape), s.model, s.guide, s.kl)
            table.append([cell or "-" for cell in cells])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [f"{self.program}: no mistake found on {self.num_rows} rows"]
        for row in table:
            padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(f"  {'  '.join(padded)}".rstrip())
        through = "reparameterized" if self.reparameterized else "not reparameterized: no AEVB"
        lines.append(f"  {self.num_parameters:,} parameters; N / B = {self.scale:g}; {through}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@taking_turns
def check(program: nn.Module, x: Any) -> Report:
    """Find the mistakes of a program before any training, and leave it as it was.

    At most 64 rows are used.  Modules stay in the mode they are in, so check a program in the
    mode in which it will be trained.

    Args:
        program: a module with ``model(x)`` and ``guide(x)``.
        x: what ``pv.fit`` takes: a tensor (N, ...), a numpy array, a dict of them whose entry
            "x" is observed, or a ``Data``, of which the rows of epoch 0 are used.

    Returns:
        A :class:`Report`.

    Raises:
        ValueError: with one line for each mistake: the site or parameter, what was found, what
            was expected, and what to do.  It is chained to the exception of the program's own
            code where that raised one.
        TypeError: where ``program`` is no program or ``x`` no data.

    Example:
        >>> from pyro_vae.models import bernoulli_vae
        >>> vae = bernoulli_vae.build(6, latent_dim=2, hidden_dim=3)
        >>> check(vae, torch.tensor([[0.0, 1.0] * 3, [1.0, 0.0] * 3]))
        BernoulliVAE: no mistake found on 2 rows
          site  kind      event  model      guide   KL
          z     latent    (2,)   Normal     Normal  closed
          x     observed  (6,)   Bernoulli  -       -
          70 parameters; N / B = 1; reparameterized
    """
    require_program(program)
    rows, mistakes = _first_rows(program, x), Mistakes()
    gap = _gap(program, x)
    with (
        left_as_it_was(program),
        pyro.get_param_store().scope(),
        pyro.validation_enabled(False),
        torch.enable_grad(),
    ):
        report = _look(program, rows, mistakes, gap)
    if report is None:
        count = len(mistakes)
        found = f"{type(program).__name__} has {count} mistake{'s' if count > 1 else ''}:"
        raise ValueError("\n  ".join([found, *mistakes])) from mistakes.cause
    return report


def _first_rows(program: nn.Module, x: Any) -> Rows:
    x = gathered(x, program)
    if callable(getattr(x, "batch", None)):
        device = getattr(getattr(x, "x", None), "device", None)
        x = x.batch(torch.arange(min(len(x), MAX_ROWS), device=device), 0)
    if isinstance(x, torch.Tensor) and not x.dim():
        raise ValueError('x: entry "x" is a single number, expected shape (B, ...)')
    rows = as_rows(x, program, finite=False)
    if num_rows(rows) < 2:
        raise ValueError(
            "x has 1 row, expected at least 2: a single row cannot show that rows are independent"
        )
    return map_rows(lambda t: t[:MAX_ROWS].detach(), rows)


def _gap(program: nn.Module, x: Any) -> str | None:
    """What is wrong with missing values in any row, also beyond those that are looked at."""
    with left_as_it_was(program), pyro.get_param_store().scope():
        rows = stored_rows(x, program) or as_rows(x, program, finite=False)
        said = (not_taken(program, r, learning=True, first_row=n) for n, r in parts(rows))
        return next((each for each in said if each is not None), None)


def _look(
    program: nn.Module, x: Rows, mistakes: Mistakes, said: str | None = None
) -> Report | None:
    """One look at a program on a few rows: the report, or None where there are ``mistakes``."""
    met = Met({}, {}, x, "x", program=program)
    try:
        independence.sites_at(program, "guide", x, {}, NoiseMode(keyed(*LOOK, 0)), met.guide)
        drawn = latents_of(met.guide)
        latents = {n: s.value if s.has_rsample else s.value.detach() for n, s in drawn.items()}
        independence.sites_at(program, "model", x, latents, NoiseMode(keyed(*LOOK, 1)), met.model)
    except independence.Failed as failed:
        if failed.role == "model":  # often the consequence of a wrong shape before
            sites.shapes(met, mistakes)
        independence.add_failure(failed, mistakes)
        return None
    mistakes += [] if said is None else [said]
    observed = observed_site(program, met.model, x)
    met = replace(met, observed=observed, has_gaps=said is not None)
    for rule in (
        sites.dimensions,
        sites.plates,
        sites.scales,
        sites.latents,
        sites.shapes,
        sites.observation,
        values.values,
        supports.supports,
        independence.independence,
        _reach,
        learning.gradients,
        _laws,
    ):
        try:
            rule(met, mistakes)
        except Exception as error:
            if mistakes:  # of whose consequences this is one
                break
            mistakes.cause = error
            mistakes.append(
                f"{type(program).__name__}: what it consists of cannot be looked at "
                f"({sites.first_line(error)}), expected sites in the batch shape of their plates: "
                "compare their shapes on x[:2]"
            )
    rsample = all(site.has_rsample for site in met.latents.values())
    return None if mistakes else _report(program, met, rsample, met.notes)


def _reach(met: Met, mistakes: Mistakes) -> None:
    """A note where the mean of the likelihood cannot come near the data."""
    if met.likelihood is not None:
        said = out_of_reach(met.likelihood, mean_range_of(met.program))
        met.notes.extend([said] if said else [])


def _laws(met: Met, mistakes: Mistakes) -> None:
    """Sampler and density agree, where nothing else is wrong."""
    if not mistakes:
        laws(met, mistakes)


def _report(program: nn.Module, met: Met, rsample: bool, notes: list[str]) -> Report:
    closed = closed_kl(met.guide, met.model)
    found = []
    for name, site in ({**met.model, **met.guide} | met.model).items():
        p, q = met.model.get(name), met.guide.get(name)
        if site.is_factor:
            kind = "factor"
        elif site.is_deterministic:
            kind = "deterministic"
        elif site.observed:
            kind = "observed"
        elif p is None:
            kind = "auxiliary"
        elif q is None:
            kind = "summed out"
        else:
            kind = "global" if p.is_global else "latent"
        kl = None
        if kind in ("latent", "global", "auxiliary"):
            kl = "sampled" if closed.get(name) is None else "closed"
        event = tuple(site.event_shape)
        families = None if p is None else p.family, None if q is None else q.family
        found.append(SiteReport(name, kind, event, *families, kl))
    return Report(
        program=type(program).__name__,
        num_rows=num_rows(met.x),
        sites=tuple(found),
        num_parameters=sum(p.numel() for p in program.parameters() if p.requires_grad),
        scale=met.num_data / num_rows(met.x),
        reparameterized=rsample,
        notes=tuple(notes),
    )
