r"""Any prior, likelihood and posterior, their sizes inferred from the data; ``pv.VAE.build``.

.. math:: z \sim p(z), \qquad x \mid z \sim p(x \mid z), \qquad q(z \mid x)

``model`` and ``guide`` stand in :class:`~pyro_vae.program.VAE` (``pyro_vae/program/vae.py``), the
parts in the folders ``priors``, ``likelihoods`` and ``posteriors``; this file brings them
together::

    pv.VAE.build(
        data,
        latent_dim=40,
        prior=pv.priors.VampPrior(500),
        likelihood=pv.likelihoods.DiscretizedLogistic(),
        posterior=pv.posteriors.FullNormal(),
        network=pv.networks.MLP(hidden=(300, 300), gated=True),
    )
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import errors, likelihoods, posteriors, priors
from pyro_vae.networks.base import length_of, shape_of
from pyro_vae.posteriors.suiting import kind_of, require_fit
from pyro_vae.program.inputs import as_tensor, gathered_by
from pyro_vae.program.parts import Part
from pyro_vae.program.stored import Stored
from pyro_vae.program.vae import VAE, built_by_name
from pyro_vae.recording import record_of

NO_LIKELIHOOD = (
    "no likelihood is named: pass likelihood=, such as pv.likelihoods.Bernoulli() for zeros and "
    "ones, Gaussian(sigmoid_mean=False) for reals, Poisson() or NegativeBinomial() for counts"
)


def build(
    data: Any,
    *,
    latent_dim: int = 20,
    hidden_dim: int = 500,
    prior: Any = None,
    likelihood: Any = None,
    posterior: Any = None,
    network: Any = None,
    encoder: Any = None,
    decoder: Any = None,
    missing: bool = False,
    init_std: float | None = 0.01,
    given_dim: int = 0,
) -> VAE:
    """A VAE for these data.

    Args:
        data: what ``pv.fit`` will take: a ``DataSet``, a ``Data``, a tensor or array (N, ...), a
            dict whose entry "x" is observed and whose others are covariates; or only the size of a
            row, 64 or (28, 28).  Sizes come from it, and what parts infer (numbers of categories,
            pseudo-inputs).
        latent_dim: J.
        hidden_dim: H of the default networks.
        prior, likelihood, posterior: parts without their sizes, ``priors.VampPrior(500)``; finished
            modules; or classes and functions that are called with those sizes that they have names
            for.  By default a standard normal prior, the posterior that suits the prior's support,
            and, for zeros and ones, a Bernoulli likelihood; others must be named.
        network: of the encoder and of the decoder, ``networks.MLP(hidden=(300, 300))``.
        encoder, decoder: in place of it, of one of them.
        missing: NaN in x means that the number is missing: see :class:`~pyro_vae.VAE`.
        init_std: standard deviation of the first weights of default networks; None is torch's own.
        given_dim: numbers of covariates a row, where ``data`` is only a size.

    Raises:
        ValueError: no likelihood for data that are not zeros and ones, and which there are; parts
            that need what nobody knows.
        TypeError: something that is no part.

    Example:
        >>> import pyro_vae as pv
        >>> digits = pv.datasets.load("digits")
        >>> vae = pv.VAE.build(digits, latent_dim=2, network=pv.networks.MLP(hidden=(32, 16)))
        >>> vae.posterior.network.inputs, vae.likelihood.network.outputs
        (64, 64)
    """
    rows, size = _rows_of(data), data
    parts = {"prior": prior, "likelihood": likelihood, "posterior": posterior}
    whole: Tensor | None = None
    if rows is not None:
        x = _observed(rows)
        given_dim = sum(t[0].numel() for name, t in rows.items() if name != "x")
        size = x.shape[1] if x.dim() == 2 else tuple(x.shape[1:])
        if missing and x.is_floating_point():
            x = _without_gaps(x)
        whole = x[x.flatten(1).isfinite().all(1)] if x.is_floating_point() else x
        if likelihood is None and len(whole) and bool(((whole == 0) | (whole == 1)).all()):
            parts["likelihood"] = likelihoods.Bernoulli()
        parts = {name: _inferred(part, whole) for name, part in parts.items()}
    program = _recorded(
        size,
        latent_dim=latent_dim,
        hidden_dim=hidden_dim,
        network=network,
        encoder=encoder,
        decoder=decoder,
        missing=missing,
        init_std=init_std,
        given_dim=given_dim,
        **parts,
    )
    if whole is not None and len(whole):
        for part in (program.likelihood, program.posterior, program.prior):
            start = getattr(part, "start", None)
            if callable(start):
                start(whole)
    return program


def sized_parts(
    data: Any,
    *,
    latent_dim: int,
    hidden_dim: int,
    prior: Any,
    likelihood: Any,
    posterior: Any,
    network: Any = None,
    encoder: Any = None,
    decoder: Any = None,
    missing: bool = False,
    init_std: float | None = 0.01,
    given_dim: int = 0,
) -> dict[str, Any]:
    """The arguments of :class:`~pyro_vae.VAE`, for rows of a size: see :func:`build`."""
    data_dim = shape_of("data_dim", data)
    if isinstance(data_dim, tuple) and len(data_dim) == 1:
        data_dim = data_dim[0]
    sizes: dict[str, Any] = {
        "latent_dim": errors.whole("latent_dim", latent_dim),
        "data_dim": data_dim,
        "hidden_dim": errors.whole("hidden_dim", hidden_dim),
        "init_std": init_std,
        "given_dim": errors.whole("given_dim", given_dim, 0),
    }
    if likelihood is None:
        raise ValueError(NO_LIKELIHOOD)
    if prior is None:
        prior = priors.StandardNormal()
    if posterior is None:
        posterior = _usual_posterior(prior)
    decoder = network if decoder is None else decoder
    encoder = network if encoder is None else encoder
    seen = {"given_dim": sizes["given_dim"] + (length_of(data_dim) if missing else 0)}
    likelihood = _sized("likelihood", likelihood, sizes | {"network": decoder})
    posterior = _sized("posterior", posterior, sizes | seen | {"network": encoder})
    prior = _sized("prior", prior, sizes | {"posterior": posterior})
    require_fit(posterior, prior)
    _require_latents(likelihood, prior)
    parts = {"prior": prior, "likelihood": likelihood, "posterior": posterior}
    _require_one_size(parts)
    return {**parts, "missing": missing}


@built_by_name()
def _recorded(
    data: Any,
    *,
    latent_dim: int,
    hidden_dim: int,
    prior: Any,
    likelihood: Any,
    posterior: Any,
    network: Any,
    encoder: Any,
    decoder: Any,
    missing: bool,
    init_std: float | None,
    given_dim: int,
) -> VAE:
    """With a record of what it was made from, which is what :func:`build` takes."""
    return VAE(**sized_parts(**locals()))


def _require_one_size(parts: Mapping[str, Any]) -> None:
    """Raises ValueError where parts were given sizes that are not those of the others."""
    for name in ("latent_dim", "data_dim"):
        found: dict[str, Any] = {}
        for slot, part in parts.items():
            value = record_of(part)["arguments"].get(name) if isinstance(part, Part) else None
            if isinstance(value, (list, tuple)):
                value = value[0] if len(value) == 1 else tuple(value)
            if value is not None:
                found[f"the {slot} {type(part).__name__}"] = value
        if len(set(found.values())) > 1:
            said = ", ".join(f"{value} of {part}" for part, value in found.items())
            raise ValueError(
                f"{name} is {said}, expected one: leave it out of the parts, and pv.VAE.build "
                "gives all of them the same"
            )


def _require_latents(likelihood: Any, prior: Any) -> None:
    """Shares through a softmax again are nearly equal, and reals are no shares, without a word."""
    wanted, there = (getattr(likelihood, "latents", None), getattr(prior, "support", None))
    kinds = [None if each is None else kind_of(each) == "simplex" for each in (wanted, there)]
    if None not in kinds and kinds[0] != kinds[1]:
        names = ["on the simplex" if each else "on the line" for each in kinds]
        raise ValueError(
            f"likelihood {type(likelihood).__name__} takes latents {names[0]}, and those of the "
            f"prior {type(prior).__name__} are {names[1]}: pass "
            f"{type(likelihood).__name__}(simplex={bool(kinds[1])}), or another prior"
        )


def _usual_posterior(prior: Any) -> Any:
    """Without its sizes: the one whose draws lie where the prior's do."""
    support = getattr(prior, "support", None)
    return posteriors.Gaussian() if support is None else posteriors.suited(support)()


