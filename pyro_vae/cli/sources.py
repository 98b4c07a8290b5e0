"""What the command line names: a model, an objective, data, a folder for results."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pyro_vae import errors
from pyro_vae.cli.flags import Flag, flags_of, nearest

Binarization = Literal["default", "none", "threshold", "static", "dynamic"]
MODELS = Path(__file__).parents[1] / "models"
FILES = (".npy", ".npz", ".csv")


# --- models -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A ``build`` and where it stands; ``path`` is None for a file of ``pyro_vae.models``."""

    name: str
    build: Callable[..., Any]
    path: Path | None = None

    @property
    def _takes_dim(self) -> str | None:
        """The parameter that the data fill in: ``data_dim``, or else a first one without name."""
        options = inspect.signature(self.build).parameters
        if "data_dim" in options:
            return "data_dim"
        for name, option in options.items():
            if option.kind in (option.POSITIONAL_ONLY, option.POSITIONAL_OR_KEYWORD):
                return name if option.default is option.empty else None
        return None

    def flags(self) -> list[Flag]:
        """``--model.latent_dim`` and its like.

        Raises:
            ValueError: ``build`` has an option called ``name``.
        """
        if "name" in inspect.signature(self.build).parameters:
            raise ValueError(
                f'{self.name}: build has an option called "name", which the command line keeps '
                "for the model's own: give it another name"
            )
        filled = self._takes_dim
        return flags_of(self.build, "model.", skip=() if filled is None else (filled,))

    def make(self, data_dim: int, seed: int, options: dict[str, Any]) -> Any:
        """The program, its initial parameters drawn under ``seed``.

        Raises:
            ValueError: ``build`` raised, or returned no program.
        """
        from torch import nn

        from pyro_vae.noise import seeded

        filled = self._takes_dim
        positional, named = [], dict(options)
        if filled is not None:
            kind = inspect.signature(self.build).parameters[filled].kind
            if kind is inspect.Parameter.POSITIONAL_ONLY:
                positional.append(data_dim)
            else:
                named[filled] = data_dim
        with seeded(seed):
            try:
                program = self.build(*positional, **named)
            except (Exception, SystemExit) as error:
                if self.path is None and isinstance(error, (ValueError, TypeError)):
                    raise ValueError(f"{self.name}: {error}") from error
                place = located(error, self.path)
                if place is None:
                    raise
                raise ValueError(f"{place}, in build; make build({data_dim}) run") from error
        if not isinstance(program, nn.Module):
            raise ValueError(
                f"{self.name}: build returned {type(program).__name__}, expected a program with "
                "model(x) and guide(x), such as a pv.Program"
            )
        return program


def find_model(spec: str) -> Model:
    """By name, or by ``path/to/file.py:build``; the file is run.

    Raises:
        ValueError: no such model or file, or one that cannot be imported or has no ``build``.
    """
    path, name = _path_and_function(spec)
    if path is None:
        known = sorted(module.name for module in pkgutil.iter_modules([str(MODELS)]))
        if spec not in known:
            raise ValueError(
                f"model: {nearest(spec, known)}; a file of your own is path/to/file.py:build"
            )
        return Model(spec, importlib.import_module(f"pyro_vae.models.{spec}").build)
    if not path.exists():
        raise ValueError(f"{path}: no such file; check the path (from {Path.cwd()})")
    if path.is_dir() or path.suffix != ".py":
        what = "a directory" if path.is_dir() else f"a {path.suffix or 'nameless'} file"
        raise ValueError(f"{path}: is {what}, expected a Python file, path/to/file.py:build")
    own = path.resolve().parent == MODELS.resolve()  # a second copy would be another class
    if own:
        module = importlib.import_module(f"pyro_vae.models.{path.stem}")
    else:
        module = _imported(path.resolve(), path)
    build = getattr(module, name, None)
    if not callable(build):
        there = [n for n, v in vars(module).items() if inspect.isfunction(v)]
        if build is None and there:
            raise ValueError(f"{path}: {nearest(name, there)}")
        raise ValueError(
            f"{path}: has no function {name}; define def {name}(data_dim, *, latent_dim=2): ..."
        )
    if own and name == "build":
        return Model(path.stem, build)
    return Model(str(path), build, path.resolve())


