"""The file of ``--config``: options in YAML, nested or dotted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pyro_vae.cli.building import FOLDERS
from pyro_vae.errors import regular_file

# Options are some lines.  A few hundred bytes of anchors can stand for gigabytes, and a list in a
# list in a list for a stack that overflows, so neither is followed.
MAX_BYTES, MAX_DEPTH = 65_536, 8


def read_config(path: str | None) -> list[tuple[str, str]]:
    """Its options as (flag, text); of a list of parts each in its turn.

    Raises:
        ValueError: no file, no YAML, no options, or more than options.
    """
    import yaml  # type: ignore[import-untyped]

    if not path:
        raise ValueError("--config needs a value: a YAML file")
    shown = f"--config {path}"
    file = regular_file(path, shown, "name a YAML file")
    try:
        with open(file, "rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
        content = _loaded(_flat_text(raw, shown))
    except OSError as error:
        raise ValueError(f"{shown}: {error.strerror}; name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        problem = getattr(error, "problem", None) or "is no text in UTF-8"
        raise ValueError(f"{shown}{line}: {problem}; write `option: value` lines") from None
    except _NoValue as error:
        raise ValueError(f"{shown}: {error}; write `option: value` lines") from None
    if not isinstance(content, dict):
        raise ValueError(f"{shown}: holds no options; write `option: value` lines")
    if "config" in content:
        raise ValueError(f"{shown}: names another file; one file holds all options")
    return list(_flat(content, shown))


class _NoValue(Exception):
    """A date of no calendar, a number of thousands of digits."""


def _loaded(text: str) -> Any:
    """The values of plain YAML; unlike others' readers' this takes no key twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                said = str(self.construct_object(key, deep=True))
                if said in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"{said!r} stands there twice", key.start_mark
                    )
                seen.add(said)
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)  # of what is safe
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise _NoValue(str(error).partition(";")[0]) from error


def _flat_text(raw: bytes, shown: str) -> str:
    """The text, once it is known to stand for no more than it says."""
    import yaml

    if len(raw) > MAX_BYTES:
        raise ValueError(f"{shown}: has more than {MAX_BYTES:,} bytes, expected options")
    depth, text = 0, raw.decode()
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        wrong = f"is nested more than {MAX_DEPTH} deep" if depth > MAX_DEPTH else ""
        if isinstance(event, yaml.AliasEvent):
            wrong = f"*{event.anchor} repeats a value"
        if wrong:
            raise ValueError(f"{shown}:{event.start_mark.line + 1}: {wrong}, expected options")
    return text


def _flat(
    content: dict[Any, Any], shown: str, prefix: str = "", seen: set[str] | None = None
) -> Iterator[tuple[str, str]]:
    """Pairs of flag and text; ``seen`` are the flags so far, each of which stands once."""
    seen = set() if seen is None else seen
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _flat(value, shown, f"{name}.", seen)
        elif isinstance(value, list) and str(key) in FOLDERS:  # several parts, to compare
            for each in value:
                inner = each if isinstance(each, dict) else {"name": each}
                yield from _flat({"name": None, **inner}, shown, f"{name}.")
        else:
            flag = name.replace("-", "_").removesuffix(".name")
            if flag in seen:
                raise ValueError(f"{shown}: {name} is said twice; say it once")
            seen.add(flag)
            yield name, value if isinstance(value, str) else json.dumps(value, default=str)
