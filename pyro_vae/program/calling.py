"""Calling a program: at other parameters, in evaluation mode, or once, so that it is whole."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.func import functional_call

from pyro_vae.noise import Stream, seeded
from pyro_vae.program.rows import Rows, observed_rows


@contextlib.contextmanager
def evaluating(program: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout, fixed batch statistics) for a while; then each part's own.

    Raises:
        TypeError: it is no module, but a run, say.
    """
    if not isinstance(program, nn.Module):
        require_program(program)
    modes = {module: module.training for module in program.modules()}
    program.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextlib.contextmanager
def left_as_it_was(program: Any, *, parameters: bool = True) -> Iterator[None]:
    """Let a program run, and put back what moved: running statistics do at every call in training.

    Args:
        program: the program; what is no module holds nothing.
        parameters: put parameters back too, and drop those and the buffers that appeared; without,
            what the first call makes stays.
    """
    fresh = _unmade_guides(program) if parameters else {}
    before: list[tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]] = []
    for module in program.modules() if isinstance(program, nn.Module) else ():
        tables: list[dict[str, Any]] = [module._buffers]
        for tensors in [*tables, module._parameters] if parameters else tables:
            values = {
                name: tensor.detach().clone()
                for name, tensor in tensors.items()
                if tensor is not None and not nn.parameter.is_lazy(tensor)
            }
            before.append((tensors, dict(tensors), values))
    try:
        yield
    finally:
        for tensors, known, values in before:
            if parameters:
                tensors.clear()
            tensors.update(known)
            for name, value in values.items():
                if not torch.equal(known[name], value):
                    known[name].data.copy_(value)
        for guide, attributes in fresh.items():
            vars(guide).clear()
            vars(guide).update(attributes)


def _unmade_guides(program: Any) -> dict[nn.Module, dict[str, Any]]:
    """Automatic guides without their parameters yet, which they make once, and what they hold."""
    return {
        module: {k: copy.copy(v) if isinstance(v, (dict, list)) else v for k, v in held.items()}
        for module in (program.modules() if isinstance(program, nn.Module) else ())
        if isinstance(module, AutoGuide) and (held := vars(module))["prototype_trace"] is None
    }