def _path_and_function(spec: str) -> tuple[Path | None, str]:
    head, colon, tail = spec.rpartition(":")
    if colon and (tail.isidentifier() or not tail) and len(head) > 1:
        return Path(head).expanduser(), tail or "build"
    if spec.endswith(".py") or os.sep in spec or "/" in spec:
        return Path(spec).expanduser(), "build"
    return None, "build"


def _imported(path: Path, shown: Path) -> Any:
    name = f"pyro_vae_model_{path.stem}"  # a file named torch.py must not become torch
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{shown}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # for files that it imports from beside it
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[name]
        line = f":{error.lineno}" if error.lineno else ""
        raise ValueError(f"{error.filename or shown}{line}: {error.msg}; correct it") from error
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        place = located(error, path) or f"{shown}: {_said(error)}"
        advice = (
            "guard it by if __name__ == '__main__':"
            if isinstance(error, SystemExit)
            else ("make the file run by itself")
        )
        raise ValueError(f"{place}, at import; {advice}") from error
    return module


def located(error: BaseException, path: Path | None, *, said: bool = True) -> str | None:
    """``file:line: what happened``, for the last line of the user's file that was running."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if path is not None and f.filename == str(path)]
    return f"{path}:{lines[-1]}{f': {_said(error)}' if said else ''}" if lines else None


def _said(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r})"
    return f"{type(error).__name__}: {error}"


# --- how to train -------------------------------------------------------------------------------


def find_objective(name: str) -> type:
    """A class of ``pyro_vae.objectives``."""
    from pyro_vae import objectives

    known = [n for n in objectives.__all__ if n not in ("Objective", "State")]
    if name not in known:
        raise ValueError(f"objective: {nearest(name, known)}")
    return getattr(objectives, name)


def find_optimizer(name: str) -> Any:
    """A class of optimizers."""
    import torch

    from pyro_vae import optimizers

    known = {
        "adagrad": torch.optim.Adagrad,
        "accumulating_adagrad": optimizers.Adagrad,
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
    }
    if name not in known:
        raise ValueError(f"--optimizer: {nearest(name, list(known))}")
    return known[name]


def require_device(name: str | None) -> None:
    """Try a device, before anything is read or written."""
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"--device {name}: {why}; leave it out for the CPU") from None


# --- data ---------------------------------------------------------------------------------------


def open_data(
    data: str,
    binarize: Binarization = "default",
    data_dir: Path | None = None,
    scale: float | None = None,
    labels_key: str | None = None,
) -> Any:
    """A data set by name, or a file of your own, a tenth of it for validation and for testing.

    Raises:
        ValueError, TypeError: no such data, or damaged ones.
    """
    from pyro_vae import datasets

    if scale is not None:
        errors.positive("--scale", scale, "such as 255")
    path = Path(data).expanduser()
    looks_like_file = path.suffix.lower() in FILES or os.sep in data or path.is_file()
    if data in datasets.names() or not looks_like_file:
        if labels_key is not None:
            raise ValueError(f"--labels_key is for files of your own, and {data} is a data set")
        try:
            return datasets.load(data, binarize=binarize, data_dir=data_dir, scale=scale)
        except ValueError as error:
            hint = f"; a file of your own ends in {', '.join(FILES)}"
            unknown = str(error).startswith("name: ")
            raise ValueError(f"--data: {error}{hint if unknown else ''}") from error
    if path.is_dir():
        raise ValueError(f"--data {data}: is a directory, expected a file {', '.join(FILES)}")
    rows = datasets.from_file(
        path,
        binarize="none" if binarize == "default" else binarize,
        scale=scale,
        labels_key=labels_key,
    )
    return datasets.split(rows, test=0.1, validation=0.1, seed=0, name=path.stem)


# --- results ------------------------------------------------------------------------------------


@contextlib.contextmanager
def results(out: Path | None, *libraries: str) -> Iterator[Path | None]:
    """The folder for results, made and tried before any work, as are the libraries that write them.

    It is gone again where nothing came.
    """
    if out is None:
        yield None
        return
    errors.require_libraries(*libraries)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: {error.strerror}; name a folder that can be made") from None
    if not os.access(out, os.W_OK):
        raise ValueError(f"--out {out}: cannot be written; name another folder")
    try:
        yield out
    except BaseException:
        with contextlib.suppress(OSError):  # of a folder that holds something
            for folder in made:
                folder.rmdir()
        raise


def put(path: Path, write: Callable[[Path], Any]) -> Path:
    """Write a file beside its place and rename it, so that it is never there by half."""
    part = path.with_name(f".{path.name}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path
