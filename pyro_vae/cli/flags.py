"""Typed flags from a function's signature, in two steps, because they depend on the model.

The first step splits the command line into positional arguments and (flag, text) pairs, which
needs no types; a YAML file adds pairs in front.  Once model and objective are known their options
are flags like all others, and jsonargparse turns text into typed values.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

SIMPLE = (int, float, bool, str, type(None), Path)
TRUTH = ("true", "false", "yes", "no")
CHOSEN = ("model", "objective")  # `--model.x` are its options, so its name is kept as `model.name`


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
        """Whether it takes several values."""
        return typing.get_origin(self.kind) is list

    def expected(self) -> str:
        """Its type in words."""
        names = {int: "a whole number", float: "a finite number", bool: "true or false",
                 str: "text", Path: "a path", type(None): "null"}  # fmt: skip
        words: list[str] = []
        for part in _parts(self.kind):
            values = typing.get_args(part) if typing.get_origin(part) is Literal else ()
            words += map(str, values) if values else [names.get(part, "a list")]
        return " or ".join(words)

    def prepared(self, text: str) -> str:
        """Spellings that YAML does not know: None, 1e6 for a whole number, a list with commas."""
        parts = _parts(self.kind)
        if type(None) in parts and str not in parts and text in ("None", "none"):
            return "null"
        if int in parts and float not in parts and re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d{1,2}", text):
            return f"{float(text):.0f}" if float(text).is_integer() else text
        if self.many:
            return json.dumps([part for part in re.split(r"[\[\]\"',\s]+", text) if part])
        return text


def _parts(kind: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if is_union else (kind,)


def flags_of(
    function: Callable[..., Any], prefix: str = "", skip: Sequence[str] = ()
) -> list[Flag]:
    """The keyword parameters with simple types; objects, such as a prior, are no flags."""
    explained = _explained(inspect.getdoc(function) or "")
    written: Any = inspect.unwrap(function)
    if isinstance(function, type):
        written = vars(function).get("__init__", function)
    scope = getattr(written, "__globals__", {})
    flags = []
    for name, option in inspect.signature(function).parameters.items():
        if name in skip or option.kind not in (option.KEYWORD_ONLY, option.POSITIONAL_OR_KEYWORD):
            continue
        kind = _type(option, scope)
        if kind is not None:
            required = option.default is option.empty
            default = None if required else option.default
            flags.append(Flag(prefix + name, kind, default, required, explained.get(name, "")))
    return flags


def _type(option: inspect.Parameter, scope: dict[str, Any]) -> Any:
    kind = option.annotation
    if isinstance(kind, str):
        one = types.SimpleNamespace(__annotations__={"kind": kind})
        try:
            kind = typing.get_type_hints(one, globalns=scope)["kind"]
        except Exception:  # a name that only a type checker imports is that of an object
            return None
    if kind is option.empty:
        kind = type(option.default) if type(option.default) in (int, float, bool, str) else None
    if kind is None:
        return None
    simple = all(p in SIMPLE or typing.get_origin(p) is Literal for p in _parts(kind))
    return kind if simple or kind == list[str] else None


def _explained(docstring: str) -> dict[str, str]:
    """Name -> text, from the section ``Args:``."""
    found: dict[str, str] = {}
    names: list[str] = []
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", docstring, re.M)
    for line in section[1].splitlines() if section else []:
        if entry := re.match(r"    (\w[\w, ]*): (.*)", line):
            names = [name.strip() for name in entry[1].split(",")]
            found |= dict.fromkeys(names, entry[2].strip())
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: text.replace("``", "").replace("%", "%%") for name, text in found.items()}


# --- the first step -----------------------------------------------------------------------------


class Given(NamedTuple):
    """A command line, split and not yet typed; text is None where a flag got no value."""

    positionals: list[str]
    pairs: list[tuple[str, str | None]]
    help: bool

    def last(self, name: str) -> str | None:
        """What a flag was given last."""
        texts = [text for flag, text in self.pairs if flag == name]
        return texts[-1] if texts else None


def split(arguments: Sequence[str], flags: Sequence[Flag]) -> Given:
    """Dashes and underscores are one; ``--flag value`` and ``--flag=value`` too."""
    known = {flag.name: flag for flag in flags}
    given, left = Given([], [], any(a in ("-h", "--help") for a in arguments)), list(arguments)
    while left:
        token = left.pop(0)
        if not token.startswith("--"):
            if token != "-h":
                given.positionals.append(token)
            continue
        name, equals, text = token[2:].partition("=")
        name = name.replace("-", "_")
        name = f"{name}.name" if name in CHOSEN else name
        if name == "help":
            continue
        flag, value = known.get(name), text if equals else None
        has_next = bool(left) and not left[0].startswith("--")
        if value is None and flag is not None and flag.many:
            values = []
            while left and not left[0].startswith("--"):
                values.append(left.pop(0))
            value = ",".join(values)
        elif value is None and flag is not None and flag.kind is bool:
            value = left.pop(0) if has_next and left[0].lower() in TRUTH else "true"
        elif value is None and has_next:
            value = left.pop(0)
        given.pairs.append((name, value))
    return given


def with_config(given: Given) -> Given:
    """The pairs of the file of ``--config`` in front, so that the command line wins."""
    pairs: list[tuple[str, str | None]] = []
    for name, text in given.pairs:
        if name == "config":
            pairs += _config(text)
    rest = [pair for pair in given.pairs if pair[0] != "config"]
    return given._replace(pairs=pairs + rest)


def _config(path: str | None) -> list[tuple[str, str | None]]:
    import yaml  # type: ignore[import-untyped]

    if not path:
        raise ValueError("--config needs a value: a YAML file")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}; name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        problem = getattr(error, "problem", None) or "no text"
        raise ValueError(f"--config {path}{line}: {problem}; write `option: value` lines") from None
    if not isinstance(content, dict):
        raise ValueError(f"--config {path}: holds no options; write `option: value` lines")
    return list(_flat(content))


def _flat(content: dict[Any, Any], prefix: str = "") -> Any:
    for key, value in content.items():
        name = prefix + str(key).replace("-", "_")
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            name = f"{name}.name" if name in CHOSEN else name
            yield name, value if isinstance(value, str) else json.dumps(value, default=str)


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
    """Values by name.

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
    for flag in flags:
        if flag.required and not any(name == flag.name for name, _ in pairs):
            raise ValueError(f"--{flag.name} is needed: {flag.expected()}")
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
    return {name: found[name] for name in known}


def _shown(name: str) -> str:
    return name.removesuffix(".name")


def nearest(name: str, known: Sequence[str]) -> str:
    """``unknown "X", did you mean "Y"? known: ...``."""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.3)
    hint = f', did you mean "{by_lower[close[0]]}"?' if close else ","
    return f'unknown "{name}"{hint} known: {", ".join(known)}'
