"""``diagnose``: a page that says how far to trust a posterior, in words with numbers."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.calibration import Simulated, simulate, simulated_ranks
from pyro_vae.calibration.ranks import Quantity
from pyro_vae.checking.guards import require_possible_data
from pyro_vae.cluster import connected
from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import usable_rows
from pyro_vae.diagnostics.calibrated import Calibration
from pyro_vae.diagnostics.findings import Finding
from pyro_vae.diagnostics.gaps import Gaps, gaps
from pyro_vae.diagnostics.latents import profile
from pyro_vae.diagnostics.misspecification import misspecification
from pyro_vae.diagnostics.modes import modes
from pyro_vae.diagnostics.predictive_checks import predictive_checks
from pyro_vae.diagnostics.reliability import reliability, sandwich
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.program.calling import evaluating
from pyro_vae.program.frames import names_of_rows
from pyro_vae.program.rows import Rows, map_rows, num_rows, some_rows
from pyro_vae.progress import counting
from pyro_vae.turns import taking_turns

if TYPE_CHECKING:
    import pandas as pd

LEAST_RANKS = 20  # below which their uniformity is not tested
MOST_RANKS = 10_000_000
MARKS = {"good": "+", "bad": "!", "note": "-"}
WIDTH = 88


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found; printing it gives the page.

    Attributes:
        title: what was judged on what.
        findings: the answers, in order of their worth.
        parts: what they were read from, by name; None where a question could not be asked.
        level: the rate of false alarms of each verdict that is a test.
        program, x: what was judged.
        names: of the rows, where a frame or a ``Data`` has any.
    """

    title: str
    findings: tuple[Finding, ...]
    parts: Mapping[str, Any]
    level: float
    program: nn.Module = field(repr=False)
    x: Rows = field(repr=False)
    names: np.ndarray | None = field(default=None, repr=False)

    @property
    def clean(self) -> bool:
        """Whether no verdict is "bad"."""
        return not self.bad

    @property
    def bad(self) -> tuple[Finding, ...]:
        """The findings that say that something is wrong."""
        return tuple(finding for finding in self.findings if finding.verdict == "bad")

    def __str__(self) -> str:
        lines = [self.title, ""]
        widest = max((len(f.question) for f in self.findings), default=0)
        for finding in self.findings:
            head = f"{MARKS[finding.verdict]} {finding.question:<{widest}}  "
            lines += textwrap.wrap(
                finding.text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head)
            )
        return "\n".join([*lines, "", *textwrap.wrap(self.foot(), WIDTH)])

    def foot(self) -> str:
        """How many answers are bad, and how often that happens by chance."""
        tests = sum(bool(finding.level) for finding in self.findings)
        bad = len(self.bad)
        said = f"{bad} of {len(self.findings)} answers are marked ! as bad. " if bad else ""
        if not bad:
            said = "Nothing was found against this guide. "
        if open_ := sum(part is None for part in self.parts.values()):
            said += f"{open_} of the questions {'was' if open_ == 1 else 'were'} not answered. "
        if not tests:
            return said.strip()
        return (
            f"{said}{tests} of the answers are tests: for a guide that is the posterior, and data "
            f"that are the model's, each is wrong in at most {self.level:.2g} of all runs, and "
            f"one of them or more in at most {min(1.0, tests * self.level):.2g}."
        )

    def table(self) -> pd.DataFrame:
        """A row a latent (each number of it), a column a metric; see docs/diagnosis.md."""
        from pyro_vae.diagnostics.tables import latent_table

        return latent_table(self.parts)

    def data_table(self) -> pd.DataFrame:
        """A row a datum: khat, ESS, log p(x), ELBO, their difference; bounds and gaps of some."""
        from pyro_vae.diagnostics.tables import data_table

        return data_table(self.parts, self.names)

    def plot(self, folder: str | Path | None = None) -> dict[str, Any]:
        """Pictures, one figure a question, by name; saved as PNG where a folder is given."""
        from pyro_vae.plotting.diagnosis import draw_diagnosis

        return draw_diagnosis(self.parts, self.level, folder)

    def to_arviz(self, **options: Any) -> Any:
        """Draws, weights and predictions for these data, with the simulated ranks' places.

        Args:
            options: of :func:`pyro_vae.to_inference_data`.
        """
        from pyro_vae.inference_data import to_inference_data

        named = {} if self.names is None else {"coords": {"data": self.names}}
        options = {"num_draws": 250, "num_simulations": 1000} | named | options
        return to_inference_data(self.program, self.x, **options)


