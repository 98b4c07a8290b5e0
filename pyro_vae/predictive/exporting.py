"""Encoder and decoder as graphs of torch alone, which run where neither Pyro nor this package is.

Of a ``VAE`` they are its parts.  Any other program is run on one row, ``torch.vmap`` carries that
over the rows, whose number stays free (a ``len(x)`` in its code would fix it), and ``torch.export``
writes down what is computed.  Either is compared with the program on data before it is handed out.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.distributions import Categorical, StudentT
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import usable_rows
from pyro_vae.densities.observations import entries_of, observations_of
from pyro_vae.densities.sites import base_law, latents_of
from pyro_vae.densities.traces import At, AtTheMean, NoMean, sites_of
from pyro_vae.distributions.gaps import without_gaps
from pyro_vae.predictive.decoding import decode, learnt
from pyro_vae.predictive.latents import encode
from pyro_vae.predictive.means import alone
from pyro_vae.program.calling import evaluating, materialize
from pyro_vae.program.rows import Rows, map_rows, num_rows
from pyro_vae.program.vae import VAE, filled
from pyro_vae.turns import taking_turns

EXAMPLE = 3  # rows that the graph is drawn from: neither one nor the size of anything, often
SIZES = (1, 2, 5)  # numbers of rows that it is compared at


@dataclass(frozen=True)
class Exported:
    """Graphs of ATen operations, from :func:`export`.

    Attributes:
        encoder: x (B, ...) -> mean and standard deviation of q(z given x), (B, J) each; of several
            latents a dict of such pairs by site.  Where the program takes a dict, so does it.
        decoder: z (B, J), or a dict by site of several latents -> the mean of p(x given z), (B,
            ...), or a dict by site.  Where the program takes covariates, ``decoder(z, given)``,
            ``given`` the entries of x that are not observed.

    Each is a ``torch.export.ExportedProgram``; ``encoder.module()`` is called.
    """

    encoder: ExportedProgram
    decoder: ExportedProgram

    def save(self, folder: str | Path) -> Path:
        """Write ``encoder.pt2`` and ``decoder.pt2``, which ``torch.export.load`` reads."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("encoder", "decoder"):
            torch.export.save(getattr(self, name), folder / f"{name}.pt2")
        return folder


@taking_turns
def export(program: Any, x: Any) -> Exported:
    """Encoder and decoder as graphs that torch alone loads and runs, at any number of rows.

    Numbers are those of ``pv.encode`` and ``pv.decode``; latents that all data share are at the
    guide's mean.  NaN stands for missing numbers where the program takes it.

    Args:
        program: the program, in evaluation mode for as long as this takes.
        x: data (N, ...), at least 2 rows, which say what x looks like, and which the graphs are
            compared on.  Rows are given to the graphs in the precision of the program.

    Raises:
        ValueError: latents that are discrete, or a guide or likelihood without mean or standard
            deviation, such as a flow; control flow that depends on values; a likelihood that
            depends on x itself; numbers of the graph that are not those of the program.

    Example:
        >>> import pyro_vae as pv
        >>> digits = pv.datasets.load("digits").train[:5]
        >>> vae = pv.VAE.build(digits, latent_dim=2, hidden_dim=8)
        >>> graphs = export(vae, digits)
        >>> mean, sd = graphs.encoder.module()(digits.x[:4])
        >>> mean.shape, graphs.decoder.module()(mean).shape
        (torch.Size([4, 2]), torch.Size([4, 64]))
    """
    rows = usable_rows(x, program)
    if num_rows(rows) < 2:
        raise ValueError("x has one row, expected at least 2: the number of rows is to stay free")
    materialize(program, map_rows(lambda t: t[:2], rows))
    count = num_rows(rows)
    index = torch.arange(max(EXAMPLE, *SIZES)) % count  # so many rows, however few there are
    rows = map_rows(lambda t: t[index.to(t.device)], rows)
    with torch.no_grad(), evaluating(program), pyro.validation_enabled(False):
        _require_continuous(program, rows)
        encoder, decoder = Encoder(program), Decoder(program, rows)
        return Exported(
            _captured(encoder, (rows,), "guide", program),
            _captured(decoder, decoder.example(rows), "model", program),
        )


