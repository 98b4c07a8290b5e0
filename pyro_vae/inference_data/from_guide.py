r"""``to_inference_data``: what the guide says about data, in the form that ArviZ reads.

The guide q(z | x) only approximates the posterior, and a picture of its draws does not show how
well.  So its draws come with everything that judges them: log p(x, z) and log q(z | x) of the very
same draws, whose difference is the log importance weight

.. math:: \log w_{kb} = \log p(x_b, z_{kb}) - \log q(z_{kb} \mid x_b),

and khat and log p(x) per datum, which are computed from these weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pyro_vae import errors
from pyro_vae.inference_data.converting import Options, converted
from pyro_vae.inference_data.programs import sources_of
from pyro_vae.refinement.result import Method
from pyro_vae.turns import taking_turns

CHAINS = 4  # that the draws of one program are dealt to


@taking_turns
def to_inference_data(
    program: Any,
    x: Any,
    *,
    num_draws: int = 500,
    chains: int | None = None,
    num_prior: int = 100,
    predictive: bool = True,
    true_latents: Any = None,
    dims: Mapping[str, Sequence[str | None]] | None = None,
    coords: Mapping[str, Any] | None = None,
    predictions: Any = None,
    num_simulations: int = 0,
    refined: Method | None = None,
    seed: int = 0,
    batch_size: int = 100,
    max_bytes: int = 2**30,
    out: str | Path | None = None,
    progress: bool | Callable[[Any], Any] | None = None,
    cluster: Any = None,
) -> Any:
    """Draw from the guide and put draws, weights, predictions and data into one ArviZ object.

    ========================== ============================== ===================================
    group                      variables                      dimensions
    ========================== ============================== ===================================
    posterior                  each latent, from q(z given x) chain, draw, data, its event's
    posterior_refined          the same of ``refined``        chain, draw, data, its event's
    sample_stats               lp = log p(x, z), log_q,       chain, draw, data
                               log_weight = lp - log_q
    sample_stats               khat, ess, elbo, log_evidence, data
                               log_evidence_standard_error
    sample_stats               kl, or kl_<site> of several    data, the latent's event's where
                               latents                        coordinates are independent
    posterior_predictive       x from p(x given z) at these z chain, draw, data, its event's
    log_likelihood             log p(x given z)               chain, draw, data
    prior, prior_predictive    latents from p(z), x at these  chain, draw, data, their event's
    prior_sbc                  places of simulated truths     chain, draw, the latent's event's
                               among the guide's draws
    predictions                latents and x of other data    chain, draw, data, their event's
    observed_data              x                              data, its event's
    constant_data              covariates, labels, true       data, their event's
                               latents
    predictions_constant_data  other data, their covariates   data, their event's
    training                   the history of a ``Run``       step
    ========================== ============================== ===================================

    Several programs, such as trainings from different seeds, are one chain each: r_hat then says
    how far trainings agree.  What is said of a datum (khat, kl, ...) is then said by each program,
    with a dimension ``chain``, and the curves of runs have it too.  Of one program, "chains" only
    serve functions of ArviZ that want several: its draws are independent, and r_hat near 1 says
    nothing about the guide.  khat does: below 0.7 the guide is close enough to the posterior for
    its weights to be of use.  The draws are the guide's own, neither weighted nor resampled.

    Latents that all data share, such as the weights of a regression, have no dimension ``data``,
    and one draw of them serves all rows.  lp and log_q are then of all rows together, (chain,
    draw), and there is no log p(x) of a datum: khat and log_evidence are of all rows, and are left
    out where rows have latents besides.  ``az.loo`` is for programs all of whose latents are
    shared: ``log_likelihood`` says so in its attribute ``loo_is_valid``.

    A dimension of an event has the name that ``infer={"event_dims": [...]}`` of its site gives
    it, as in ArviZ's converter for NumPyro; one of another plate has the plate's.  Else it is
    ``z_dim``, or ``z_dim_0``, ``z_dim_1``, ... where there are several.

    Data that are whole numbers by their law stay integers, x and its predictions alike, so that
    ``az.plot_ppc`` draws bars.  A slash in a name, as in "vae/z", becomes a dot, in memory as on
    the disk; the attribute ``site_vae.z`` has the site's own name.

    ``az.summary`` takes about 8 ms for each scalar, and there are rows x latent dimensions of
    them: cut first, ``az.summary(result.isel(data=slice(10)), var_names=["z"])``, or call
    :func:`~pyro_vae.summarize`.

    Args:
        program: the program; a ``Run``, whose curve comes along; or a list of either.
        x: data (N, ...): a tensor, an array, a dict with covariates, or a ``Data``, whose labels
            and row numbers come along.
        num_draws: S draws a chain.
        chains: C, 4 for one program; khat and log_evidence use all C x S draws.
        num_prior: prior draws, in one chain; 0 leaves both prior groups out.
        predictive: draw x as well.  That makes the two largest groups, and needs a model that
            observes x itself without a mask.
        true_latents: of synthetic data: (N, ...), or a dict by site where there are several.  They
            become ``true_<site>`` in constant_data.
        dims: names of dimensions by variable, without those of chains and draws, as ArviZ's
            converters take them: ``{"z": ["factor"]}`` or ``{"z": ["data", "factor"]}``.
        coords: what stands along a dimension: ``{"factor": ["age", "size"]}``.
        predictions: held-out data; the guide sees them.
        num_simulations: simulated data for simulation-based calibration in ``prior_sbc``, which
            ArviZ 1 draws by ``plot_ecdf_pit(result)``; 0 leaves it out.
        refined: draws of ``pv.refine`` by this method ("psis", "hmc" or "guide") in a group
            ``posterior_refined``, their khat, ess or R-hat as ``refined_...`` in sample_stats.  Of
            "hmc" chains are chains.  Both lines of ArviZ lay them over the guide's:
            ``plot_forest([result["posterior"], result["posterior_refined"]])`` below 1, and
            ``plot_forest({"guide": {"posterior": ...}, "refined": {"posterior": ...}})`` from 1 on.
        seed: of the noise; torch's global generator is neither read nor changed.
        batch_size: rows at a time; the noise depends on it.
        max_bytes: how large the result may be in memory.
        out: a file .nc or .zarr that is written a batch of rows at a time, so that the result is
            never in memory as a whole.  It must not exist, and has its name only when it is whole.
        progress: as of ``pv.fit``, of a file by default; the line says how large it will be.
        cluster: rows go in pieces to a Dask cluster, as of :func:`~pyro_vae.compare`, and the
            numbers are those of one process; simulated data stay here.

    Returns:
        ``arviz.InferenceData`` for ArviZ below 1, ``xarray.DataTree`` from 1 on; of a file, opened
        and not read.  ``data`` has the index of a pandas frame, the row numbers of a ``Data``, else
        0..N-1, and labels as the coordinate ``label``; ``chain`` the seeds of runs, where they
        differ.  Columns that have names give them to ``x_dim``.

    Raises:
        ValueError: a result above ``max_bytes``, or a file that exists or has no room, before
            anything is drawn; data outside the likelihood's support; a guide that is a point; true
            latents of another shape; a name that two things would have; names and values of
            dimensions that do not fit; programs of different forms.

    Warns:
        PyroVaeWarning: where khat exceeds 0.7, or there is none.

    The program is put into evaluation mode (no dropout) for as long as this takes.

    Example:
        >>> import torch
        >>> from pyro_vae.models import linear_gaussian
        >>> oracle = linear_gaussian.build(3, latent_dim=2)
        >>> result = to_inference_data(oracle, torch.zeros(4, 3), num_draws=50)
        >>> dict(result["posterior"]["z"].sizes)
        {'chain': 4, 'draw': 50, 'data': 4, 'z_dim': 2}

    Sources: Kumar et al. (2019), ArviZ; khat: Vehtari et al. (2024); for the log-likelihood and
    leave-one-out: Merkle, Furr & Rabe-Hesketh (2019).
    """
    sources = sources_of(program)
    several = len(sources) > 1
    chains = len(sources) if several and chains is None else CHAINS if chains is None else chains
    chains = errors.whole("chains", chains)
    if several and chains != len(sources):
        raise ValueError(
            f"chains is {chains} for {len(sources)} programs, expected one chain for each: leave "
            "it out"
        )
    if refined is not None and refined not in get_args(Method):
        names = ", ".join(get_args(Method))
        raise ValueError(f"refined is {refined!r}, expected None or one of {names}")
    options = Options(
        num_draws=errors.whole("num_draws", num_draws),
        chains=chains,
        num_prior=errors.whole("num_prior", num_prior, 0),
        predictive=predictive,
        true_latents=true_latents,
        dims=dims,
        coords=coords,
        predictions=predictions,
        num_simulations=errors.whole("num_simulations", num_simulations, 0),
        refined=refined,
        seed=errors.seed_number(seed),
        batch_size=errors.whole("batch_size", batch_size),
        max_bytes=errors.whole("max_bytes", max_bytes),
        out=out,
        progress=progress,
        cluster=cluster,
    )
    return converted(sources, x, options)
