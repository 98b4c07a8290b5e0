r"""``compare_autoencoder``: a standard auto-encoder and a VAE of the same nets, side by side.

The auto-encoder maximizes log p(x | z) at one code a datum; the VAE gives up some of that for codes
that lie where its prior draws.  So one reconstructs what it has seen, at the end of a long training
better than the other, and the other makes data: a draw z of the prior falls between the codes of an
auto-encoder, on places that its decoder has never seen.

How far codes and prior are apart is said by the energy distance,

.. math:: D(a, b) = 2 E\|a - b\| - E\|a - a'\| - E\|b - b'\|, \qquad D = 0 \text{ iff equal in law},

as a share of :math:`2 E\|a - b\|`, so that it is between 0 and 1 in any dimension and on any scale.

Source: Székely & Rizzo (2013), J. Stat. Plan. Inference 143, 1249, eqs. (1) and (6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae import defaults, errors
from pyro_vae.comparison.comparing import built
from pyro_vae.densities.sites import latents_of
from pyro_vae.densities.traces import dreamt_sites
from pyro_vae.noise import Stream, seeded
from pyro_vae.objectives.aevb import AEVB
from pyro_vae.objectives.autoencoder import Autoencoder
from pyro_vae.objectives.base import EMPTY
from pyro_vae.predictive import encode, reconstruct, sample
from pyro_vae.program.calling import evaluating
from pyro_vae.program.inputs import as_rows
from pyro_vae.program.rows import map_rows, num_rows, observed_rows
from pyro_vae.runs.run import Run
from pyro_vae.training.fitting import fit

if TYPE_CHECKING:
    import pandas as pd

AUTOENCODER, VARIATIONAL = "auto-encoder", "VAE"
ROWS = 1000  # of held-out data that are looked at, and draws of each kind


@dataclass(frozen=True, eq=False)
class Codes:
    """What one of the two makes of held-out data and of its latent space.

    Attributes:
        reconstruction: log p(x | z) (N,) at the code's mean of each datum, in nats.
        reconstruction_train: the same of training data.
        codes: the latents (N, J): those that an auto-encoder gives, draws of the VAE's guide.
        prior: draws of the prior (N, J).
        decoded: what other draws of the prior decode to, the mean of p(x | z) (N, ...).
        reconstructed: the mean of p(x | z) at the codes' means (N, ...).
    """

    reconstruction: np.ndarray
    reconstruction_train: np.ndarray
    codes: np.ndarray
    prior: np.ndarray
    decoded: np.ndarray
    reconstructed: np.ndarray


@dataclass(frozen=True, eq=False)
class AutoencoderComparison:
    """What ``compare_autoencoder`` returns.

    Attributes:
        runs: "auto-encoder" and "VAE" -> :class:`~pyro_vae.Run`.
        found: the same -> :class:`Codes`.
        data: the held-out rows (N, ...) that both were asked about.
        train: training rows (N, ...), which say how near data are to data.
        image_shape: (height, width) of a row, or None where rows are no images.
    """

    runs: dict[str, Run]
    found: dict[str, Codes]
    data: np.ndarray
    train: np.ndarray
    image_shape: tuple[int, int] | None = None

    def table(self) -> pd.DataFrame:
        """One row for each of the two, and one of what an ideal would have.

        * ``log p(x|z)``: nats per held-out datum at its code, higher is better, and ``train``: the
          same of training data.  Neither is a bound.
        * ``error``: root mean square of reconstructions about the data, a number of x.
        * ``draw to data``: the distance, on the same scale, from what a draw of the prior decodes
          to, to the nearest held-out datum; ``data to draw``: from a datum to the nearest decoded
          draw.  The last row has training data in place of draws.  A mean of p(x | z) lies nearer
          to noisy or binary data than another datum does.
        * ``code mean``, ``code spread``: the norm of the codes' mean, and the root mean square of
          their standard deviations over dimensions; of the prior's draws in the last row.
        * ``to prior``: the energy distance of codes and prior, from 0 to 1; two sets of draws of
          the prior in the last row.
        """
        import pandas as pd

        rows = {name: self._row(found) for name, found in self.found.items()}
        prior = self.found[VARIATIONAL].prior
        half = len(prior) // 2
        rows["data and prior"] = {
            "log p(x|z)": np.nan,
            "train": np.nan,
            "error": 0.0,
            "draw to data": nearest(self.train, self.data).mean(),
            "data to draw": nearest(self.data, self.train).mean(),
            "code mean": float(np.linalg.norm(prior.mean(0))),
            "code spread": float(np.sqrt((prior.std(0) ** 2).mean())),
            "to prior": energy_distance(prior[:half], prior[half:]),
        }
        return pd.DataFrame(rows).T

    def _row(self, found: Codes) -> dict[str, float]:
        error = (found.reconstructed - self.data).reshape(len(self.data), -1)
        return {
            "log p(x|z)": float(found.reconstruction.mean()),
            "train": float(found.reconstruction_train.mean()),
            "error": float(np.sqrt(np.nanmean(error**2))),
            "draw to data": nearest(found.decoded, self.data).mean(),
            "data to draw": nearest(self.data, found.decoded).mean(),
            "code mean": float(np.linalg.norm(found.codes.mean(0))),
            "code spread": float(np.sqrt((found.codes.std(0) ** 2).mean())),
            "to prior": energy_distance(found.codes, found.prior),
        }

    def plot(self, path: str | Path | None = None) -> Any:
        """Reconstructions, decoded draws and codes of both; saves it to ``path``.

        Returns:
            The figure, of :func:`~pyro_vae.plotting.autoencoders`.
        """
        from pyro_vae.plotting.autoencoders import autoencoders
        from pyro_vae.plotting.figures import saved

        axes = autoencoders(self.data, self.found, self.image_shape)
        return saved(axes[0, 0].figure, path)

    def __repr__(self) -> str:
        text = f"<AutoencoderComparison: {len(self.data)} held-out data; see .plot()>"
        return f"{text}\n{self.table().round(3).to_string()}"


def compare_autoencoder(
    data: Any,
    *,
    build: Callable[[], nn.Module],
    objective: Any = None,
    samples: int = defaults.SAMPLES,
    seed: int = 0,
    **options: Any,
) -> AutoencoderComparison:
    """Train a standard auto-encoder and a VAE of the same nets, and say how they differ.

    Both begin at the same parameters and see the same minibatches.

    Args:
        data: a ``DataSet``, as ``pv.datasets.load`` and ``pv.datasets.split`` return.
        build: makes an untrained program; its guide has a mean, which is the auto-encoder's code.
        objective: what the VAE is trained by; default ``AEVB()``.
        samples: the budget of each of the two, rows x updates.
        seed: of the parameters, the minibatches and the draws.
        options: any others of ``pv.fit``, such as batch_size, lr, engine or progress.

    Returns:
        :class:`AutoencoderComparison`; printing it gives the table, ``.plot()`` the picture.

    Raises:
        TypeError: data without parts.
        ValueError: a guide without a mean, global or discrete latents, several observed sites.

    Example:
        >>> import pyro_vae as pv
        >>> from pyro_vae.models import bernoulli_vae
        >>> digits = pv.datasets.load("digits")
        >>> both = compare_autoencoder(
        ...     digits,
        ...     build=lambda: bernoulli_vae.build(digits.dim, latent_dim=2),
        ...     samples=2_000,
        ...     progress=False,
        ... )
        >>> list(both.table().index)
        ['auto-encoder', 'VAE', 'data and prior']
    """
    if not (hasattr(data, "train") and hasattr(data, "test")):
        raise TypeError(
            f"data is {type(data).__name__}, expected a DataSet with train and test: "
            'pv.datasets.load("digits"), or pv.datasets.split(pv.datasets.from_array(x))'
        )
    samples, seed = errors.whole("samples", samples), errors.seed_number(seed)
    runs: dict[str, Run] = {}
    found: dict[str, Codes] = {}
    for name, how in ((AUTOENCODER, Autoencoder()), (VARIATIONAL, objective or AEVB())):
        program = built(build, seed)
        runs[name] = fit(program, data.train, how, samples=samples, seed=seed, **options)
        held_out, train = (_rows(program, part) for part in (data.test, data.train))
        found[name] = _codes(program, held_out, train, seed, is_point=name == AUTOENCODER)
    values, others = (observed_rows(rows).cpu().numpy() for rows in (held_out, train))
    shape = getattr(data, "image_shape", None)
    return AutoencoderComparison(runs, found, values, others, shape)


def _rows(program: nn.Module, part: Any) -> Any:
    return map_rows(lambda t: t[:ROWS], as_rows(part, program))


def _codes(program: nn.Module, x: Any, train: Any, seed: int, *, is_point: bool) -> Codes:
    """What a trained program makes of rows."""
    n = num_rows(x)
    codes = encode(program, x, num_draws=None if is_point else 1, seed=seed)
    reconstructed = reconstruct(program, x)
    decoded = sample(program, n, like=x, mean=True, seed=seed)
    if isinstance(codes, dict) or isinstance(reconstructed, dict) or isinstance(decoded, dict):
        raise ValueError(
            f"{type(program).__name__} has several latents or several observed sites, expected one "
            "of each: compare the objectives with pv.compare(..., objectives=[AEVB(), "
            "Autoencoder()])"
        )
    with torch.no_grad(), seeded(*Stream.PRIOR.key(seed)), evaluating(program):
        latents = latents_of(dreamt_sites(program, x, {})).values()
        (prior,) = (site.value for site in latents if not site.was_observed)
        at_codes = [
            Autoencoder().terms(program, rows, EMPTY)[1]["reconstruction"].cpu().numpy()
            for rows in (x, train)
        ]
    return Codes(
        at_codes[0],
        at_codes[1],
        codes.reshape(n, -1).cpu().numpy(),
        prior.expand(n, *prior.shape[1:]).reshape(n, -1).cpu().numpy(),
        decoded.cpu().numpy(),
        reconstructed.cpu().numpy(),
    )


# --- distances ------------------------------------------------------------------------------------


def nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The root mean square distance, a number of x, from each point to the nearest other."""
    a, b = (torch.as_tensor(each).flatten(1).double().nan_to_num() for each in (points, others))
    return (torch.cdist(a, b).amin(1) / a.shape[1] ** 0.5).numpy()


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """How different the laws of two sets of draws are, from 0 to 1, without bias at 0."""
    first, second = (torch.as_tensor(each).flatten(1).double() for each in (a, b))

    def within(points: Tensor) -> Tensor:
        n = len(points)
        return torch.cdist(points, points).sum() / (n * (n - 1))

    between = torch.cdist(first, second).mean()
    return ((2 * between - within(first) - within(second)) / (2 * between)).item()
