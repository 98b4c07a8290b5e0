"""A variational auto-encoder from three parts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import pyro
import torch
from torch import nn

from pyro_vae.program.base import Program
from pyro_vae.program.rows import num_rows
from pyro_vae.recording import form_of


class VAE(Program):
    """A variational auto-encoder from three modules, each of which returns a distribution.

    .. math:: z \\sim p(z), \\qquad x \\mid z \\sim p(x \\mid z), \\qquad q(z \\mid x)

    Args:
        prior: called as ``prior()``; returns p(z) with batch shape ``()``.
        likelihood: called as ``likelihood(z)``; returns p(x | z) with batch shape ``(B,)``.
        posterior: called as ``posterior(x)``; returns q(z | x) with batch shape ``(B,)``.

    Each owns its network, so that swapping the prior, the likelihood or the posterior family is
    passing another object.  Source: Kingma & Welling (2014), section 3.
    """

    def __init__(self, *, prior: nn.Module, likelihood: nn.Module, posterior: nn.Module) -> None:
        super().__init__()
        for name, part in (("prior", prior), ("likelihood", likelihood), ("posterior", posterior)):
            _require_part(name, part)
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior

    def model(self, x: Any) -> None:
        """p(z) p(x | z)."""
        with pyro.plate("data", num_rows(x)):
            z = pyro.sample("z", self.prior())
            given = x.get("x") if isinstance(x, dict) else x  # covariates alone leave x to draw
            pyro.sample("x", self.likelihood(z), obs=given)

    def guide(self, x: Any) -> None:
        """q(z | x)."""
        with pyro.plate("data", num_rows(x)):
            pyro.sample("z", self.posterior(x))


def _require_part(name: str, part: Any) -> None:
    """Raises TypeError for what returns no distribution when it is called."""
    if isinstance(part, type):
        got, advice = f"the class {part.__name__}", f"pass an instance, {part.__name__}(...)"
    elif isinstance(part, torch.distributions.Distribution):
        got, advice = f"a {type(part).__name__}", "let forward() of a torch.nn.Module return it"
    elif not callable(part):
        got, advice = f"a {type(part).__name__}", "see pyro_vae.program.parts"
    else:
        return
    raise TypeError(f"{name} is {got}, expected a module that returns a distribution: {advice}")


P = ParamSpec("P")
Built = TypeVar("Built", bound=Program)


def built_by_name(
    **of_parts: Sequence[str],
) -> Callable[[Callable[P, Built]], Callable[P, Built]]:
    """For the ``build`` of a file in ``models/``: notes on the program how to build it again.

    Args:
        of_parts: part -> options of ``build`` that are its own; beside another part in its place
            they would mean nothing, and are refused.

    ``program.build_record`` is then ``{"model": name of the file, "options": {...}}``, each option
    as :func:`~pyro_vae.recording.form_of` has it, so that a saved run is loaded without its
    program.  It is None where ``build`` is in no file of ``pyro_vae.models``.
    """

    def decorated(build: Callable[P, Built]) -> Callable[P, Built]:
        signature = inspect.signature(build)
        package, _, model = build.__module__.rpartition(".")

        @functools.wraps(build)
        def recorded(*args: P.args, **kwargs: P.kwargs) -> Built:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            for part, own in of_parts.items():
                if given.arguments[part] is not None:
                    _refuse_unused(signature, given.arguments, part, own)
            options = {}
            if package == "pyro_vae.models":  # before the build, which may change what it is given
                options = {name: form_of(value) for name, value in given.arguments.items()}
            program = build(*args, **kwargs)
            if package == "pyro_vae.models":
                program.build_record = {"model": model, "options": options}
            return program

        return recorded

    return decorated


def _refuse_unused(
    signature: inspect.Signature, given: dict[str, Any], part: str, own: Sequence[str]
) -> None:
    """What is not the default was meant, and would mean nothing."""
    for name in own:
        if given[name] != signature.parameters[name].default:
            raise ValueError(
                f"{name} is {given[name]!r} beside {part}=, expected to be left out: it is an "
                f"option of the {part} that yours replaces, so give it to yours"
            )