SOME = 10_000  # rows of a store, evenly spaced, from which parts infer what they need


def _rows_of(data: Any) -> dict[str, Tensor] | None:
    """The entries of data, or None of a size."""
    if isinstance(data, int) or (
        isinstance(data, Sequence) and all(isinstance(n, int) for n in data)
    ):
        return None
    if hasattr(data, "image_shape"):  # a data set
        data = data.train
    data = gathered_by(data, _unnamed)
    if isinstance(data, Stored):
        data = data.some(SOME)
    if callable(getattr(data, "rows", None)):
        data = data.rows()
    return dict(data) if isinstance(data, Mapping) else {"x": data}


def _unnamed(values: Any) -> dict[str, Tensor]:
    if len(values) == 1:
        return {"x": as_tensor(values[0])}
    raise TypeError(
        f"a row of the data is a {type(values).__name__} of {len(values)}, expected x alone or a "
        'dict with an entry "x", which is observed, and others, which are covariates: '
        '{"x": x, "label": label}'
    )


def _observed(rows: dict[str, Tensor]) -> Tensor:
    if "x" not in rows:
        raise ValueError(
            f'data has the entries {", ".join(rows)}, expected one called "x", which is observed'
        )
    if rows["x"].dim() < 2 or not len(rows["x"]):
        raise ValueError(
            f"x has shape {tuple(rows['x'].shape)}, expected (N, D) or (N, ...): one number a row "
            "is x.reshape(-1, 1)"
        )
    return rows["x"]


