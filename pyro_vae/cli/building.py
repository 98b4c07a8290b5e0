"""A model by name or file, with the parts named for it, built under a seed.

``--model.prior Laplace --model.prior.scale 2`` names a class of ``pyro_vae.priors`` and options of
its constructor, ``--model.prior path/to/file.py:Mine`` a class of a file of your own.  A part may
have parts, ``--model.likelihood.network MLP``.

To a model of ours parts are given without their sizes, which its ``build`` knows; to one of your
own with all that can be told: the data's ``data_dim``, and its ``latent_dim``, ``hidden_dim`` and
``init_std`` where it has these options.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pyro_vae.cli.flags import Flag, explained, flags_of, kind_of
from pyro_vae.cli.userfiles import located, shortage

FOLDERS = {
    "prior": "priors", "likelihood": "likelihoods", "posterior": "posteriors",
    "network": "networks", "encoder": "networks", "decoder": "networks",
}  # fmt: skip
OF_NETWORKS = ("hidden_dim", "init_std")  # of the one that stands where none is named
SIZES = ("latent_dim", "data_dim", "given_dim", *OF_NETWORKS, "posterior", "inputs", "outputs")
NO_FLAGS = ("data_dim", "given_dim", "posterior", "inputs", "outputs")


@dataclass(frozen=True)
class Named:
    """A function or class, its options, and what stands for its arguments."""

    flag: str  # "model", "model.prior"
    name: str
    function: Any
    path: Path | None = None  # None for one of ours
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, Part] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """The user's files whose code it runs."""
        paths = [each.path for each in (self, *self.inner())]
        return [path for path in paths if path is not None]

    def inner(self) -> Iterator[Part]:
        """Its parts, and theirs."""
        for part in self.parts.values():
            yield part
            yield from part.inner()

    @property
    def slots(self) -> list[str]:
        """The arguments for which a part may be named: those that no plain value fits."""
        arguments = inspect.signature(self.function).parameters
        left_out = self.left_out()
        return [
            slot for slot in FOLDERS
            if slot in arguments and slot not in left_out
            and kind_of(self.function, slot) in (None, Any)
        ]  # fmt: skip

    def left_out(self) -> tuple[str, ...]:
        """Arguments that are no flags, because somebody else gives them."""
        return ()

    def flags(self) -> list[Flag]:
        """``--model.latent_dim`` and its like, ``--model.prior``, and the options of parts.

        Raises:
            ValueError: something has an option called ``name``.
        """
        if "name" in inspect.signature(self.function).parameters:
            raise ValueError(
                f'{self.name}: {self.function.__name__} has an option called "name", which the '
                "command line keeps for what it is: give it another name"
            )
        from pyro_vae.recording.listing import classes_in

        slots, about = self.slots, explained(self.function)
        flags = flags_of(self.function, f"{self.flag}.", skip=[*slots, *self.left_out()])
        for slot in slots:
            known = f"here: {', '.join(classes_in(FOLDERS[slot]))}, or path/to/file.py:Class"
            words = f"{about.get(slot, '')} ({known}; --{self.flag}.{slot}.OPTION are its options)"
            flags.append(Flag(f"{self.flag}.{slot}.name", str, help=words.strip()))
        return flags + [flag for part in self.parts.values() for flag in part.flags()]

    def with_options(self, given: Mapping[str, Any]) -> Any:
        """With what was given: ``latent_dim`` is its own, ``prior.precision`` a part's.

        Raises:
            ValueError: one is for a part that another part replaces.
        """
        plain = {n: v for n, v in given.items() if "." not in n and n != "name"}
        for slot, part in self.parts.items():
            for name in plain:
                of_network = slot == "network" and name in OF_NETWORKS
                if name.startswith(f"{slot}_") or of_network:
                    raise ValueError(
                        f"--{self.flag}.{name} is for the {slot} that --{part.flag} {part.name} "
                        f"replaces: leave it out, or give --{part.flag}.OPTION"
                    )
        parts = {
            slot: part.with_options(
                {n.partition(".")[2]: v for n, v in given.items() if n.startswith(f"{slot}.")}
            )
            for slot, part in self.parts.items()
        }
        return replace(self, options=plain, parts=parts)

    def __str__(self) -> str:
        """As one would write it: ``VampPrior(num_components=20)``."""
        given = {**self.options, **self.parts}
        inside = ", ".join(
            f"{name}={value if isinstance(value, Named) else repr(value)}"
            for name, value in given.items()
        )
        name = self.function.__name__ if self.path is not None else self.name
        return f"{name}({inside})" if given else name

    def require_writable(self) -> None:
        """Raises ValueError where an argument is needed that no flag can give."""
        for name, option in inspect.signature(self.function).parameters.items():
            needed = option.default is option.empty and option.kind is option.KEYWORD_ONLY
            needed |= option.default is option.empty and option.kind is option.POSITIONAL_OR_KEYWORD
            kept = (*SIZES, *self.slots, *self.left_out(), *self.options)
            if needed and name not in kept and kind_of(self.function, name) is None:
                raise ValueError(
                    f"--{self.flag} {self.name}: needs {name}, which no flag can say: build it in "
                    "a file of your own, path/to/file.py:build"
                )