@taking_turns
def diagnose(
    program: nn.Module,
    x: Any,
    *,
    like: Any = None,
    num_particles: int = 1000,
    num_simulations: int = 10_000,
    num_draws: int = 99,
    num_close: int = 20,
    quantities: Mapping[str, Quantity] | None = None,
    statistics: Mapping[str, Callable[[Any], Any]] | None = None,
    level: float = 0.01,
    seed: int = 0,
    progress: bool | Callable[[Any], Any] | None = None,
    cluster: Any = None,
) -> Diagnosis:
    r"""Say how far to trust the posterior that a guide gives, on one page.

    ==================== ========================================== ==============================
    question             what is asked                              answered by
    ==================== ========================================== ==============================
    weights              which data does the guide serve badly?     khat, ESS of each datum
    distance             how far is it from the posterior?          log p(x) - ELBO, nats
    log p(x)             how closely is log p(x) known?             bounds from both sides
    calibration          is it the posterior of the model's data?   ranks of simulated latents
    modes                has the posterior several modes?           chains, where the ranks fail
    gaps                 what would another family, or a refit of   the guide refitted per datum
                         each datum, gain?
    active latents       which latents say something?               variance of posterior means
    information          how much does z say of x?                  KL terms, mutual information
    aggregate posterior  are the guide's draws the prior's?         Kolmogorov-Smirnov
    predictions          are draws of the model like the data?      replicated data
    misspecification     which data are strange to the model?       ranks of log p(x)
    ==================== ========================================== ==============================

    Each answer is "good", "bad" or a note, in a sentence with numbers.  Those that are tests have a
    stated rate of false alarms, ``level``: for a guide that is the posterior, and data that are
    the model's own.  docs/diagnosis.md says how to read each, with a good and a bad guide.

    Args:
        program: the program.
        x: data (N, ...): a tensor, an array, a dict, a ``Data``; or a number: so many are drawn
            from the model.
        like: rows that say what x looks like, where x is a number and the program is no ``VAE``.
        num_particles: K draws of the guide for each datum's log p(x) and khat.
        num_simulations: pairs (z, x) of the model, for the ranks.
        num_draws: of the guide, among which each simulated latent is ranked.
        num_close: data that are looked at closely: bounds on log p(x), chains, a refit.
        quantities: further ones to rank, by name: functions of x and the latents by site to (B,).
        statistics: further ones for replicated data, by name: functions of x to a number.
        level: the rate of false alarms of each verdict.
        seed: of the noise.
        progress: None shows a live line where stderr is a terminal and a line a minute elsewhere;
            True, False, or a callable.
        cluster: log p(x) of all data, and of those simulated beside them, by rows on a Dask
            cluster, as of :func:`~pyro_vae.log_evidence`; what looks at some data stays here.

    The program is put into evaluation mode for as long as this takes, and nothing of it moves.

    Returns:
        :class:`Diagnosis`: print it; ``.table()`` has a row a latent, ``.data_table()`` a row a
        datum, ``.plot()`` the pictures, ``.to_arviz()`` the draws.

    Raises:
        ValueError: data outside the likelihood's support; latents that all data share.  A question
            that this program has no answer to is no error, but a note that says why.

    Example:
        >>> from pyro_vae.models import linear_gaussian
        >>> program = linear_gaussian.build(3, latent_dim=1, posterior="full")
        >>> program.guide_is_exact_posterior()
        >>> options = {"num_particles": 50, "num_simulations": 200, "num_close": 2}
        >>> diagnosis = diagnose(program, 50, like=torch.zeros(2, 3), **options)  # doctest: +SKIP
        >>> print(str(diagnosis).splitlines()[0])  # doctest: +SKIP
        Diagnosis of LinearGaussian on 50 data of the model's own
    """
    own = errors.whole("x", x) if isinstance(x, int) and not isinstance(x, bool) else None
    level = errors.within("level", level, "(0, 1)", "0.01 is one false alarm in a hundred")
    close, seed = errors.whole("num_close", num_close), errors.seed_number(seed)
    num_particles = errors.whole("num_particles", num_particles)
    num_simulations = errors.whole(
        "num_simulations", num_simulations, LEAST_RANKS, MOST_RANKS,
        why="ranks of fewer tell nothing, and more than these would take for ever",
    )  # fmt: skip
    num_draws = errors.whole("num_draws", num_draws)
    for what, own_functions in (("quantities", quantities), ("statistics", statistics)):
        _require_functions(what, own_functions)
    rows: Rows
    truths: dict[str, Tensor] | None
    if own is not None:
        rows, truths = simulate(program, own, like=like, seed=seed + 1)
    else:
        rows, truths = usable_rows(x, program), None
    with torch.no_grad(), evaluating(program):
        require_possible_data(Look.at(program, rows), rows)
    asked = _Asked(level)
    common: dict[str, Any] = {"seed": seed, "progress": progress}
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore", PyroVaeWarning)  # the page says it
        spread = {} if cluster is None else {"cluster": stack.enter_context(connected(cluster))}
        given = {"num_particles": num_particles, **spread, **common}
        trust = asked("weights", reliability, program, rows, bound_particles=100, **given)
        few = some_rows(num_rows(rows), close, seed)
        near = map_rows(lambda t: t[few.to(t.device)], rows)
        value = (
            trust.evidence.value[few] if trust is not None else torch.full((len(few),), torch.nan)
        )
        latents = None if truths is None else {n: v[few.to(v.device)] for n, v in truths.items()}
        asked("log p(x)", sandwich, program, near, few, value, latents=latents, **common)
        pairs = simulate(program, num_simulations, like=rows, seed=seed)
        how = {"num_draws": num_draws, "quantities": quantities, "level": level, **common}
        ranked = asked("calibration", _calibration, program, pairs, **how)
        if ranked is not None and ranked.failed:
            made = map_rows(lambda t: t[:close], pairs.x)
            asked("modes", modes, program, made, torch.arange(num_rows(made)), **common)
        asked("gaps", _gaps, program, near, few, **common)
        asked("latents", profile, program, rows, pairs.latents, level=level, seed=seed)
        more = {"statistics": statistics, "level": level, **common}
        asked("predictions", predictive_checks, program, rows, **more)
        scored = {} if trust is None else {"known": trust.evidence, "num_particles": num_particles}
        how = {"level": level, **scored, **spread, **common}
        asked("misspecification", misspecification, program, rows, **how)
    asked.raise_if_nothing()
    title = f"Diagnosis of {type(program).__name__} on {num_rows(rows):,} data"
    title += " of the model's own" if own is not None else ""
    title += f" ({x.binarize})" if getattr(x, "binarize", None) not in (None, "none") else ""
    names = None if own is not None else names_of_rows(x)
    return Diagnosis(title, tuple(asked.findings), asked.parts, level, program, rows, names)


