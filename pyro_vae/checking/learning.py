"""Parameters that would not be learnt, and gradients that are no numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.checking.sites import Met, Mistakes, label
from pyro_vae.densities.plates import Role

# --- gradients ------------------------------------------------------------------------------------


def gradients(met: Met, mistakes: Mistakes) -> None:
    """Find parameters that would not be learnt, and gradients that are no numbers."""
    program = met.program
    rsample = all(site.has_rsample for site in met.latents.values())
    parameters = {n: p for n, p in program.named_parameters() if p.requires_grad}
    if not parameters:
        mistakes.add(
            type(program).__name__,
            "no parameter that requires a gradient",
            "at least one",
            "register networks as attributes of the module, or pass them by name to pv.Program",
        )
    strangers(program, met.scored, mistakes)
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
    finite = not met.has_gaps and all(term.isfinite() for term in terms)
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
        for where in names:
            mistakes.add(where, got, expected, advice)


def strangers(
    program: nn.Module, scored: Mapping[tuple[Role, str], Tensor], mistakes: Mistakes
) -> None:
    """Find what would be learnt if only the program knew it, by role and site's log density."""
    known = {id(p) for p in program.parameters()}
    store = pyro.get_param_store()
    for (role, name), events in scored.items():
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