class _Call(nn.Module):
    """Lets ``functional_call`` swap a program's parameters around any function of it."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self.program, *args)


@contextlib.contextmanager
def _said_to_be_learnt(stand_ins: Iterable[Tensor]) -> Iterator[None]:
    """Stand-ins that say of themselves that they are learnt, for as long as a program runs.

    Else ``pyro.module`` warns of a parameter that nobody froze.  (A detached copy would do, but
    leave its mark in a graph that is being captured.)
    """
    held = [t for t in stand_ins if t.is_floating_point() and not t.requires_grad]
    for tensor in held:
        tensor.requires_grad_()
    try:
        yield
    finally:
        for tensor in held:
            tensor.requires_grad_(False)


def call_with(
    program: nn.Module, parameters: dict[str, Tensor], function: Callable[..., Any], *args: Any
) -> Any:
    """``function(program, *args)`` while ``parameters`` stand in for the program's own.

    Each place that holds a parameter is swapped once: a module that two parts own is one place, a
    parameter that two modules hold is two.  (``functional_call`` can look for ties itself, but it
    swaps a module with two names twice, and what it then puts back is the stand-in.)
    """
    stand_ins = {
        id(parameter): parameters[name]
        for name, parameter in program.named_parameters()
        if name in parameters
    }
    swapped = {
        ".".join(filter(None, ("program", prefix, name))): stand_ins[id(parameter)]
        for prefix, module in program.named_modules()
        for name, parameter in module._parameters.items()
        if id(parameter) in stand_ins
    }
    own = program.named_parameters()
    learnt = [parameters[n] for n, p in own if n in parameters and p.requires_grad]
    with _said_to_be_learnt(learnt):
        return functional_call(_Call(program), swapped, (function, *args), tie_weights=False)


def batch_norm_of(program: nn.Module) -> str | None:
    """A module that normalizes over the rows of a batch, by name."""
    for name, module in program.named_modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if is_norm and (module.training or module.running_mean is None):
            return f"{name} ({type(module).__name__})"
    return None


def require_program(program: Any) -> None:
    """Refuse what has no model and guide, with the next step.

    Raises:
        TypeError: for anything but a module with ``model(x)`` and ``guide(x)``.
    """
    if isinstance(program, nn.Module) and all(
        callable(getattr(program, name, None)) for name in ("model", "guide")
    ):
        return
    if isinstance(getattr(program, "program", None), nn.Module):
        advice = f"pass the {type(program).__name__}'s program, run.program"
    elif isinstance(getattr(program, "program_", None), nn.Module):  # a fitted estimator
        advice = (
            "pass the estimator's program_, and rows as it sees them, standardized, "
            "(X - vae.mean_) / vae.scale_ where vae.scale_ is not None"
        )
    elif isinstance(program, type):
        advice = f"pass an instance, {program.__name__}(...)"
    else:
        advice = "subclass pv.Program, or wrap two functions, pv.Program(model, guide, net=net)"
    raise TypeError(
        f"program is {getattr(program, '__name__', type(program).__name__)}, expected a module "
        f"with model(x) and guide(x): {advice}"
    )


def require_learnable(program: nn.Module) -> None:
    """Refuse parameters that torch can never differentiate by.

    Raises:
        ValueError: naming the first.
    """
    for name, parameter in program.named_parameters():
        if not nn.parameter.is_lazy(parameter) and parameter.is_inference():
            raise ValueError(
                f"{name} was made under torch.inference_mode, where nothing can be learnt: build "
                "the program outside of it"
            )


def materialize(program: Any, x: Rows) -> None:
    """Run model and guide once, so that parameters which ``pyro.param`` creates are there.

    Buffers are put back.

    Raises:
        ValueError: where they fail on these rows; the cause is chained.
    """
    for number, name in enumerate(("guide", "model")):
        key = Stream.CREATED.key(0, number)  # or what both create would begin alike
        try:
            with (
                torch.no_grad(),
                left_as_it_was(program, parameters=False),
                seeded(*key),
                pyro.poutine.block(),
            ):
                getattr(program, name)(x)
        except ValueError as error:
            if (said := plate_of_other_size(error, len(observed_rows(x)))) is None:
                raise
            raise ValueError(said) from error
        except Exception as error:  # of torch on shapes and dtypes, or of the program's own code
            rows = observed_rows(x)
            line = (str(error).strip().splitlines() or [""])[0]
            if not isinstance(error, RuntimeError):
                line = f"{type(error).__name__}: {line}"
            advice = "pv.check(program, x) says more"
            if (whole := given_whole(error, x)) is not None:
                advice = whole
            elif not rows.is_floating_point():
                advice = "pass x.float() where the networks take real numbers"
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"{name}(x) fails on a batch of shape {tuple(rows.shape)}, {rows.dtype}: {line}; "
                f"{advice}"
            ) from error


@contextlib.contextmanager
def failing_in_words(program: Any, x: Rows) -> Iterator[None]:
    """Let what torch says of shapes and dtypes speak of the program and of x, as ``fit`` does.

    Raises:
        ValueError: where model or guide fail on these rows; the cause is chained.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception:
        materialize(program, x)
        raise  # they run by themselves


def given_whole(error: BaseException, x: Rows) -> str | None:
    """What to do where a network was given a dict; None where that is not what failed."""
    if not isinstance(x, dict) or "dict" not in str(error):
        return None
    return f'a dict is given whole to model(x): pass x["{next(iter(x))}"] where it takes a tensor'


def plate_of_other_size(error: BaseException, rows: int) -> str | None:
    """What Pyro means by rows that a plate does not have; None where it means something else."""
    said = r"inside plate\('(.+)'\) at site (\S+) dim -?\d+, (-?\d+) vs (\d+)"
    found = re.search(said, str(error))
    if found is None or int(found[3]) == rows or int(found[4]) != rows:
        return None
    name, site, size, _ = found.groups()
    return (
        f'site "{site}" is in pyro.plate("{name}", ...), which has {size} members, expected the '
        f"{rows} rows of x, because x is already the minibatch: write "
        f'pyro.plate("{name}", len(x)), or pyro.plate("{name}", N, subsample_size=len(x)) for a '
        "model that counts all N data"
    )


Parameters = dict[str, Tensor]


def trainable(program: nn.Module) -> Parameters:
    """The parameters that are to be learnt, by name.

    Raises:
        ValueError: where there are none.
    """
    parameters: Parameters = {n: p for n, p in program.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError(
            f"{type(program).__name__} has no parameter that requires a gradient: register its "
            "networks as attributes of the module, or pass them by name to pv.Program"
        )
    return parameters
