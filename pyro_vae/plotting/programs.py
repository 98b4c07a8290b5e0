"""What pictures ask of a program: its observations, its latents, what it decodes them to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import usable_rows
from pyro_vae.densities.observations import observations_of, observed_site
from pyro_vae.densities.sites import Site, latents_of
from pyro_vae.densities.traces import NoMean, dreamt_sites
from pyro_vae.noise import Stream, seeded
from pyro_vae.plotting.figures import array_of
from pyro_vae.plotting.images import one_of
from pyro_vae.predictive import decode, encode
from pyro_vae.predictive.drawing import form_of_x, would_observe
from pyro_vae.program.calling import evaluating, require_program
from pyro_vae.program.rows import Rows, map_rows

PRIOR_DRAWS = 4000  # whose quantiles stand in for those of a joint prior
EDGE = 1e-6  # of a probability whose quantile is asked for


def program_of(thing: Any) -> Any:
    """The program of a run, or the program itself.

    Raises:
        TypeError: neither.
    """
    program = getattr(thing, "program", thing)
    if not (isinstance(program, nn.Module) and callable(getattr(program, "model", None))):
        if hasattr(program, "program_"):
            require_program(program)
        raise TypeError(
            f"program is {type(thing).__name__}, expected a program or a run: what pv.VAE.build, "
            "pv.Program or pv.fit returns"
        )
    return program


def first_rows(program: Any, x: Any, num: int) -> Rows:
    """The first so many data, on the program's terms."""
    return map_rows(lambda t: t[:num], usable_rows(x, program))


def expected(value: Tensor, site: Site) -> np.ndarray:
    """A mean of x as numbers (N, ...): of categories, which are numbers 0, 1, ..., their mean."""
    if site.family == "Categorical":
        value = (value * torch.arange(value.shape[-1], device=value.device)).sum(-1)
    return array_of(value).astype(float)


def observation(program: Any, rows: Rows, site: str | None) -> Site:
    """The site that observes x, or the one of that name, over all these rows."""
    look = Look.at(program, rows, rows=None)
    found = look.observations
    if site is None and len(found) > 1 and observed_site(program, look.model, look.x) in (
        getattr(program, "observed", None), "x",
    ):  # fmt: skip
        site = look.observed
    return found[one_of(found, site, "observed sites", "site")]


def codes_of(
    program: Any, x: Any, site: str | None = None, *, draw: bool = False, seed: int = 0
) -> tuple[str, np.ndarray]:
    """The latents that the guide gives to data, (N, J), and their name.

    Args:
        program: the program.
        x: data.
        site: which latent.
        draw: one draw of each datum in place of the posterior mean.
        seed: of the draws.
    """
    rows = usable_rows(x, program)
    try:
        found = encode(program, rows, num_draws=1 if draw else None, seed=seed)
    except NoMean as error:
        raise ValueError(f"{error}; draw=True shows one draw of each datum") from error
    if not isinstance(found, dict):
        look = Look.at(program, rows)
        own = [n for n, s in look.latents.items() if not (s.is_global or s.is_auxiliary)]
        found = {own[0] if own else "z": found}
    name = one_of(found, site, "latents", "site")
    values = found[name][0] if draw else found[name]
    return name, array_of(values).reshape(len(values), -1)


def coordinate_names(name: str, dim: int) -> list[str]:
    return [f"{name}[{j}]" for j in range(dim)] if dim > 1 else [name]


