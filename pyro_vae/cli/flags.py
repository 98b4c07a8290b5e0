"""Typed flags from a function's signature, in two steps, because they depend on the model.

The first step splits the command line into positional arguments and (flag, text) pairs, which
needs no types; a YAML file adds pairs in front.  Once model, objective and parts are known their
options are flags like all others, and jsonargparse turns text into typed values.

jsonargparse could name classes (subclass types) and read files (``action="config"``) as well.
Tried twice, and not used.  Sizes that the model gives fail there as values of a wrong type.  1e2 is
no whole number to it, 300,300 no list, and a bare ``--model.network.gated`` no switch.  A class of
another name is told as an import path that failed, any other mistake in two to ten lines, and the
types that it found, to say in one line what was expected, are in private attributes alone.  A file
is read whole, whatever it is.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import types
import typing
from collections import abc
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

SIMPLE = (int, float, bool, str, type(None), Path)
TRUTH = ("true", "false", "yes", "no")
LISTS = (list, tuple, abc.Sequence)  # of plain values; written 300,300 or [300, 300]


@dataclass(frozen=True)
class Flag:
    """One option: ``--name``, what may stand there, and what is meant where it is not given."""

    name: str
    kind: Any
    default: Any = None
    required: bool = False
    help: str = ""

    @property
    def many(self) -> bool:
        """Whether it takes several words."""
        return typing.get_origin(self.kind) is list

    @property
    def lists(self) -> list[Any]:
        """The kinds of lists that may stand there."""
        return [part for part in _parts(self.kind) if typing.get_origin(part) in LISTS]

    @property
    def words(self) -> tuple[str, ...]:
        """What may follow a switch, which says true where nothing does."""
        return (*TRUTH, *(str(v) for part in _parts(self.kind) for v in typing.get_args(part)))

    def expected(self) -> str:
        """Its type in words."""
        words: list[str] = []
        for part in _parts(self.kind):
            inner = typing.get_args(part)
            if typing.get_origin(part) is Literal:
                words += map(str, inner)
            elif part in self.lists and not self.many:
                several = {int: "whole numbers", float: "finite numbers"}.get(inner[0], "values")
                count = f"{len(inner)} " if typing.get_origin(part) is tuple else ""
                words.append(f"{count if ... not in inner else ''}{several} with commas between")
            else:
                words.append(SAID.get(part, "a list"))
        return " or ".join(words)

    def prepared(self, text: str) -> str:
        """Spellings that YAML does not know: None, 1e6 for a whole number, a list with commas."""
        parts = _parts(self.kind)
        if (type(None) in parts or Any in parts) and str not in parts and text in ("None", "none"):
            return "null"
        if self.many:
            return json.dumps([part for part in re.split(r"[\[\]\"',\s]+", text) if part])
        if self.lists and (len(self.lists) == len(parts) or re.search(r"[\[(,]", text)):
            inner = [part for part in re.split(r"[\[\]()\"',\s]+", text) if part]
            numbers = typing.get_args(self.lists[0])[:1]
            return f"[{', '.join(_whole_number(part, numbers) for part in inner)}]"
        return _whole_number(text, parts)

    def taken(self, value: Any) -> Any:
        """The value as functions have it: lists of numbers are tuples."""
        return tuple(value) if self.lists and not self.many and type(value) is list else value


SAID = {
    int: "a whole number", float: "a finite number", bool: "true or false", str: "text",
    Path: "a path", type(None): "null", Any: "a value",
}  # fmt: skip


def _whole_number(text: str, kinds: Sequence[Any]) -> str:
    """1e6 as 1000000, where a whole number is meant."""
    if int in kinds and float not in kinds and re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d{1,2}", text):
        return f"{float(text):.0f}" if float(text).is_integer() else text
    return text


def _parts(kind: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def flags_of(
    function: Callable[..., Any], prefix: str = "", skip: Collection[str | None] = ()
) -> list[Flag]:
    """The keyword parameters with plain types, or none written; objects are no flags."""
    about = explained(function)
    flags = []
    for name, option in inspect.signature(function).parameters.items():
        if name in skip or option.kind not in (option.KEYWORD_ONLY, option.POSITIONAL_OR_KEYWORD):
            continue
        kind = kind_of(function, name)
        if kind is not None:
            required = option.default is option.empty
            default = None if required else option.default
            flags.append(Flag(prefix + name, kind, default, required, about.get(name, "")))
    return flags


def kind_of(function: Callable[..., Any], name: str) -> Any:
    """The plain type of a parameter, ``Any`` where none is written, or None: an object's."""
    option = inspect.signature(function).parameters[name]
    kind = option.annotation
    if isinstance(function, type):
        from pyro_vae.recording.signatures import kinds_of  # torch comes with it

        kind = kinds_of(function).get(name, kind)
    elif isinstance(kind, str):
        scope = getattr(inspect.unwrap(function), "__globals__", {})
        one = types.SimpleNamespace(__annotations__={"kind": kind})
        try:
            kind = typing.get_type_hints(one, globalns=scope)["kind"]
        except Exception:  # a name that only a type checker imports is that of an object
            return None
    if kind is option.empty:
        plain = type(option.default) in (int, float, bool, str)
        unknown = option.default is None or option.default is option.empty
        kind = type(option.default) if plain else Any if unknown else None
    return kind if all(map(_is_plain, _parts(kind))) else None


def _is_plain(kind: Any) -> bool:
    if typing.get_origin(kind) in LISTS:
        inner = typing.get_args(kind)
        return bool(inner) and all(each in (int, float, str, ...) for each in inner)
    return kind in (*SIMPLE, Any) or typing.get_origin(kind) is Literal