@dataclass(frozen=True)
class Part(Named):
    """A class that stands for an argument; ``known`` are the sizes that its model gives it."""

    known: tuple[str, ...] = ()

    def left_out(self) -> tuple[str, ...]:
        return tuple(n for n in SIZES if n in NO_FLAGS or (n in self._known and n == "latent_dim"))

    @property
    def _known(self) -> list[str]:
        """Sizes that it takes, and has from its model; a class may have others by these names."""
        own = getattr(self.function, "sizes", SIZES)
        return [name for name in self.known if name in own]

    def flags(self) -> list[Flag]:
        flags = []
        for flag in super().flags():
            name = flag.name.removeprefix(f"{self.flag}.")
            if name in self._known:
                words = f"{flag.help} (the model's, where it is not given)".strip()
                flag = replace(flag, required=False, default=None, help=words)
            flags.append(flag)
        return flags

    def made(self, sizes: Mapping[str, Any] | None, making: list[tuple[Any, Named]]) -> Any:
        """The object, without its sizes where none are known here.

        Args:
            sizes: what is known, or None where ``build`` gives them.
            making: takes what has been made, and of which part.
        """
        from pyro_vae.recording.recipes import Sizable

        making.append((None, self))  # it is begun
        inner = {slot: part.made(None, making) for slot, part in self.parts.items()}
        options = {**inner, **self.options}
        taken = inspect.signature(self.function).parameters
        if sizes is not None:
            known = {n: v for n, v in sizes.items() if n in taken and n in self._known}
            made = self.function(**known | options)
        else:
            made = functools.partial(self.function, **options)
            needed = [n for n in SIZES if n in taken and n not in options]
            if issubclass(self.function, Sizable) and (not needed or made().unsized):
                made = made()  # a recipe; else all sizes have defaults, which the model's replace
        making.append((made, self))
        return made