@dataclass(frozen=True)
class Latent:
    """One latent of each datum, to walk through while all others stay where they are.

    Attributes:
        program: the program.
        name: of the site.
        site: as the model draws it for one datum.
        row: one datum, which says what x looks like.
        others: the other latents of a datum, by site, (1, ...).
        observed: the site that is decoded.
    """

    program: Any
    name: str
    site: Site
    row: Rows
    others: dict[str, Tensor]
    observed: Site

    @property
    def dim(self) -> int:
        """J, how many numbers it is."""
        return self.site.value.numel()

    @property
    def names(self) -> list[str]:
        return coordinate_names(self.name, self.dim)

    def quantiles(self, u: np.ndarray) -> np.ndarray:
        r"""z = F^{-1}(u) under the prior, each number by its own law, (N, J).

        Args:
            u: (N, J), between 0 and 1.

        Raises:
            ValueError: a prior that is no product of laws with a quantile function.
        """
        law = self.site.base
        if len(law.event_shape):
            raise ValueError(
                f'the prior of "{self.name}", {self.site.family}, is joint over its {self.dim} '
                "numbers, so there is no inverse CDF of each: pass span=(low, high) for a grid "
                "over the latent itself"
            )
        form = self.site.rows_first(self.site.value).shape[1:]
        places = torch.as_tensor(u, dtype=self.site.value.dtype, device=self.site.value.device)
        places = places.clamp(EDGE, 1 - EDGE).reshape(-1, *form)
        with torch.no_grad():
            if isinstance(law, dist.Normal):
                z = law.loc + law.scale * torch.special.ndtri(places)
            else:
                z = self._inverted(law, places)
        return array_of(z).reshape(len(u), -1)

    def _inverted(self, law: Any, u: Tensor) -> Tensor:
        """By the law's own inverse CDF, or by that of SciPy."""
        from scipy import stats

        try:
            return law.icdf(u)
        except NotImplementedError:
            pass
        theirs = {
            "Beta": (stats.beta, ("concentration1", "concentration0")),
            "Gamma": (stats.gamma, ("concentration",)),
            "StudentT": (stats.t, ("df",)),
        }
        if self.site.family not in theirs:
            raise ValueError(
                f'the prior of "{self.name}", {self.site.family}, knows no inverse CDF: pass '
                "span=(low, high) for a grid over the latent itself"
            )
        family, names = theirs[self.site.family]
        z = family.ppf(array_of(u), *(array_of(getattr(law, name)) for name in names))
        z = torch.as_tensor(z, dtype=u.dtype, device=u.device)
        if self.site.family == "StudentT":
            return law.loc + law.scale * z
        return z / law.rate if self.site.family == "Gamma" else z

    def marginals(self, u: np.ndarray) -> np.ndarray:
        """Quantiles of each number under the prior, (len(u), J); of a joint prior those of draws.

        Raises:
            ValueError: where one number cannot move while the others stay.
        """
        support = self.site.law.support
        if getattr(support, "is_discrete", False):
            raise ValueError(
                f'"{self.name}" is discrete ({self.site.family}), expected a latent whose numbers '
                "can be moved: name another one"
            )
        try:
            return self.quantiles(np.repeat(np.asarray(u)[:, None], self.dim, 1))
        except ValueError:
            with torch.no_grad(), seeded(*Stream.PREDICTIVE.key(0)):
                draws = array_of(self.site.law.sample((PRIOR_DRAWS,))).reshape(PRIOR_DRAWS, -1)
            moved = np.repeat(draws.mean(0, keepdims=True), 2, 0)
            moved[1, 0] += 0.1 * draws[:, 0].std()
            if not bool(support.check(self.placed(moved)).all()):
                raise ValueError(
                    f'the numbers of "{self.name}" hang together ({self.site.family}), so one '
                    "cannot move while the others stay: decode points of your own by pv.decode"
                ) from None
            return np.quantile(draws, u, axis=0)

    def placed(self, z: np.ndarray) -> Tensor:
        """Points (N, J) in the form that the model draws them in."""
        like = self.site.value
        rest = self.site.rows_first(like).shape[1:]
        value = torch.as_tensor(z, dtype=like.dtype, device=like.device).reshape(-1, *rest)
        place = len(self.site.batch_shape) + (self.site.axis or 0)
        return value.movedim(0, place)

    def decoded(self, z: np.ndarray) -> np.ndarray:
        """The mean of what is observed at points (N, J), (N, ...).

        Raises:
            ValueError: points where the prior has none.
        """
        value = self.placed(z)
        if not bool(self.site.law.support.check(value).all()):
            raise ValueError(
                f'some of the points are outside of where "{self.name}" can be, '
                f"{self.site.law.support}: choose others"
            )
        others = {n: v.expand(len(z), *v.shape[1:]) for n, v in self.others.items()}
        found = decode(self.program, {self.name: value, **others}, like=self.row)
        mean = found[self.observed.name] if isinstance(found, dict) else found
        return expected(mean, self.observed)


def latent_of(
    thing: Any, like: Any = None, site: str | None = None, observed: str | None = None
) -> Latent:
    """One latent of a program; others of a datum stay where the guide puts them for ``like``.

    Args:
        thing: a program or a run.
        like: data, the first row of which says what x looks like, and where other latents are.
        site: the latent; not needed where there is one.
        observed: the observed site; not needed where there is one.

    Raises:
        ValueError: no such site, or several and none is named; other latents and no data.
    """
    program = program_of(thing)
    with torch.no_grad(), seeded(*Stream.PREDICTIVE.key(0)), evaluating(program):
        rows = form_of_x(program, like, "like=x", whole=False)
        row = map_rows(lambda t: t[:1], rows)
        sites = dreamt_sites(program, row, {})
        seen = observations_of(sites) or would_observe(program, row, sites)
    mine = {
        n: s
        for n, s in latents_of(sites).items()
        if not (s.was_observed or s.is_global or n in seen)
    }
    if not mine:
        raise ValueError(
            "no latent of the program belongs to a datum, expected one inside pyro.plate"
        )
    name = one_of(mine, site, "latents", "site")
    others: dict[str, Tensor] = {}
    if len(mine) > 1:
        if like is None:
            raise ValueError(
                f'beside "{name}" a datum has the latents {", ".join(n for n in mine if n != name)}'
                ", which have to be somewhere: pass like=x, whose first row the guide places them "
                "for"
            )
        drawn: Any = encode(program, row, num_draws=1)
        others = {n: v[0] for n, v in drawn.items() if n != name and n in mine}
    main = observed or (seen and next((n for n in ("x",) if n in seen), None))
    chosen = seen[one_of(seen, main or None, "observed sites", "observed")]
    return Latent(program, name, mine[name], row, others, chosen)