def explained(function: Callable[..., Any]) -> dict[str, str]:
    """Name -> text, from the section ``Args:`` of a docstring, and of those of a class's bases."""
    found: dict[str, str] = {}
    names: list[str] = []
    for each in reversed(function.__mro__ if isinstance(function, type) else [function]):
        doc = inspect.cleandoc(each.__doc__ or "")
        section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.M)
        for line in section[1].splitlines() if section else []:
            if entry := re.match(r"    (\w[\w, ]*): (.*)", line):
                names = [name.strip() for name in entry[1].split(",")]
                found |= dict.fromkeys(names, entry[2].strip())
            elif line.strip():
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: plain(text).replace("%", "%%") for name, text in found.items()}


def plain(text: str) -> str:
    """A docstring's words without its marks: ``code``, and roles such as :class:`Name`."""
    return re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "")


# --- the first step -----------------------------------------------------------------------------


class Given(NamedTuple):
    """A command line, split and not yet typed; text is None where a flag got no value."""

    positionals: list[str]
    pairs: list[tuple[str, str | None]]
    help: bool

    def last(self, name: str) -> str | None:
        """What a flag was given last."""
        return last(self.pairs, name)


def last(pairs: Sequence[tuple[str, str | None]], name: str) -> str | None:
    """What stands last for a flag, or for its name: ``model`` is ``model.name``."""
    texts = [text for flag, text in pairs if flag in (name, f"{name}.name")]
    return texts[-1] if texts else None


def split(
    arguments: Sequence[str], flags: Sequence[Flag], config: Sequence[tuple[str, str]] = ()
) -> Given:
    """Dashes and underscores are one; ``--flag value`` and ``--flag=value`` too.

    The pairs of ``config`` stand in front, so that the command line wins.
    """
    known = {flag.name: flag for flag in flags}
    asked = any(a in ("-h", "--help") for a in arguments)
    given, left = Given([], [(_whole(n, known), text) for n, text in config], asked), [*arguments]
    while left:
        token = left.pop(0)
        if not token.startswith("--"):
            if token != "-h":
                given.positionals.append(token)
            continue
        name, equals, text = token[2:].partition("=")
        name = _whole(name, known)
        if name == "help":
            continue
        flag, value = known.get(name), text if equals else None
        has_next = bool(left) and not left[0].startswith("--")
        if value is None and flag is not None and flag.many:
            values = []
            while left and not left[0].startswith("--"):
                values.append(left.pop(0))
            value = ",".join(values)
        elif value is None and flag is not None and bool in _parts(flag.kind):
            value = left.pop(0) if has_next and left[0].lower() in flag.words else "true"
        elif value is None and has_next:
            value = left.pop(0)
        given.pairs.append((name, value))
    return given


def _whole(name: str, known: Collection[str]) -> str:
    """``model`` has options of its own, ``model.x``, so which one it is is kept by its name."""
    name = name.replace("-", "_")
    return f"{name}.name" if f"{name}.name" in known else name


# --- the second step ----------------------------------------------------------------------------


def parser_of(prog: str, about: str, flags: Sequence[Flag]) -> Any:
    """A jsonargparse parser of these flags."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(prog=prog, description=about, exit_on_error=False)
    for flag in flags:
        shown = flag.name.removesuffix(".name").rpartition(".")[2].upper()
        choice: dict[str, Any] = {}
        if flag.kind is not bool and typing.get_origin(flag.kind) is not Literal:
            choice["metavar"] = shown
        parser.add_argument(
            f"--{flag.name}", type=flag.kind, default=flag.default,
            help=f"{flag.help} (needed)" if flag.required else flag.help or None, **choice,
        )  # fmt: skip
    return parser


def typed(parser: Any, pairs: Sequence[tuple[str, str | None]], flags: Sequence[Flag]) -> dict:
    """Values by name, of those that were given.

    Raises:
        ValueError: an unknown flag, one without a value, or a value of another type.
    """
    import jsonargparse

    known = {flag.name: flag for flag in flags}
    for name, text in pairs:
        if name not in known:
            raise ValueError(nearest(f"--{name}", [f"--{_shown(each)}" for each in known]))
        if text is None:
            raise ValueError(f"--{_shown(name)} needs a value: {known[name].expected()}")
        if "\0" in text or (not text.strip() and Path in _parts(known[name].kind)):
            raise ValueError(f"--{_shown(name)} is {text!r}, expected {known[name].expected()}")
    for flag in flags:
        if flag.required and not any(name == flag.name for name, _ in pairs):
            raise ValueError(f"--{_shown(flag.name)} is needed: {flag.expected()}")
    last = {name: known[name].prepared(text or "") for name, text in pairs}
    try:
        found = parser.parse_args([f"--{name}={text}" for name, text in last.items()])
    except jsonargparse.ArgumentError as error:
        wrong = re.search(r'[Kk]ey "([\w.]+)"', str(error))
        if wrong is None or wrong[1] not in last:
            raise ValueError(" ".join(str(error).split())) from None
        name = wrong[1]
        raise ValueError(
            f"--{_shown(name)} is {last[name]!r}, expected {known[name].expected()}"
        ) from None
    return {name: known[name].taken(found[name]) for name in last}


def _shown(name: str) -> str:
    return name.removesuffix(".name")


def nearest(name: str, known: Sequence[str]) -> str:
    """``unknown "X", did you mean "Y"? known: ...``."""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.3)
    hint = f', did you mean "{by_lower[close[0]]}"?' if close else ","
    return f'unknown "{name}"{hint} known: {", ".join(known)}'
