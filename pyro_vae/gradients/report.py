r"""The gradient laboratory: what an objective's gradient is made of, measured at one point.

At fixed parameters and a fixed batch the gradient g of a draw is a random vector.  Of each group of
parameters the report says how long its mean is, how far draws lie from it, and how far it lies from
the mean of another objective,

.. math::
    \|E g\|, \qquad \operatorname{tr} \operatorname{Cov} g, \qquad
    \mathrm{SNR} = \frac{\|E g\|}{\sqrt{\operatorname{tr} \operatorname{Cov} g}}, \qquad
    \mathrm{bias} = \|E g - E g_{\mathrm{ref}}\|.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro.infer.elbo import ELBO
from torch import nn

from pyro_vae import errors
from pyro_vae.checking.guards import require_possible_data
from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import usable_rows
from pyro_vae.densities.sites import Sites
from pyro_vae.engine.choosing import suited, translate
from pyro_vae.gradients.groups import parts_of
from pyro_vae.gradients.lab import BLOCKS, Draws, Lab, costs
from pyro_vae.gradients.moments import moments
from pyro_vae.objectives.base import Objective, names_of, same_objective
from pyro_vae.program.calling import left_as_it_was, materialize, require_program
from pyro_vae.program.rows import num_rows
from pyro_vae.progress import Record, reporter
from pyro_vae.turns import taking_turns

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


HEAVY = (
    "\nkhat > 0.5: heavy tails; there variance is likely too low, snr too high, their ± too small, "
    "and bias p of a single skewed parameter too small: take more draws"
)


@dataclass(frozen=True)
class GradientReport:
    """What :func:`gradient_report` returns.

    Attributes:
        dataset: an xarray data set; over (group, objective) ``norm``, ``variance``, ``snr`` and
            ``bias``, their standard errors, ``bias_p`` and ``khat``; over (objective)
            ``seconds`` and ``multiplications``.  Attributes name the reference and the draws.
    """

    dataset: xr.Dataset

    def table(self) -> pd.DataFrame:
        """One row a group and objective; gradients are of the loss in nats per datum.

        ``norm`` is the length of the mean gradient, ``variance`` that of one draw summed over the
        group's parameters, ``snr`` the ratio of lengths.  ``bias`` is the distance to the
        reference's mean gradient; ``bias p`` is how probable a distance as large would be between
        equal means.  ``±`` is how far one standard error reaches upwards: where a length is 0,
        it is what these draws leave unnoticed.  ``khat`` is Pareto's, of the squared distances of
        draws from their mean: above 0.5 their tails are so heavy that ``variance`` is likely too
        low, ``snr`` too high and the ``±`` of both too small, covering 50 to 90 % where 95 % are
        asked for; and that ``bias p`` of one skewed parameter is too small, by a factor of up to 10
        at 0.001 (:mod:`pyro_vae.gradients.moments` has the numbers).  ``seconds`` and
        ``multiplications`` (those in matrix products) are of one gradient of the whole batch, all
        groups together.
        """
        columns = {
            "norm": "norm", "variance": "variance", "variance_standard_error": "variance ±",
            "snr": "snr", "snr_standard_error": "snr ±", "bias": "bias",
            "bias_standard_error": "bias ±", "bias_p": "bias p", "khat": "khat",
            "seconds": "seconds", "multiplications": "multiplications",
        }  # fmt: skip
        frame = self.dataset.to_dataframe(dim_order=["group", "objective"])
        return frame[list(columns)].rename(columns=columns)

    def plot(self, path: str | Path | None = None) -> Any:
        """Signal-to-noise, variance and bias by group; returns the figure, saves it to ``path``."""
        from pyro_vae.plotting.figures import saved
        from pyro_vae.plotting.gradients import gradient_dots

        return saved(gradient_dots(self.dataset)[0, 0].figure, path)

    def save(self, path: str | Path) -> None:
        """Write the data set as netCDF; ``xarray.open_dataset`` reads it anywhere."""
        errors.require_libraries("h5netcdf", "h5py")
        self.dataset.to_netcdf(path, engine="h5netcdf")

    def __repr__(self) -> str:
        about = self.dataset.attrs
        return (
            f"gradients of the loss per datum, {about['num_draws']} draws for a batch of "
            f"{about['rows']} rows; bias against {about['reference']}\n"
            + self.table().to_string(float_format="{:.3g}".format)
            + (HEAVY if bool((self.dataset.khat > 0.5).any()) else "")
        )


@taking_turns
def gradient_report(
    program: nn.Module,
    x: Any,
    objectives: Sequence[Objective | ELBO],
    *,
    reference: Objective | ELBO | None = None,
    num_draws: int = 1000,
    warmup: int = 100,
    groups: Mapping[str, str] | Callable[[str], str] | None = None,
    seed: int = 0,
    progress: bool | Callable[[Record], Any] | None = None,
) -> GradientReport:
    r"""Bias, variance, signal-to-noise and cost of each objective's gradient, for this program.

    Nothing is trained, and buffers are put back.  Parameters and the batch stay fixed, so all that
    varies is the noise that the objectives draw.

    Args:
        program: the program, trained as far as the question asks for: estimators rank differently
            early and late.
        x: one minibatch (a ``Data``, a tensor, an array or a dict, (B, ...)), such as
            ``data.train[:100]``.
        objectives: of ``pv.objectives``, or Pyro's ELBOs.
        reference: what bias is measured against (default: the first of ``objectives``).  Two
            objectives with different targets, such as ``AEVB()`` and ``IWAE(10)``, differ by
            more than bias: take one of the same target, such as ``IWAE(10)`` for ``DReG(10)``.
            It is one of them where it is made from the same, however it prints.
            Under discrete latents ``TraceEnum_ELBO()`` is an exact one, for a guide under
            ``pyro.infer.config_enumerate``.
        num_draws: of each gradient, rounded down to a multiple of 25.
        warmup: draws by which an objective's memory (a running baseline, KL warm-up) is brought
            forward first; then it is held, so that draws are independent.
        groups: parameter name -> name of its group.  By default "model" holds what log p(x, z)
            depends on at given latents, "guide" what the guide does, "both" what they share.
        seed: of the noise.
        progress: None shows a line where stderr is a terminal.

    Returns:
        :class:`GradientReport`, with ``table()`` and ``plot(path)``.

    Raises:
        ValueError: an objective whose draws follow a Markov chain; fewer than 50 draws; a gradient
            that is not finite; or what the objectives themselves refuse.

    Gradients are those of the loss, summed over the batch and divided by its rows, without the
    optimizer's clipping or weight prior.  Memory holds 25 gradients each of two objectives.

    ``bias p`` compares the squared distance of the means with what its blocks let expect, by an F
    distribution whose degrees of freedom match mean and variance (Satterthwaite's), because a
    group may hold one parameter or a million that move together.

    Source: on signal-to-noise, Rainforth et al. (2018), arXiv:1802.04537, which takes the ratio of
    each parameter by itself; here it is one ratio for a group.

    Example:
        >>> import pyro_vae as pv
        >>> from pyro_vae.models import bernoulli_vae
        >>> digits = pv.datasets.load("digits")
        >>> vae = bernoulli_vae.build(digits.dim, latent_dim=2, hidden_dim=16)
        >>> both = [pv.objectives.AEVB("A"), pv.objectives.AEVB("B")]
        >>> report = pv.gradient_report(vae, digits.train[:20], both, num_draws=50)
        >>> list(report.table().columns[:3])
        ['norm', 'variance', 'variance ±']
    """
    why = f"they are averaged in {BLOCKS} blocks"
    num_draws = errors.whole("num_draws", num_draws, 2 * BLOCKS, why=why) // BLOCKS * BLOCKS
    warmup, seed = errors.whole("warmup", warmup, 0), errors.seed_number(seed)
    require_program(program)
    x = usable_rows(x, program, learning=True)
    materialize(program, x)
    look = Look.at(program, x)
    require_possible_data(look, x)
    chosen, name_of_reference, against = _named(objectives, reference, look.guide)
    parts = parts_of(program, x, groups)
    order = {name_of_reference: against, **chosen}  # the reference once, and first
    rows: dict[str, dict[str, dict[str, float]]] = {}
    with (
        left_as_it_was(program, parameters=False),
        reporter(progress, len(order) * num_draws * num_rows(x), label="gradients") as report,
    ):
        labs = {name: Lab(program, x, objective, seed, warmup) for name, objective in order.items()}
        told, started = 0, time.perf_counter()

        def tell() -> None:
            nonlocal told
            told += num_draws // BLOCKS
            seconds = time.perf_counter() - started
            report(Record(told, told * num_rows(x), seconds, {}, program))

        first: Draws | None = None
        for name, lab in labs.items():
            draws = lab.draw(num_draws, parts, tell)
            first = first or draws
            rows[name] = {group: moments(draws, first, group) for group in parts}
        spent = costs({name: labs[name] for name in chosen})
    return GradientReport(
        _dataset(
            {name: rows[name] for name in chosen},
            spent,
            {
                "reference": name_of_reference,
                "num_draws": num_draws,
                "rows": num_rows(x),
                "groups": "; ".join(f"{g}: {', '.join(parts[g])}" for g in sorted(parts)),
            },
        )
    )


def _named(
    objectives: Sequence[Any], reference: Any, guide: Sites
) -> tuple[dict[str, Objective | ELBO], str, Objective | ELBO]:
    """The objectives by name, and the reference with its own, which may be one of them."""
    if not isinstance(objectives, Sequence) or not objectives:
        raise TypeError(
            f"objectives is {objectives!r}, expected a list of at least one, such as "
            "[pv.objectives.AEVB(), pv.objectives.IWAE(10)]"
        )
    # Pyro's Trace_ELBO and its kin are ours from here on.
    every = [suited(objective, translate(objective), guide) for objective in objectives]
    against = every[0] if reference is None else suited(reference, translate(reference), guide)
    place = next((i for i, each in enumerate(every) if same_objective(each, against)), len(every))
    if place == len(every):
        every.append(against)
    names = names_of(every)
    for name, objective in zip(names, every, strict=True):
        if getattr(objective, "refresh_every", 0):
            raise ValueError(
                f"the gradients of {name} follow a Markov chain, so they are no independent draws "
                "and say nothing about variance: leave it out"
            )
    chosen = dict(zip(names[: len(objectives)], every, strict=False))
    return chosen, names[place], every[place]


def _dataset(
    rows: dict[str, dict[str, dict[str, float]]],
    costs: dict[str, dict[str, float]],
    attributes: dict[str, Any],
) -> xr.Dataset:
    import xarray as xr

    objectives, groups = list(rows), list(next(iter(rows.values())))
    variables: dict[str, Any] = {
        name: (("group", "objective"), [[rows[o][g][name] for o in objectives] for g in groups])
        for name in rows[objectives[0]][groups[0]]
    }
    for name in ("seconds", "multiplications"):
        variables[name] = (("objective",), [costs[o][name] for o in objectives])
    return xr.Dataset(
        variables,
        coords={"group": groups, "objective": objectives},
        attrs={**attributes, "unit": "gradients of nats per datum"},
    )