def _without_gaps(x: Tensor) -> Tensor:
    """In each gap a value that its column has, so that what parts infer is that of all rows."""
    flat = x.flatten(1)
    seen, rows = ~flat.isnan(), torch.arange(len(flat), device=x.device).unsqueeze(1)
    above = torch.where(seen, rows, -1).cummax(0).values  # the last row that has one
    filled = flat.gather(0, torch.where(above < 0, seen.int().argmax(0), above))
    return torch.where(filled.isnan(), 0.0, filled).reshape(x.shape)


def _inferred(part: Any, x: Tensor) -> Any:
    """A recipe with what follows from the data."""
    return part.inferred(x) if isinstance(part, Part) else part


def _sized(slot: str, part: Any, sizes: Mapping[str, Any]) -> nn.Module:
    """A finished part from a recipe, a class or a function; a module is taken as it is."""
    if isinstance(part, Part) and part.unsized:
        return part.sized(**sizes)
    is_law = isinstance(part, torch.distributions.Distribution)  # which a VAE refuses
    if isinstance(part, nn.Module) or not callable(part) or is_law:
        return part
    named = inspect.signature(part).parameters
    bound = part.keywords if isinstance(part, functools.partial) else {}
    made = part(**{n: v for n, v in sizes.items() if n in named and n not in bound})
    if not isinstance(made, nn.Module):
        raise TypeError(
            f"{slot} is {part!r}, which returned a {type(made).__name__}, expected a module: pass "
            "a part, or a class or function of latent_dim, data_dim, ... that makes one"
        )
    return made
