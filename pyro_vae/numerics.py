"""The numbers that the sites of a program come to: possible values, finite densities, gradients.

With validation off, which captured graphs and ``python -O`` have, nobody else looks at them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.contract import ROLES, Met, Mistakes, by_row, family, first_line, label
from pyro_vae.noise import seeded
from pyro_vae.program import Rows, map_rows, num_rows, observed_rows
from pyro_vae.traces import (
    Site,
    base_law,
    data_frame,
    log_density,
    one_scale,
    sites_of,
    trace_program,
)

MAX_NAMED = 10  # parameters named for one mistake, before "and 52 more"


def values(met: Met, mistakes: Mistakes) -> None:
    """Parameters and values are possible, and log densities finite; fills ``met.scored``."""
    for role, name, site in met:
        where, before = label(role, name), len(mistakes)
        _parameters(site, where, mistakes)
        if role == "model" and len(mistakes) == before:
            _support(site, where, mistakes)
        try:
            events = log_density(site)
            density = by_row(events, met.axis(site)).detach()
        except Exception as error:  # of shapes or a family of the user's own
            if not any(line.startswith(where) for line in mistakes):  # else a consequence
                mistakes.cause = mistakes.cause or error
                mistakes.add(
                    where,
                    f"log_prob of {family(site)} fails ({first_line(error)})",
                    "log densities (B,)",
                    "compare the shapes of the value and of the distribution",
                )
            continue
        met.scored[role, name] = events
        finite = density.isfinite()
        if len(mistakes) == before and not finite.all():
            row = int((~finite).flatten().nonzero()[0])
            got = f"log density {density.flatten()[row].item()}"
            value = site["value"]
            advice = "bound scales away from zero and logits away from infinity"
            if name == met.observed and value.is_floating_point() and not value.isfinite().all():
                advice = "x is not finite there; drop or impute such rows"
            mistakes.add(
                where, f"{got} at row {row}" if finite.dim() else got, "a finite number", advice
            )


def _parameters(site: Site, where: str, mistakes: Mistakes) -> None:
    """A distribution's parameters are possible; with validation off nobody else asks."""
    fn = base_law(site["fn"])
    for name, constraint in getattr(fn, "arg_constraints", {}).items():
        value = fn.__dict__.get(name)  # other parameters are computed from these
        if not isinstance(value, Tensor) or constraints.is_dependent(constraint):
            continue
        if value.is_floating_point() and not value.isfinite().all():
            continue  # shows in the density, with its row
        if not constraint.check(value).all():
            mistakes.add(
                where,
                f"{name} of {family(site)} {_range(value)}",
                describe(constraint),
                "map the network's output there, with softplus, exp or sigmoid",
            )


def _support(site: Site, where: str, mistakes: Mistakes) -> None:
    """The value of a site is possible under its distribution."""
    value, mask = site["value"], site["mask"]
    if not isinstance(value, Tensor) or not value.numel() or mask is False:
        return
    if value.is_floating_point() and not value.isfinite().all():
        return  # shows in the density, with its row
    try:
        inside = _possible(site["fn"], value)
    except (NotImplementedError, AttributeError, RuntimeError):
        return  # no support that could be asked, or a shape that is a mistake of its own
    if isinstance(mask, Tensor):
        inside = inside | ~mask.bool()
    if not inside.all():
        advice = "choose a guide with the support of the prior"
        if site["is_observed"]:
            advice = _advice_for_data(site["fn"].support, value)
        mistakes.add(where, f"values {_range(value)}", describe(site["fn"].support), advice)


def require_possible_data(program: Any, x: Rows) -> None:
    """Refuse data to which the likelihood gives no density, looking at every row.

    With validation off, which captured graphs and ``python -O`` have, a Bernoulli scores a pixel
    of 255 without complaint, and the more the better.  So do impossible parameters, such as a
    negative scale, which are looked for in the first rows.

    Raises:
        ValueError: what was found, what the site takes, and the next step.
    """
    with torch.no_grad(), seeded(0), pyro.validation_enabled(False):
        # A support does not depend on the row but for bounds such as a count of trials; of those
        # the first rows say nothing about the others, and the comparison below passes them over.
        traces = trace_program(program, map_rows(lambda t: t[:2], x), reparameterize=False)
    mistakes = Mistakes()
    for role, trace in zip(ROLES, traces, strict=True):
        for name, site in sites_of(trace).items():
            _parameters(site, label(role, name), mistakes)
    site = sites_of(traces[1]).get(getattr(program, "observed", "x"), {})
    if isinstance(site.get("value"), Tensor) and site["mask"] is None:
        rows = observed_rows(x)
        value = rows.reshape(len(rows), *site["value"].shape[1:])
        _support({**site, "value": value}, "data", mistakes)
    if mistakes:
        raise ValueError(mistakes[0])


def require_all_data(program: Any, x: Rows, num_data: int) -> None:
    """Refuse shared latents whose plate speaks of another number of data than there are.

    Their terms would count too often or too seldom beside those of the data.

    Raises:
        ValueError: N as the plate has it, and as the data do.
    """
    with torch.no_grad(), seeded(0), pyro.validation_enabled(False):
        guide, model = map(sites_of, trace_program(program, x, reparameterize=False))
    shared = [n for n, s in guide.items() if not s["is_observed"] and data_frame(s) is None]
    if not shared:
        return
    declared = round(one_scale(guide, model) * num_rows(x))
    if declared != num_data:
        raise ValueError(
            f'latent site "{shared[0]}" is shared by all data, of which pyro.plate("data", ...) '
            f"counts {declared} where there are {num_data}: write "
            f'pyro.plate("data", {num_data}, subsample_size=len(x)), or build the program with '
            f"num_data={num_data}"
        )