@dataclass(frozen=True)
class Model(Named):
    """A ``build`` and where it stands; ``path`` is None for a file of ``pyro_vae.models``."""

    def left_out(self) -> tuple[str, ...]:
        filled = self._filled
        return (filled, "given_dim") if filled == "data" else (filled,) if filled else ()

    def known(self) -> tuple[str, ...]:
        """The sizes that its parts have from it."""
        if self.gives_sizes:
            return SIZES
        options = inspect.signature(self.function).parameters
        own = [n for n in ("latent_dim", *OF_NETWORKS) if n in options]
        return ("data_dim", "posterior", *own)

    @property
    def gives_sizes(self) -> bool:
        """Whether ``build`` takes parts without their sizes."""
        return self.path is None or self._filled == "data"

    def make(self, data: Any, seed: int) -> Any:
        """The program for a data set, its initial parameters drawn under ``seed``.

        Raises:
            ValueError: ``build`` or a part raised, sizes differ, or no program came out.
        """
        from pyro_vae.noise import Stream, seeded

        with seeded(*Stream.PARAMETERS.key(seed)):
            return self.built(data)

    def built(self, data: Any) -> Any:
        """Likewise, under whatever seed there is."""
        from torch import nn

        for each in (self, *self.inner()):
            each.require_writable()
        making: list[tuple[Any, Named]] = []
        try:
            program = self._called(data, making)
        except (Exception, SystemExit) as error:
            self._tell(error, making, data.dim)
            raise
        if not isinstance(program, nn.Module):
            if inspect.iscoroutine(program):
                program.close()  # or Python complains that nobody waits for it
            raise ValueError(
                f"{self.name}: build returned {type(program).__name__}, expected a program with "
                "model(x) and guide(x), such as a pv.Program"
            )
        return program

    def _called(self, data: Any, making: list[tuple[Any, Named]]) -> Any:
        options = inspect.signature(self.function).parameters
        positional, named = [], dict(self.options)
        filled = self._filled
        if filled is not None:
            value = data if filled == "data" else self._size(data)
            if options[filled].kind is inspect.Parameter.POSITIONAL_ONLY:
                positional.append(value)
            else:
                named[filled] = value
        if self.gives_sizes:
            parts = {slot: part.made(None, making) for slot, part in self.parts.items()}
            return self.function(*positional, **named, **parts)
        sizes = {n: self.options.get(n, options[n].default) for n in self.known() if n in options}
        sizes["data_dim"] = data.dim
        parts = {}
        for slot in sorted(self.parts, key=lambda slot: slot == "prior"):  # a prior may need q
            networks = FOLDERS[slot] == "networks"
            parts[slot] = self.parts[slot].made(None if networks else sizes, making)
            if slot == "posterior":
                sizes["posterior"] = parts[slot]
        return self.function(*positional, **named, **parts)

    @property
    def _filled(self) -> str | None:
        """The parameter that the data fill in: data, data_dim, or else a first one that needs it.

        ``data`` are the data set itself, the others numbers a row.
        """
        options = inspect.signature(self.function).parameters
        for name in ("data", "data_dim"):
            if name in options:
                return name
        for name, option in options.items():
            if option.kind in (option.POSITIONAL_ONLY, option.POSITIONAL_OR_KEYWORD):
                return name if option.default is option.empty else None
        return None

    def _size(self, data: Any) -> Any:
        """Numbers a row, or the shape of an image where ``build`` says that it takes one."""
        shape = data.train.event_shape
        kind = kind_of(self.function, self._filled or "")
        takes_shapes = kind is not None and bool(Flag("", kind).lists)
        return shape if takes_shapes and len(shape) > 1 else data.dim

    def _tell(self, error: BaseException, making: list[tuple[Any, Named]], data_dim: int) -> None:
        """Raise what to tell of an error: the line of a user's file, or the flag that it is of."""
        part = _at_work(error, making)
        if part is not None and (place := located(error, part.path)):
            raise ValueError(place) from error
        if place := located(error, self.path):
            raise ValueError(f"{place}, in build; make build({data_dim}) run") from error
        ours = isinstance(error, (ValueError, TypeError, RuntimeError, OverflowError))
        if ours and (part is not None or self.path is None):
            said = shortage(error) or (str(error).splitlines() or [type(error).__name__])[0]
            if part is not None:
                raise ValueError(f"--{part.flag} {part.name}: {said}") from error
            names = "|".join(inspect.signature(self.function).parameters)
            said = re.sub(rf"(?<![\w.-])({names})=([,;]?)(?!=)", r"--model.\1\2 ", said)
            raise ValueError(f"{self.name}: {' '.join(said.split())}") from error


def _at_work(error: BaseException, making: list[tuple[Any, Named]]) -> Named | None:
    """The part whose constructor was running: the innermost, by its object or by its class."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        me = frame.f_locals.get("self")
        exact = [part for made, part in making if me is not None and made is me]
        alike = {part.flag: part for _, part in making if type(me) is part.function}
        if exact or len(alike) == 1:
            return exact[0] if exact else next(iter(alike.values()))
    done = [part.flag for made, part in making if made is not None]
    begun = [part for _, part in making if part.flag not in done]
    return begun[-1] if begun else None
