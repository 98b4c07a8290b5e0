r"""Priors and posteriors as what they are taken for: a sampler, and the density of its draws.

Every bound and every weight is a difference of log densities at draws.  One that does not integrate
to one, or belongs to other draws, makes all of them wrong, without any error: a mixture whose
logsumexp runs over one dimension at a time, a sampler that takes exp(log variance) for the standard
deviation, a flow whose log-determinant is counted once for each dimension.

What is tested is in :mod:`~pyro_vae.checking.agreement`, by averages that hold for every law, and
that are called wrong beyond six of their errors; :mod:`~pyro_vae.checking.blame` then says which
mistake it is.  Laws of torch, Pyro and zuko as they come, and of this package, are taken as they
are.  All is done at the parameters as they are, and once more at moved ones, because where training
begins a mistake may not show: exp(0) = exp(0 / 2), and a flow that begins as the identity has the
log-determinant 0.

Of right laws, chance exceeds a limit in at most 3e-8 per average if its terms are symmetric
(Efron), so in 2e-5 of the 700 averages of a prior and a posterior in 40 dimensions: a calculation.
Measured is less: of 492 right laws, tested instead of trusted (J 1, 2 and 8, three seeds, after
the guards were tuned on other seeds), none was called wrong, which bounds the rate by 0.6 %; the
nearest average came to 0.63 of its limit. Called wrong among 440 before, J to 40, were
LogisticNormal (J = 40), whose sticks lose digits, untested since, and a tanh that saturates, with
infinities at its own draws, twice. Not among the laws: VonMises, whose density is periodic, and
zuko's GF, whose sampler stops at 10; both are called wrong where they are not trusted.

All of six seeds each of the three mistakes were found in 2, 8 and 40 dimensions, and all but one
named. What 2,000 draws do not show passes: a single normal in two dimensions with the wrong scale
was found where that is off by 16 %, and not by 5 %, unless its log variance is a parameter, where
2.5 % were found by moving it; the logsumexp of 500 components on top of each other was not. A log-
determinant counted twice was found in 4 of 6 flows, in 8 and in 40 dimensions. A law by hand takes
half a second to one of a processor, and longer to be named; heavy ones take several.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, Transform

from pyro_vae.checking import independence
from pyro_vae.checking.agreement import LEAST, Examined, disagreements, values_disagree
from pyro_vae.checking.blame import (
    DEPENDENT,
    FACTOR,
    WRONG_BY,
    Blame,
    adds_up,
    blame,
    dependence,
)
from pyro_vae.checking.coordinates import support_of
from pyro_vae.checking.sites import Met, Mistakes, first_line, label
from pyro_vae.densities.plates import Role
from pyro_vae.densities.sites import Site, latents_of, law_masks
from pyro_vae.noise import LOOK, NoiseMode, keyed, seeded
from pyro_vae.program.rows import Rows, map_rows

PROVEN = ("torch.distributions", "pyro.distributions", "zuko", "pyro_vae")
ROWS = 2  # whose posteriors are looked at
LARGEST = 256  # coordinates of an event
NOT_FINITE = 0.01  # share of draws
STEPS = (1e-4, 1e-3, 1e-2, 0.1)  # of differences of draws, along which log_prob is differentiated
BY = 0.5  # how far parameters are moved, weights of layers by half of what they are


class Wrong(NamedTuple):
    """What is wrong with a law: found, expected, advice."""

    got: str
    expected: str
    advice: str


def laws(met: Met, mistakes: Mistakes) -> None:
    """Find laws whose density is not that of their draws, and note what could not be tested."""
    wanted = {
        (role, name)
        for role in independence.ROLES
        for name, site in latents_of(met.sites(role)).items()
        if not is_proven(site.law)
    }
    x = map_rows(lambda t: t[:ROWS], met.x)
    done: set[tuple[Role, str]] = set()
    before: dict[tuple[Role, str], Tensor] = {}
    for is_moved in (False, True):
        if not wanted - done:
            return
        with moved(met.program) if is_moved else contextlib.nullcontext():
            for (role, name), site in _sites(met, wanted - done, x):
                try:
                    wrong = _examined(site, role, before.get((role, name)), before)
                except Exception as error:  # of a class of the user's own, beyond what it promises
                    if not is_moved and site.without_inverse() is None:
                        said = f"its law cannot be tested ({first_line(error)})"
                        met.notes.append(f"{label(role, name)}: {said}")
                    done.add((role, name))
                    continue
                if isinstance(wrong, str):
                    met.notes.append(f"{label(role, name)}: {wrong}")
                elif wrong is not None:
                    at = " once its parameters are moved, as training does" if is_moved else ""
                    mistakes.add(label(role, name), wrong.got + at, *wrong[1:])
                if wrong is not None:
                    done.add((role, name))


def is_proven(law: Any) -> bool:
    """Whether a law and all that it is made of are of libraries that test them."""
    stack, seen = [law], set()
    while stack:
        part = stack.pop()
        if isinstance(part, (list, tuple, nn.ModuleList)):
            stack += list(part)
        elif isinstance(part, (Distribution, Transform)) and id(part) not in seen:
            seen.add(id(part))
            replaced = {"log_prob", "sample", "rsample"} & vars(part).keys()
            if replaced or not type(part).__module__.startswith(PROVEN):
                return False
            stack += list(vars(part).values())
            stack += list(getattr(part, "_modules", {}).values())
    return True


def _sites(
    met: Met, wanted: set[tuple[Role, str]], x: Rows
) -> Iterator[tuple[tuple[Role, str], Site]]:
    """The sites on a few rows, or on all where the program runs on no fewer."""
    for rows in (x, met.x):
        try:
            guide = independence.sites_at(met.program, "guide", rows, {}, NoiseMode(keyed(*LOOK)))
            at = {name: site.value.detach() for name, site in latents_of(guide).items()}
            model = independence.sites_at(met.program, "model", rows, at, NoiseMode(keyed(*LOOK)))
        except independence.Failed:
            continue
        sites = {"guide": guide, "model": model}
        for role, name in sorted(wanted):
            if name in sites[role]:
                yield (role, name), sites[role][name]
        return


@contextlib.contextmanager
def moved(program: nn.Module) -> Iterator[None]:
    """A program with its parameters elsewhere, each away from zero, and then as they were."""
    layers = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)
    weights = {id(m.weight) for m in program.modules() if isinstance(m, layers)}
    before = {
        parameter: parameter.data
        for parameter in program.parameters()
        if parameter.requires_grad
        and not nn.parameter.is_lazy(parameter)
        and parameter.is_floating_point()
    }
    try:
        for parameter, value in before.items():
            away = torch.where(value < 0, -BY, BY)
            if id(parameter) in weights:
                away = torch.where(value == 0, away / value[0].numel() ** 0.5, value / 2)
            parameter.data = value + away.to(value.dtype)
        yield
    finally:
        for parameter, value in before.items():
            parameter.data = value


# --- one law --------------------------------------------------------------------------------------


def _examined(
    site: Site,
    role: Role,
    known: Tensor | None,
    before: dict[tuple[Role, str], Tensor],
) -> Wrong | str | None:
    """What is wrong with the law of a site, or a note, or None."""
    law = site.law
    while isinstance(law, (ExpandedDistribution, MaskedDistribution)):
        law = law.base_dist
    if law_masks(law):  # what a mask leaves out has no density to integrate
        return None
    if law.event_shape.numel() > LARGEST:
        return f"events of {law.event_shape.numel()} numbers, so its law is not tested"
    if not law.event_shape.numel() or not law.batch_shape.numel():
        return None
    device = getattr(site.value, "device", None)
    generator = torch.Generator(device or "cpu").manual_seed(0)
    with seeded(*LOOK), NoiseMode(keyed(*LOOK, 0)), torch.no_grad():
        if support_of(law).is_discrete:
            return _discrete(law)
        seen = Examined(law)
        if not seen.dim:
            return None
        if seen.remembers:
            return (
                "log_prob of the same value changes after another draw, so its law is not tested: "
                "AEVB can train it, what scores other values cannot"
            )
        if known is not None and known.shape == seen.logs.shape and torch.equal(known, seen.logs):
            return None  # parameters are none of its business
        before[role, site.name] = seen.logs
        finite = seen.logs.isfinite().double().mean().item()
        if known is not None and finite < 1:
            return None  # moved too far
        if finite < 1 - NOT_FINITE:
            return Wrong(
                f"log_prob of {type(law).__name__} is not finite at {1 - finite:.0%} of its own "
                "draws",
                "a density wherever it draws",
                "let log_prob and sample speak of one law, and of one support",
            )
        cells = seen.different
        if known is not None:  # what shows only there is large
            seen.size = max(LEAST, seen.size // 2)
        for cell in cells:
            if seen.is_coarse(cell):
                return "draws lie on the edge of their support, to rounding: law not tested"
        wrong = _gradient(seen) if known is None else None
        for cell in cells:
            wrong = wrong or _cell(seen, cell, generator)
        return wrong


def _cell(seen: Examined, cell: int, generator: torch.Generator) -> Wrong | None:
    """What is wrong with one law of a batch."""
    family = type(seen.law).__name__
    many = seen.free(seen.draws(seen.many), cell)[0]
    if adds_up(seen, cell, many, generator):
        depends = dependence(many)
        if depends > DEPENDENT:
            return Wrong(
                f"log_prob of {family} adds up over dimensions, as if they were independent, and "
                f"its draws depend across them ({depends:.0f} standard errors)",
                "the density of the draws",
                "where a mixture's logsumexp runs over one dimension at a time, sum each "
                "component's log density over dimensions first: "
                "torch.logsumexp(log_weights + log_normal.sum(-1), -1)",
            )
    found = disagreements(seen, cell, generator)
    if not any(each.sigmas for each in found):
        return None
    return _named(family, blame(seen, cell, generator), {f.by: f.sigmas for f in found})


def _named(family: str, b: Blame, sigmas: dict[str, float]) -> Wrong:
    """The mistake, in words."""
    drawn, said = b.widths
    ratio = drawn / max(said, 1e-300)
    wide, far = ratio > 1, not 1 / FACTOR < ratio < FACTOR
    by_width = sigmas["scale"] != 0 and (sigmas["scale"] < 0) == wide and far
    if b.log_z is not None:
        log_z, error = b.log_z
        enough = b.dim * abs(math.log(max(ratio, 1e-300))) + 1 if by_width else WRONG_BY
        if abs(log_z) > max(enough, 6 * error):
            return Wrong(
                f"log_prob of {family} integrates to {_exp(log_z)}",
                "1",
                "look at log_prob: is a log-determinant counted once for each dimension, with the "
                "wrong sign, or not at all; is a sum over dimensions or a constant missing?",
            )
    if by_width or far or sigmas["scale"]:
        wide = wide if by_width or far else sigmas["scale"] < 0
        how = "wider" if wide else "narrower"
        numbers = f"width {drawn:.2g} against {said:.2g} in dimension {b.where}"
        if not far:
            numbers = f"mean log density {b.fit[0]:.4g} against {b.fit[1]:.4g}"
        return Wrong(
            f"draws of {family} are {how} than its log_prob says ({numbers})",
            "one law",
            "look at the sampler: does it take exp(log variance) for the standard deviation, "
            "which is exp(log variance / 2)? Else log_prob has that mistake",
        )
    worst = max(map(abs, sigmas.values()))
    return Wrong(
        f"draws of {family} are not those of its log_prob ({worst:.0f} standard errors)",
        "one law",
        "compare sampler and log_prob: weights of components, signs, the order of transforms, "
        "log-determinants",
    )


def _exp(log: float) -> str:
    return f"{math.exp(log):.3g}" if abs(log) < 10 else f"exp({log:.0f})"


def _discrete(law: Any) -> Wrong | None:
    for cell in range(min(law.batch_shape.numel(), ROWS)):
        shares = values_disagree(law, cell)
        if shares is not None:
            met, said = shares
            return Wrong(
                f"values that are {met:.3g} of the draws of {type(law).__name__} have the "
                f"probability {said:.3g} by its log_prob",
                "one law, of sum 1",
                "look at log_prob for what is not normalized, and at sample for other weights",
            )
    return None


def _gradient(seen: Examined) -> Wrong | None:
    """What is wrong with the gradient of log_prob with respect to z."""
    family = type(seen.law).__name__
    center = seen.free(seen.few, 0)[0]
    z = seen.placed(center, 0)
    eps = torch.finfo(z.dtype).eps
    change = torch.zeros(len(z), dtype=torch.float64, device=z.device)
    tangent = torch.zeros_like(z, dtype=torch.float64).reshape(len(z), -1)
    for size in STEPS:  # the smallest that is more than rounding
        step = size * (center - center.roll(1, 0))
        ends = [seen.placed(center + sign * step, 0) for sign in (1, -1)]
        logs = [seen.log_prob(end).sum(1) for end in ends]
        by = (logs[0] - logs[1]) / 2
        rounding = 3 * eps * (logs[0].abs() + z[0].numel())
        new = (change == 0) & (by.abs() > 20 * rounding) & by.isfinite()
        change = torch.where(new, by, change)
        far = ((ends[0].double() - ends[1].double()) / 2).reshape(len(z), -1)
        tangent = torch.where(new[:, None], far, tangent)
    keep = change != 0
    if keep.double().mean() < 0.5:
        return None
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = seen.law.log_prob(z)
        grad = None
        if value.requires_grad:
            (grad,) = torch.autograd.grad(value.sum(), z, allow_unused=True)
    along = torch.zeros_like(change)
    if grad is not None:
        if (
            share := (~grad.isfinite()).reshape(len(z), -1).any(1).double().mean().item()
        ) > NOT_FINITE:
            return Wrong(
                f"the gradient of log_prob of {family} is not finite at {share:.0%} of its draws",
                "numbers",
                "look for sqrt, log, norm or a division at zero in log_prob",
            )
        along = (grad.double().reshape(len(z), -1) * tangent).sum(1)
    if ((along - change).abs() > 0.2 * change.abs())[keep].double().mean() > 0.5:
        got = "has no gradient with respect to z" if grad is None else "has another gradient"
        return Wrong(
            f"log_prob of {family} {got}"
            + ("" if grad is None else " with respect to z than its differences"),
            "the derivative, through which posteriors learn",
            "drop detach(), no_grad(), .item() and .data from log_prob",
        )
    return None