def _require_functions(what: str, given: Any) -> None:
    """Refuse what cannot be called, before an hour of work is lost on it."""
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} is {type(given).__name__}, expected a dict of functions by name")
    for name, function in given.items():
        if not callable(function):
            raise TypeError(f'{what} has "{name}", {type(function).__name__}, expected a function')


class _Asked:
    """Asks one question after the other, and keeps what is answered."""

    def __init__(self, level: float) -> None:
        self.level = level
        self.findings: list[Finding] = []
        self.parts: dict[str, Any] = {}
        self._refused: list[ValueError] = []

    def __call__(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The part, or None where there is no answer, which is a note."""
        try:
            part = function(*args, **options)
            found = part.findings()
        except ValueError as error:
            self._refused.append(error)
            reason = " ".join(str(error).split())
            self.findings.append(Finding(name, "note", f"not answered: {reason}"))
            self.parts[name] = None
            return None
        self.parts[name] = part
        self.findings += found
        return part

    def raise_if_nothing(self) -> None:
        if self._refused and not any(part is not None for part in self.parts.values()):
            raise self._refused[0]


def _gaps(program: nn.Module, x: Rows, index: Tensor, **options: Any) -> Gaps:
    """Of some data, called by the numbers that they have among all."""
    return replace(gaps(program, x, **options), index=index)


def _calibration(
    program: nn.Module, pairs: Simulated, *, num_draws: int,
    quantities: Mapping[str, Quantity] | None, level: float, seed: int, progress: Any,
) -> Calibration:  # fmt: skip
    number = num_rows(pairs.x)
    with counting(progress, number, label="calibration") as advance:
        ranks = simulated_ranks(
            program, num_draws=num_draws, quantities=quantities, simulated=pairs, seed=seed,
            advance=advance,
        )  # fmt: skip
    return Calibration(ranks, level)
