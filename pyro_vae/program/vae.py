"""A variational auto-encoder from three parts."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.distributions.gaps import with_gaps
from pyro_vae.program.base import Program
from pyro_vae.program.laws import as_pyro
from pyro_vae.program.rows import num_rows
from pyro_vae.recording import form_of
from pyro_vae.recording.recipes import Sizable


class VAE(Program):
    """A variational auto-encoder from three modules, each of which returns a distribution.

    .. math:: z \\sim p(z), \\qquad x \\mid z \\sim p(x \\mid z), \\qquad q(z \\mid x)

    Args:
        prior: called as ``prior()``; returns p(z) with batch shape ``()``.
        likelihood: called as ``likelihood(z)``; returns p(x | z) with batch shape ``(B,)``, or a
            dict of such, one a site, beside a method ``parts_of(x)`` that says what each observes.
        posterior: called as ``posterior(x)``; returns q(z | x) with batch shape ``(B,)``.
        missing: NaN in x means that the number is missing.  The likelihood, a product over the
            numbers of x, leaves it out; the posterior sees 0 in its place and, as the covariate
            "seen" (D ones and zeros behind x), which numbers are there.

    Where x is a dict, the posterior is called with all of it, and a prior or likelihood that has an
    argument for them with its *covariates*, the entries but "x": p(z | c) p(x | z, c).

    Each part owns its network, so that swapping the prior, the likelihood or the posterior family
    is passing another object; :meth:`build` gives parts their sizes.  Source: Kingma & Welling
    (2014), section 3.
    """

    def __init__(
        self,
        *,
        prior: nn.Module,
        likelihood: nn.Module,
        posterior: nn.Module,
        missing: bool = False,
    ) -> None:
        super().__init__()
        for name, part in (("prior", prior), ("likelihood", likelihood), ("posterior", posterior)):
            _require_part(name, part)
        _require_same_posterior(prior, posterior)
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = posterior
        self.missing = missing
        self._prior_is_given = _arguments(prior) > 0
        self._likelihood_is_given = _arguments(likelihood) > 1

    def model(self, x: Any) -> None:
        """p(z) p(x | z)."""
        observed, given = _taken_apart(x)
        with pyro.plate("data", num_rows(x)):
            z = pyro.sample("z", self.prior(given) if self._prior_is_given else self.prior())
            beside = (given,) if self._likelihood_is_given else ()
            law = self.likelihood(z, *beside)
            if isinstance(law, Mapping):
                parts = {} if observed is None else self.likelihood.parts_of(observed)  # type: ignore[operator]
                for name, each in law.items():
                    pyro.sample(name, self._with_gaps(each, name), obs=parts.get(name))
            else:  # (covariates alone leave x to draw)
                pyro.sample("x", self._with_gaps(law, "x"), obs=observed)

    def guide(self, x: Any) -> None:
        """q(z | x)."""
        with pyro.plate("data", num_rows(x)):
            pyro.sample("z", self.posterior(filled(x) if self.missing else x))

    def _with_gaps(self, law: Any, site: str) -> Any:
        return with_gaps(as_pyro(law, site)) if self.missing else law

    def made_up_row(self) -> Tensor | None:
        """One x, (1, ...), that the model draws; None where that takes covariates."""
        library = getattr(self.likelihood, "library", None)  # an entry of x, and no covariate of z
        if self._prior_is_given or library or bool(getattr(self.likelihood, "given_dim", 0)):
            return None
        law = self.likelihood(self.prior().sample((1,)))
        if isinstance(law, Mapping):
            joined: Any = self.likelihood.joined
            return joined({name: each.sample() for name, each in law.items()})
        return law.sample()

    @staticmethod
    def build(data: Any, **options: Any) -> VAE:
        """A VAE for these data, from parts without sizes: ``build`` of ``models/vae.py``.

        Args:
            data: a data set, rows, or only the size of a row.
            options: ``latent_dim``, ``prior``, ``likelihood``, ``posterior``, ``network``, ...
        """
        return importlib.import_module("pyro_vae.models.vae").build(data, **options)


def _taken_apart(x: Any) -> tuple[Tensor | None, dict[str, Tensor]]:
    """What is observed, if anything is, and the covariates."""
    if not isinstance(x, Mapping):
        return x, {}
    return x.get("x"), {name: value for name, value in x.items() if name != "x"}


def filled(x: Any) -> dict[str, Tensor]:
    """x without gaps, and beside it which numbers are there."""
    rows = dict(x) if isinstance(x, Mapping) else {"x": x}
    seen = ~rows["x"].isnan()
    filled = torch.where(seen, rows["x"], torch.zeros_like(rows["x"]))
    return {**rows, "x": filled, "seen": seen.to(filled.dtype)}


def _arguments(part: Any) -> int:
    """How many values a part is called with."""
    called = part.forward if isinstance(part, nn.Module) else part
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        return 0
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)


def _require_part(name: str, part: Any) -> None:
    """Raises TypeError for what returns no distribution when it is called."""
    if isinstance(part, type):
        got, advice = f"the class {part.__name__}", f"pass an instance, {part.__name__}(...)"
    elif isinstance(part, torch.distributions.Distribution):
        got, advice = f"a {type(part).__name__}", "let forward() of a torch.nn.Module return it"
    elif not callable(part):
        got, advice = f"a {type(part).__name__}", "see pyro_vae.program.parts"
    elif isinstance(part, Sizable) and part.unsized:
        raise ValueError(f"{name}: {part.say_unsized()}")
    elif isinstance(part, nn.Module) and "_modules" not in vars(part):
        got = f"a {type(part).__name__} whose __init__ calls no super().__init__()"
        advice = "call it first"
    else:
        return
    raise TypeError(f"{name} is {got}, expected a module that returns a distribution: {advice}")


def _require_same_posterior(prior: Any, posterior: Any) -> None:
    """Raises ValueError for a prior on the posterior of another program, which nobody trains."""
    held = getattr(prior, "posterior", None)
    if isinstance(held, nn.Module) and held is not posterior:
        raise ValueError(
            f"prior is a {type(prior).__name__} on another {type(held).__name__} than the posterior"
            f" of this program, a {type(posterior).__name__}, expected the same object: pass it "
            "without a posterior to pv.VAE.build, or give posterior= to both"
        )


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
        package, _, file = build.__module__.rpartition(".")
        name = file if package == "pyro_vae.models" else None

        @functools.wraps(build)
        def recorded(*args: P.args, **kwargs: P.kwargs) -> Built:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            for part, own in of_parts.items():
                if given.arguments[part] is not None:
                    _refuse_unused(signature, given.arguments, part, own)
            options = {}
            if name is not None:  # before the build, which may change what it is given
                options = {option: form_of(value) for option, value in given.arguments.items()}
            program = build(*args, **kwargs)
            if name is not None:
                program.build_record = {"model": name, "options": options}
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