def require_numbers(values: Tensor, what: str) -> None:
    """Refuse what is not a number for some datum, (N,).

    Raises:
        ValueError: how many, which is the first, and the next step.
    """
    bad = values.isnan()
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"{what} is not a number for {int(bad.sum())} of {len(values)} data (row {row}), "
            "expected one for each: a distribution's parameter is impossible or not finite there; "
            "pv.check(program, x) on that row and its neighbours says which"
        )


def _possible(fn: Any, value: Tensor) -> Tensor:
    """Which values are in the support, or masked by ``fn.mask(...)``."""
    law = fn
    while isinstance(law, (dist.Independent, dist.ExpandedDistribution)):
        law = law.base_dist
    if isinstance(law, dist.MaskedDistribution):
        inside = law.base_dist.support.check(value)
        return inside | ~torch.as_tensor(law._mask, dtype=torch.bool, device=value.device)
    return fn.support.check(value)


def _advice_for_data(support: Any, value: Tensor) -> str:
    low, high = value.min().item(), value.max().item()
    binary = _without_events(support) is constraints.boolean
    if low < 0 or not (binary or _without_events(support) is constraints.unit_interval):
        return "shift or scale x, or choose a likelihood for such values"
    if high > 1:
        divisor = 16 if high <= 16 else 255 if high <= 255 else round(high)
        binarize = ', binarize="threshold"' if binary else ""
        return f"scale them, pv.datasets.from_array(x, scale={divisor}{binarize})"
    return (
        'binarize them, pv.datasets.from_array(x, binarize="threshold"), or build the likelihood '
        "with soft_targets=True"
    )


def _range(value: Tensor) -> str:
    return f"from {value.min().item():g} to {value.max().item():g}"


def _without_events(constraint: Any) -> Any:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def describe(constraint: Any) -> str:
    """A constraint in one line, such as ``GreaterThan(lower_bound=0.0)``."""
    constraint = _without_events(constraint)
    if constraint is constraints.boolean:
        return "0 or 1"
    return " ".join(str(constraint).split())[:80]


# --- gradients ------------------------------------------------------------------------------------


def gradients(program: nn.Module, met: Met, rsample: bool, mistakes: Mistakes) -> None:
    """Find parameters that would not be learnt, and gradients that are no numbers."""
    parameters = {n: p for n, p in program.named_parameters() if p.requires_grad}
    if not parameters:
        mistakes.add(
            type(program).__name__,
            "no parameter that requires a gradient",
            "at least one",
            "register networks as attributes of the module, or pass them by name to pv.Program",
        )
    _strangers(program, met, mistakes)
    # Estimator A.  Without rsample the draws are detached, and log q reaches the guide by
    # itself, as it does in the sleep phase.
    by, sign = ('AEVB("A")', -1) if rsample else ("WakeSleep()", 1)
    terms = [e.sum() if key[0] == "model" else sign * e.sum() for key, e in met.scored.items()]
    terms = [term for term in terms if term.requires_grad]
    grads: tuple[Tensor | None, ...] = (None,) * len(parameters)
    if parameters and terms:
        total = torch.stack(terms).sum()
        grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    unused, wild = [], []
    finite = all(term.isfinite() for term in terms)
    complete = len(met.scored) == len(met.guide) + len(met.model)
    for name, grad in zip(parameters, grads, strict=True):
        if grad is None and complete:
            unused.append(f'parameter "{name}"')
        elif grad is not None and not grad.isfinite().all() and finite:
            wild.append(f'parameter "{name}"')
    for names, got, expected, advice in (
        (
            unused,
            f"no gradient from {by}",
            "one for all that is to be learnt",
            "freeze it with requires_grad_(False) or use it",
        ),
        (
            wild,
            f"gradient from {by} is not finite",
            "numbers",
            "look for sqrt, log, norm or a division at zero on the way to it",
        ),
    ):
        more = [f"{len(names) - MAX_NAMED} parameters more"] if len(names) > MAX_NAMED else []
        for where in names[:MAX_NAMED] + more:
            mistakes.add(where, got, expected, advice)


def _strangers(program: nn.Module, met: Met, mistakes: Mistakes) -> None:
    """Find what would be learnt if only the program knew it."""
    known = {id(p) for p in program.parameters()}
    store = pyro.get_param_store()
    for (role, name), events in met.scored.items():
        for leaf in _leaves(events):
            if id(leaf) in known:
                continue
            known.add(id(leaf))
            called = store.param_name(leaf)
            what = f'pyro.param("{called}")' if called else f"a tensor {tuple(leaf.shape)}"
            mistakes.add(
                label(role, name),
                f"depends on {what} that requires a gradient and would not be trained",
                "parameters of the program",
                "wrap the module, pv.Program(module)"
                if called
                else "make the module that owns it an attribute of the program, or pass it by "
                "name, pv.Program(model, guide, net=net)",
            )


def _leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors at which differentiation of this one ends."""
    stack, seen = [tensor.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack.extend(parent for parent, _ in node.next_functions)
