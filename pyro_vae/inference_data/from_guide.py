r"""``to_inference_data``: what the guide says about data, in the form that ArviZ reads.

The guide q(z | x) only approximates the posterior, and a picture of its draws does not show how
well.  So its draws come with everything that judges them: log p(x, z) and log q(z | x) of the very
same draws, whose difference is the log importance weight

.. math:: \log w_{kb} = \log p(x_b, z_{kb}) - \log q(z_{kb} \mid x_b),

and khat and log p(x) per datum, which are computed from these weights.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.checking.guards import require_numbers, require_possible_data
from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import usable_rows
from pyro_vae.densities.tables import Densities
from pyro_vae.evidence.importance import require_weights
from pyro_vae.evidence.weights import from_log_weights, warn_about_tails
from pyro_vae.inference_data.datasets import (
    AXES,
    as_dataset,
    attributes_of,
    container,
    notes_of,
    written,
)
from pyro_vae.inference_data.draws import (
    Groups,
    as_array,
    drawn,
    form_of,
    observed_values,
    posterior_groups,
    prior_groups,
    whole_types,
)
from pyro_vae.inference_data.limits import refuse_names, refuse_size
from pyro_vae.inference_data.shared import (
    JOINT,
    drawn_together,
    from_guide,
    from_prior,
    shared_latents,
)
from pyro_vae.noise import Stream
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import Rows, num_rows


def to_inference_data(
    program: nn.Module,
    x: Any,
    *,
    num_draws: int = 500,
    chains: int = 4,
    num_prior: int = 100,
    predictive: bool = True,
    true_latents: Any = None,
    seed: int = 0,
    batch_size: int = 100,
    max_bytes: int = 2**30,
) -> Any:
    """Draw from the guide and put draws, weights, predictions and data into one ArviZ object.

    ==================== ==================================== ==================================
    group                variables                            dimensions
    ==================== ==================================== ==================================
    posterior            each latent, from q(z given x)        chain, draw, data, its event's
    sample_stats         lp = log p(x, z); log_q              chain, draw, data
    sample_stats         khat; log_evidence and its           data
                         standard error; ess
    posterior_predictive x from p(x given z) at these z        chain, draw, data, its event's
    log_likelihood       log p(x given z)                     chain, draw, data
    prior                each latent, from p(z)               chain, draw, data, its event's
    prior_predictive     x at these                           chain, draw, data, its event's
    observed_data        x                                    data, its event's
    constant_data        covariates, labels, true latents     data, their event's
    ==================== ==================================== ==================================

    Latents that all data share, such as the weights of a regression, have no dimension ``data``,
    and one draw of them serves all rows.  lp and log_q are then of all rows together, (chain,
    draw), and there is no log p(x) of a datum: khat and log_evidence are of all rows, and are left
    out where rows have latents besides.

    Data that are whole numbers by their law stay integers, x and its predictions alike, so that
    ``az.plot_ppc`` draws bars.  A slash in a name, as in "vae/z", becomes a dot, in memory as on
    the disk; the attribute ``site_vae.z`` has the site's own name.

    The draws are the guide's own: neither weighted nor resampled.  They are independent, so
    "chains" only serve functions of ArviZ that want several, and r_hat near 1 says nothing about
    the guide.  khat does: below 0.7 the guide is close enough to the posterior for its weights to
    be of use.  Densities and log_evidence are in nats per datum.

    ``az.summary`` takes about 8 ms for each scalar, and there are rows x latent dimensions of
    them: cut first, ``az.summary(result.isel(data=slice(10)), var_names=["z"])``.

    Args:
        program: the program.
        x: data (N, ...): a tensor, an array, a dict with covariates, or a ``Data``, whose labels
            and row numbers come along.
        num_draws: S draws a chain.
        chains: C; khat and log_evidence use all C x S draws.
        num_prior: prior draws, in one chain; 0 leaves both prior groups out.
        predictive: draw x as well.  That makes the two largest groups, and needs a model that
            observes x itself without a mask.
        true_latents: of synthetic data: (N, ...), or a dict by site where there are several.  They
            become ``true_<site>`` in constant_data.
        seed: of the noise; torch's global generator is neither read nor changed.
        batch_size: rows at a time; the noise depends on it.
        max_bytes: how large the result may be.

    Returns:
        ``arviz.InferenceData`` for ArviZ below 1, ``xarray.DataTree`` from 1 on.  The dimension
        ``data`` has the row numbers of a ``Data``, else 0..N-1; an event dimension of site "z" is
        ``z_dim``, or ``z_dim_0``, ``z_dim_1``, ... where there are several.

    Raises:
        ValueError: a result above ``max_bytes``, before anything is drawn; data outside the
            likelihood's support; a guide that is a point; true latents of another shape; a name
            that two things would have.

    Warns:
        PyroVaeWarning: where khat exceeds 0.7, or there is none.

    The program is put into evaluation mode (no dropout) for as long as this takes.

    Example:
        >>> from pyro_vae.models import linear_gaussian
        >>> oracle = linear_gaussian.build(3, latent_dim=2)
        >>> result = to_inference_data(oracle, torch.zeros(4, 3), num_draws=50)
        >>> dict(result["posterior"]["z"].sizes)
        {'chain': 4, 'draw': 50, 'data': 4, 'z_dim': 2}

    Sources: Kumar et al. (2019), ArviZ; khat: Vehtari et al. (2024); for the log-likelihood and
    leave-one-out: Merkle, Furr & Rabe-Hesketh (2019).
    """
    num_draws, chains = errors.whole("num_draws", num_draws), errors.whole("chains", chains)
    num_prior, seed = errors.whole("num_prior", num_prior, 0), errors.seed_number(seed)
    batch_size = errors.whole("batch_size", batch_size)
    max_bytes = errors.whole("max_bytes", max_bytes)
    wrapped = container()  # before there is anything to lose
    rows = usable_rows(x, program)
    particles = num_draws * chains
    made: Groups = {}
    ours: dict[str, Any] = {}  # of latents that all data share
    theirs: dict[str, Any] = {}
    with evaluating(program):
        look = Look.at(program, rows)
        require_possible_data(look, rows)
        shared = shared_latents(look)
        require_weights(look, together=bool(shared))
        form = form_of(look, program, predictive)
        observed = observed_values(program, rows, batch_size)
        whole = whole_types(x, look, observed)
        observed = _cast(observed, whole)
        truths = _true_latents(true_latents, form, num_rows(rows), shared)
        seen = {entry for entry in look.entries.values() if entry}
        constants, sites = _constants(x, rows, seen, truths)
        names = [*form.latents, *observed, *constants]
        refuse_names(names)
        own = [name for name in form.latents if not look.guide[name].is_global]
        count = num_rows(rows)
        refuse_size(form, observed, particles, num_prior, predictive, max_bytes, shared, own, count)
        cast = partial(_cast, types=whole)
        keys = Stream.POSTERIOR.key(seed), Stream.PRIOR.key(seed)
        if shared:
            args = (
                program,
                rows,
                from_guide(list(observed), predictive, cast),
                shared,
                particles,
                keys[0],
                batch_size,
            )
            groups, ours = drawn_together(*args)
        else:
            posterior = posterior_groups(list(observed), predictive, cast)
            groups = drawn(program, rows, posterior, particles, keys[0], batch_size)
        if num_prior and shared:
            args = (
                program,
                rows,
                from_prior(predictive, cast),
                shared,
                num_prior,
                keys[1],
                batch_size,
            )
            made, theirs = drawn_together(*args)
        elif num_prior:
            prior = prior_groups(predictive, cast)
            made = drawn(program, rows, prior, num_prior, keys[1], batch_size)
    statistics = groups.pop(JOINT) if shared else groups["sample_stats"]
    datasets = {group: as_dataset(values, AXES, chains) for group, values in groups.items()}
    datasets |= {group: as_dataset(values, AXES, 1) for group, values in made.items()}
    if shared:
        datasets["sample_stats"] = as_dataset(statistics, AXES[:2], chains)
        for group, values, count in (("posterior", ours, chains), ("prior", theirs, 1)):
            if values:
                part = as_dataset(values, AXES[:2], count)
                datasets[group] = part.merge(datasets.get(group, part))
    if not (shared and own):
        log_w = statistics["lp"] - statistics["log_q"]  # (K, N), or (K,) of all rows together
        evidence = from_log_weights(torch.from_numpy(log_w.reshape(len(log_w), -1)))
        require_numbers(evidence.value, "log p(x)")
        warn_about_tails(
            evidence.khat,
            "the guide's draws miss a part of their posterior; see "
            'sample_stats["khat"] before you read the draws as a posterior',
        )
        judged = {
            "khat": evidence.khat,
            "log_evidence": evidence.value,
            "log_evidence_standard_error": evidence.standard_error,
            "ess": evidence.ess,
        }
        judged = {name: value.reshape(log_w.shape[1:]) for name, value in judged.items()}
        datasets["sample_stats"].update(as_dataset(judged, () if shared else AXES[2:]))
    datasets["observed_data"] = as_dataset(observed, AXES[2:])
    if constants:
        of_all = {f"true_{n}": constants.pop(f"true_{n}") for n in truths if n in shared}
        datasets["constant_data"] = as_dataset(constants, AXES[2:], sites=sites)
        datasets["constant_data"].update(as_dataset(of_all, (), sites=sites))

    index = getattr(x, "index", None)
    numbers = as_array(index) if isinstance(index, Tensor) else np.arange(num_rows(rows))
    attributes = attributes_of(program, x, seed=seed, num_draws=num_draws, chains=chains)
    attributes |= {f"site_{written(n)}": n for n in names if written(n) != n}
    notes = notes_of(bool(shared), bool(own))
    for group, dataset in datasets.items():
        note = {"note": notes[group]} if group in notes else {}
        if "data" in dataset.dims:
            dataset = dataset.assign_coords(data=numbers)
        datasets[group] = dataset.assign_attrs(attributes | note)
    return wrapped(datasets)


def _cast(values: dict[str, Tensor], types: dict[str, torch.dtype]) -> dict[str, Tensor]:
    return {name: value.to(types.get(name, value.dtype)) for name, value in values.items()}


# --- what is asked for ----------------------------------------------------------------------------


def _true_latents(
    given: Any, form: Densities, rows: int, shared: list[str]
) -> dict[str, np.ndarray]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        if len(form.latents) != 1:
            raise ValueError(
                f"true_latents is {type(given).__name__} and the guide has the latents "
                f"{', '.join(form.latents)}, expected a dict by site"
            )
        given = {next(iter(form.latents)): given}
    truths = {name: as_array(value) for name, value in given.items()}
    for name, truth in truths.items():
        if name not in form.latents:
            raise ValueError(
                f'true_latents has "{name}", expected latents of the guide: '
                f"{', '.join(form.latents)}"
            )
        event = form.latents[name].shape
        expected = tuple(event) if name in shared else (rows, *event[1:])
        each = "all rows together" if name in shared else "each row of x"
        if truth.shape != expected:
            raise ValueError(
                f'true_latents of "{name}" have shape {truth.shape}, expected {expected}: one '
                f"value for {each}"
            )
    return truths


# --- datasets -------------------------------------------------------------------------------------


def _constants(
    x: Any, rows: Rows, seen: set[str], truths: dict[str, np.ndarray]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What is given besides x, and for each true latent the site whose dimensions it shares."""
    entries = rows if isinstance(rows, dict) else {}
    constants: dict[str, Any] = {name: v for name, v in entries.items() if name not in seen}
    if getattr(x, "labels", None) is not None:
        constants["labels"] = x.labels
    for name, truth in truths.items():
        if f"true_{name}" in constants:
            raise ValueError(
                f'x has an entry "true_{name}", which is what the true latents of "{name}" are '
                "called: rename the entry"
            )
        constants[f"true_{name}"] = truth
    return constants, {f"true_{name}": name for name in truths}
