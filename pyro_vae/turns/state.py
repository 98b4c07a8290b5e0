"""What Pyro and torch keep once for a process or a thread, as it is now and to be put back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import infer, poutine
from pyro.poutine import runtime
from torch import Tensor, nn

from pyro_vae.torch_internals import Modes, modes, put_back_modes

STORE = ("_params", "_param_to_name", "_constraints")
PATCHED = ("__call__", "__getattr__")  # of torch's modules, while a graph is recorded


def handlers() -> list[str]:
    """The names of the Pyro handlers that are active, the outermost first."""
    return [type(handler).__name__ for handler in runtime._PYRO_STACK]


@dataclass(frozen=True)
class ProcessState:
    """Everything that running a program changes for a while.  ``now`` takes ten microseconds."""

    stack: list[Any]  # Pyro's handlers
    dims: list[Any]  # which plates have which dimension
    store: tuple[Any, ...]
    validation: tuple[bool, bool, bool]
    generators: tuple[Tensor, ...]  # of the CPU, then of GPUs
    onednn: bool
    dtype: torch.dtype
    grad: bool
    modes: Modes
    patched: tuple[Any, ...]

    @classmethod
    def now(cls) -> ProcessState:
        store = pyro.get_param_store()
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return cls(
            list(runtime._PYRO_STACK),
            list(runtime._DIM_ALLOCATOR._stack),
            tuple(getattr(store, name) for name in STORE),
            (dist.is_validation_enabled(), infer.is_validation_enabled(),
             poutine.is_validation_enabled()),
            (torch.get_rng_state(), *gpus),
            torch._C._get_mkldnn_enabled(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            modes(),
            tuple(getattr(nn.Module, name) for name in PATCHED),
        )  # fmt: skip

    def put_back(self) -> None:
        """Make it so again; twice is as good as once."""
        runtime._PYRO_STACK[:] = self.stack
        runtime._DIM_ALLOCATOR._stack[:] = self.dims
        store = pyro.get_param_store()
        for name, table in zip(STORE, self.store, strict=True):
            setattr(store, name, table)
        for module, enabled in zip((dist, infer, poutine), self.validation, strict=True):
            module.enable_validation(enabled)
        torch.set_rng_state(self.generators[0])
        if self.generators[1:]:
            torch.cuda.set_rng_state_all(self.generators[1:])
        torch._C._set_mkldnn_enabled(self.onednn)
        torch.set_default_dtype(self.dtype)
        torch.set_grad_enabled(self.grad)
        put_back_modes(self.modes)
        for name, function in zip(PATCHED, self.patched, strict=True):
            if getattr(nn.Module, name) is not function:
                setattr(nn.Module, name, function)


@dataclass(frozen=True)
class Whole:
    """Which tensors a program consists of and which parts train, without their values."""

    parts: tuple[tuple[nn.Module, dict[str, Any], dict[str, Any], bool], ...]

    @classmethod
    def of(cls, program: nn.Module) -> Whole:
        return cls(
            tuple(
                (part, dict(part._parameters), dict(part._buffers), part.training)
                for part in program.modules()
            )
        )

    def put_back(self) -> None:
        """Take stand-ins out; what was made since then stays."""
        for part, parameters, buffers, training in self.parts:
            part._parameters.update(parameters)
            part._buffers.update(buffers)
            part.training = training