class Encoder(nn.Module):
    """Rows to mean and standard deviation of each latent of a datum."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: Rows) -> Any:
        if not is_plain(self.program):
            return torch.vmap(self.row)(x)
        program = self.program
        law = program.posterior(filled(x) if program.missing else x)
        return law.mean, law.variance.sqrt()

    def row(self, x: Rows) -> Any:
        one = map_rows(lambda t: t.unsqueeze(0), x)
        sites = latents_of(sites_of(self.program, "guide", one, AtTheMean(look=False)))
        found = {
            name: (site.value, site.law.variance.sqrt().expand(site.value.shape))
            for name, site in sites.items()
            if not (site.is_global or site.is_auxiliary)
        }
        pairs: Any = {n: (mean.squeeze(0), sd.squeeze(0)) for n, (mean, sd) in found.items()}
        return alone(pairs)

    def expected(self, x: Rows) -> Any:
        return encode(self.program, x)


class Decoder(nn.Module):
    """Latents of each datum, and its covariates, to the mean of what is observed."""

    def __init__(self, program: Any, rows: Rows) -> None:
        super().__init__()
        self.program = program
        first = map_rows(lambda t: t[:1], rows)
        look = Look.at(program, first, rows=None)
        found = observations_of(look.model)
        self.observed = {entry for entry in entries_of(program, found, first).values() if entry}
        self.names = [n for n, site in look.latents.items() if not site.is_global]
        self.shared = learnt(program, rows) if len(self.names) < len(look.latents) else {}
        # What is observed is given, so that nothing is drawn; no mean may depend on it.
        entries = first if isinstance(first, dict) else {"x": first}
        self.beside = [n for n in entries if isinstance(first, dict) and n not in self.observed]
        self.form = {n: t for n, t in entries.items() if n not in self.beside}
        self.is_dict = isinstance(first, dict)
        rest = rows if isinstance(rows, dict) else {"x": rows}
        self.others = {n: rest[n][1:] for n in self.form}  # which must give the same means
        self.takes_given = is_plain(program) and program._likelihood_is_given

    def forward(self, z: Any, given: dict[str, Tensor] | None = None) -> Any:
        if not is_plain(self.program):
            return torch.vmap(self.row)(z, given) if given else torch.vmap(self.row)(z)
        law = self.program.likelihood(z, given) if self.takes_given else self.program.likelihood(z)
        if isinstance(law, Mapping):
            return alone({name: _mean(each) for name, each in law.items()})
        return _mean(law)

    def row(self, z: Any, given: dict[str, Tensor] | None = None) -> Any:
        latents = z if isinstance(z, dict) else {self.names[0]: z}
        beside = {n: t.unsqueeze(0) for n, t in (given or {}).items()}
        x: Rows = {**self.form, **beside} if self.is_dict else self.form["x"]
        at = {**self.shared, **{n: t.unsqueeze(0) for n, t in latents.items()}}
        found = observations_of(sites_of(self.program, "model", x, At(at)))
        means = {name: _mean(site.law) for name, site in found.items()}
        return alone({name: mean.squeeze(0) for name, mean in means.items()})

    def example(self, rows: Rows) -> tuple[Any, ...]:
        z = encode(self.program, rows)
        if not self.beside:
            return (z,)
        return (z, {name: rows[name] for name in self.beside})  # type: ignore[index]

    def expected(self, z: Any, given: dict[str, Tensor] | None = None) -> Any:
        count = len(next(iter(z.values())) if isinstance(z, dict) else z)
        form = {n: t[torch.arange(count) % len(t)] for n, t in self.others.items()}
        like = {**form, **(given or {})} if self.is_dict else form["x"]
        return decode(self.program, z, like=like)


# --- parts --------------------------------------------------------------------------------------


def is_plain(program: Any) -> bool:
    """Whether model and guide are those of a ``VAE``: its parts, and nothing else."""
    return (
        isinstance(program, VAE)
        and type(program).model is VAE.model
        and type(program).guide is VAE.guide
    )


def _mean(law: Any) -> Tensor:
    """As of ``pv.decode``, without a look at values, which a graph does not have."""
    base = without_gaps(base_law(law))
    if isinstance(base, Categorical):
        return base.probs
    if isinstance(base, StudentT):  # (torch's own looks where there is none)
        return torch.where(base.df > 1, base.loc, torch.nan)
    return law.mean


def _require_continuous(program: Any, rows: Rows) -> None:
    look = Look.at(program, rows, rows=None)
    for name, site in {**latents_of(look.model), **look.latents}.items():
        if not site.is_point and site.base.support.is_discrete:
            raise ValueError(
                f'the latent "{name}" is discrete, {site.family}, so q(z | x) has no mean that a '
                "decoder could take: export the networks of the program by torch.export"
            )


def _captured(module: Any, example: tuple[Any, ...], role: str, program: Any) -> ExportedProgram:
    """The graph of a module whose numbers are those of the program.

    Raises:
        ValueError: it has no graph, or another result than the program.
    """
    what = f"the {role} of {type(program).__name__}"
    try:
        module.expected(*example)
    except (NoMean, NotImplementedError) as error:
        law = str(error).split(", has no mean")[0] or "a law of it"
        raise ValueError(
            f"{what} has no graph from values to means: {law}, has no mean or no standard "
            "deviation; export a network of it by torch.export, or draw by pv.encode(num_draws=S)"
        ) from error
    rows = Dim("rows", min=1)
    shapes = torch.utils._pytree.tree_map(lambda t: {0: rows}, example)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            module(*example)
            some = torch.utils._pytree.tree_map(lambda t: t[:EXAMPLE], example)
            graph = torch.export.export(module, some, dynamic_shapes=shapes, strict=False)
            graph = graph.run_decompositions({})
    except NotImplementedError as error:
        raise ValueError(f"{what} has no graph: a law of it has no mean or no variance") from error
    except Exception as error:  # torch raises of every kind here
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"torch.export finds no graph of {what}, run on a row that torch.vmap carries over "
            f"all: {said}; write it without control flow on values, .item(), numpy, torch.cat and "
            "convolutions, which fix the number of rows there, or export its networks"
        ) from error
    called = graph.module()
    for count in SIZES:
        few = torch.utils._pytree.tree_map(lambda t, n=count: t[:n], example)
        found = called(*few)
        _require_equal(_means(found, module), module.expected(*few), what, count)
        if isinstance(module, Encoder):  # standard deviations are those that the guide has there
            _require_equal(_deviations(found), _deviations(module(*few)), what, count)
    return graph


def _means(found: Any, module: Any) -> Any:
    """Of an encoder's pairs the means."""
    if isinstance(module, Decoder):
        return found
    return {n: mean for n, (mean, _) in found.items()} if isinstance(found, dict) else found[0]


def _deviations(found: Any) -> Any:
    return {n: sd for n, (_, sd) in found.items()} if isinstance(found, dict) else found[1]


def _require_equal(found: Any, expected: Any, what: str, count: int) -> None:
    entries = found if isinstance(found, dict) else {"": found}
    known = expected if isinstance(expected, dict) else {"": expected}
    for name, value in entries.items():
        rtol, atol = (1e-4, 1e-5) if value.dtype == torch.float32 else (1e-8, 1e-10)
        same = value.shape == known[name].shape
        same = same and torch.allclose(value, known[name], rtol=rtol, atol=atol)
        if not same:
            raise ValueError(
                f"the graph of {what} has other numbers than the program at {count} rows"
                + (f', of "{name}"' if name else "")
                + ": a law that depends on x itself, on other rows or on draws has no such graph"
            )
