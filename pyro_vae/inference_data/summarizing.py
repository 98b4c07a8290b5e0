r"""``summarize``: mean, sd, interval and quantiles of every latent of many data, in seconds.

Draws are taken a batch of rows at a time, sorted, summed up and forgotten, so that neither N nor S
bounds what can be summarized.  The highest-density interval is the narrowest that holds
``floor(hdi_prob * S)`` steps between sorted draws, as ArviZ computes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import nn

from pyro_vae import errors
from pyro_vae.checking.guards import require_possible_data
from pyro_vae.defaults import __version__
from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import usable_rows
from pyro_vae.inference_data.draws import GuideAlone, drawn, latents_alone
from pyro_vae.inference_data.naming import Coords, Dims, Naming, refuse_names, rows_of, written
from pyro_vae.inference_data.programs import sources_of
from pyro_vae.inference_data.shared import (
    as_draws,
    drawn_together,
    from_guide,
    latents_at,
    shared_draws,
)
from pyro_vae.noise import Stream
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import Rows, num_rows
from pyro_vae.progress import counting
from pyro_vae.turns import taking_turns

ELEMENTS = 2**27  # of x and draws: one run serves all draws of a batch
METRIC = "metric"  # the dimension of what is said of a latent, as in ArviZ's own table


@taking_turns
def summarize(
    program: Any,
    x: Any = None,
    *,
    hdi_prob: float = 0.9,
    quantiles: Sequence[float] = (0.05, 0.5, 0.95),
    num_draws: int = 1000,
    dims: Dims | None = None,
    coords: Coords | None = None,
    seed: int = 0,
    batch_size: int = 100,
    progress: bool | Callable[[Any], Any] | None = None,
) -> Any:
    """Summarize the guide's posterior of each datum, or the draws of a converted object.

    One variable a latent, with the dimensions of the latent and ``metric``: "mean", "sd", the ends
    of the highest-density interval ("hdi_5%", "hdi_95%" at 0.9) and quantiles ("q5", "q50", "q95"),
    all by Monte Carlo, float64.  A table with a row for each scalar is
    ``result["z"].to_dataset("metric").to_dataframe()``.

    A discrete latent is summarized as the numbers that its values are; of codes, which have no
    order, look at the draws instead.

    Args:
        program: the program, or a ``Run``; or an object of ``to_inference_data`` (or any with a
            group "posterior"), whose draws are summarized, ``x`` left out.
        x: data (N, ...).
        hdi_prob: what the interval holds.
        quantiles: which, between 0 and 1.
        num_draws: S draws of each datum; the ends of an interval need hundreds.
        dims, coords: as of :func:`~pyro_vae.to_inference_data`.
        seed: of the noise.
        batch_size: rows at a time; the noise depends on it.
        progress: as of ``pv.fit``.

    Returns:
        ``xarray.Dataset``, in memory N x dimensions x metrics numbers.  Latents that all data share
        have no dimension ``data``.

    Raises:
        ValueError: hdi_prob or quantiles outside of (0, 1) and [0, 1]; what ``to_inference_data``
            refuses of names; a program without x.

    Example:
        >>> import torch
        >>> from pyro_vae.models import linear_gaussian
        >>> oracle = linear_gaussian.build(3, latent_dim=2)
        >>> table = summarize(oracle, torch.zeros(4, 3))["z"]
        >>> dict(table.sizes)
        {'data': 4, 'z_dim': 2, 'metric': 7}

    Source: for the interval, Hyndman (1996); Kumar et al. (2019), ArviZ.
    """
    prob = errors.within("hdi_prob", hdi_prob, "(0, 1)", "0.9 is usual")
    levels = [errors.within("a quantile", q, "[0, 1]") for q in quantiles]
    metrics = names_of_metrics(prob, levels)
    summarized = Summary(prob, levels)
    program = sources_of(program)[0].program if hasattr(program, "manifest") else program
    if not isinstance(program, nn.Module):
        return _of_object(program, x, summarized, metrics)
    if x is None:
        raise ValueError("x is None, expected data: pv.summarize(program, x)")
    num_draws = errors.whole("num_draws", num_draws, 2, why="a spread needs several")
    batch_size, seed = errors.whole("batch_size", batch_size), errors.seed_number(seed)
    rows = usable_rows(x, program)
    count = num_rows(rows)
    with evaluating(program), counting(progress, count, label="summarize") as advance:
        look = Look.at(program, rows)
        require_possible_data(look, rows)  # of wrong shape a guide alone may make something
        naming = Naming(look, dims, coords, rows_of(x, count), np.arange(1))
        refuse_names(list(look.latents), naming.has_labels)
        own = {name: not site.is_global for name, site in look.latents.items()}
        for name, site in look.latents.items():
            shape = site.rows_first(site.value).shape
            naming.add(name, shape[1:] if own[name] else shape, of_data=own[name])
        naming.done()
        found: dict[str, np.ndarray] = {}
        start = 0
        batches = _batches(program, rows, look, num_draws, batch_size, seed)
        for batch in _meanwhile(summarized.all, batches):
            done = 0
            for name, made in batch.items():
                if own[name]:
                    done = len(made)
                    whole = found.setdefault(name, np.empty((count, *made.shape[1:])))
                    whole[start : start + done] = made
                else:
                    found[name] = made
            start += done
            advance(done)
    import xarray as xr

    variables = {
        written(n): ((*(("data",) if own[n] else ()), *naming.dims(n), METRIC), values)
        for n, values in found.items()
    }
    sizes = {d: s for axes, v in variables.values() for d, s in zip(axes, v.shape, strict=True)}
    of_metric = {METRIC: metrics}
    places = naming.coords({dim: n for dim, n in sizes.items() if dim != METRIC})
    return xr.Dataset(variables, coords={**places, **of_metric}).assign_attrs(
        inference_library="pyro_vae",
        inference_library_version=__version__,
        draws=f"{num_draws} from the guide q(z | x) for each datum",
        seed=seed,
    )


def names_of_metrics(prob: float, levels: Sequence[float]) -> list[str]:
    """ "mean", "sd", "hdi_5%", "hdi_95%", "q5", ..."""
    ends = [f"hdi_{100 * (1 - prob) / 2:g}%", f"hdi_{100 * (1 + prob) / 2:g}%"]
    return ["mean", "sd", *ends, *(f"q{100 * level:g}" for level in levels)]


class Summary:
    """Draws (S, ...) to numbers (..., M), in float64."""

    def __init__(self, prob: float, levels: Sequence[float]) -> None:
        self.prob, self.levels = prob, levels

    def __call__(self, draws: np.ndarray) -> np.ndarray:
        if draws.dtype == bool:
            draws = draws.astype(np.int8)
        ordered = np.sort(np.ascontiguousarray(np.moveaxis(draws, 0, -1)), axis=-1)
        mean = ordered.mean(-1, dtype=np.float64)
        spread = ordered.std(-1, dtype=np.float64, ddof=1)
        low, high = self._interval(ordered)
        return np.stack([mean, spread, low, high, *map(self._quantile(ordered), self.levels)], -1)

    def all(self, draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The same by latent."""
        return {name: self(value) for name, value in draws.items()}

    def _interval(self, ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = ordered.shape[-1]
        steps = int(np.floor(self.prob * size))
        first = ordered[..., : size - steps]
        # (In float64, because bytes have no negative differences.)
        width = ordered[..., steps:].astype(np.float64) - first
        best = width.argmin(-1)[..., None]
        low = np.take_along_axis(ordered, best, -1)[..., 0]
        high = np.take_along_axis(ordered, best + steps, -1)[..., 0]
        return low.astype(np.float64), high.astype(np.float64)

    def _quantile(self, ordered: np.ndarray) -> Callable[[float], np.ndarray]:
        """Linear between order statistics, as numpy's and xarray's by default."""

        def quantile(level: float) -> np.ndarray:
            place = level * (ordered.shape[-1] - 1)
            below = int(place)
            above = min(below + 1, ordered.shape[-1] - 1)
            low = ordered[..., below].astype(np.float64)
            return low + (place - below) * (ordered[..., above] - low)

        return quantile


def _meanwhile(function: Callable[[Any], Any], values: Iterable[Any]) -> Iterator[Any]:
    """``function`` of each value in a thread, while the next one is made here."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for value in values:
            started = pool.submit(function, value)
            if waiting is not None:
                yield waiting.result()
            waiting = started
        if waiting is not None:
            yield waiting.result()


def _batches(
    program: nn.Module, rows: Rows, look: Look, draws: int, batch_size: int, seed: int
) -> Iterator[Mapping[str, np.ndarray]]:
    """Draws (S, B, ...) of a batch of rows after the other; shared ones (S, ...) with the first."""
    key = Stream.SUMMARY.key(seed)
    shared = [name for name, site in look.latents.items() if site.is_global]
    if not shared:
        alone = GuideAlone(program)
        for groups in drawn(alone, rows, latents_alone, draws, key, batch_size, ELEMENTS):
            yield groups["posterior"]
        return
    given = shared_draws(program, rows, from_guide([], False, dict)[0], draws, key, batch_size)
    yield as_draws(given, shared)
    if len(shared) < len(look.latents):
        for groups in drawn_together(program, rows, latents_at, given, key, batch_size):
            yield groups["posterior"]


def _of_object(given: Any, x: Any, summarized: Summary, metrics: list[str]) -> Any:
    """The same of draws that are there, as of ArviZ's objects."""
    import xarray as xr

    try:
        posterior = given["posterior"]
    except (TypeError, KeyError, AttributeError):
        raise TypeError(
            f"program is {type(given).__name__}, expected a program, a Run, or an object with a "
            "group posterior, as of pv.to_inference_data"
        ) from None
    if x is not None:
        raise ValueError("x is given beside draws that are there, expected a program for it")
    posterior = posterior.to_dataset() if hasattr(posterior, "to_dataset") else posterior
    variables = {}
    for name, value in posterior.data_vars.items():
        draws = value.stack(_draw=("chain", "draw"), create_index=False).transpose("_draw", ...)
        variables[name] = (
            (*draws.dims[1:], METRIC),
            summarized(draws.values),
            value.attrs,
        )
    coords = {n: c for n, c in posterior.coords.items() if not {"chain", "draw"} & {*c.dims}}
    return xr.Dataset(variables, coords={**coords, METRIC: metrics}).assign_attrs(posterior.attrs)
