"""How to make a run again: its lines of Python, its seeds and versions."""

from __future__ import annotations

import textwrap
from typing import Any

from pyro_vae.reporting.parts import Section


def reproduction(manifest: Any, build: Any, command: str | None, where: str | None) -> Section:
    """What to type, and under which versions the numbers came about.

    Args:
        manifest: of the run; empty where there is none.
        build: the record of the program's ``build``, or None.
        command: the command line that made the page, or None.
        where: the folder that the run was loaded from, or None.
    """
    section = Section("again", "How to make it again")
    lines = [] if command is None else [f"$ {command}", ""]
    if manifest:
        lines += ["import torch, pyro_vae as pv"]
        if where is not None:
            lines += [f"run = pv.load({where!r})  # as it is", "", "# or from the beginning"]
        if build:
            options = [f"{n}={_told(v)}" for n, v in build["options"].items() if v is not None]
            look = {"width": 88, "initial_indent": "    ", "subsequent_indent": "    "}
            inside = textwrap.wrap(", ".join(options), **look)  # type: ignore[arg-type]
            lines += [
                f"from pyro_vae.models import {build['model']}",
                f"torch.manual_seed({manifest['seed']})  # of the initial parameters: as you did",
                f"program = {build['model']}.build(",
                *inside,
                ")",
            ]
        else:
            lines += [f"program = ...  # your {manifest['program']}"]
        lines += [
            f"data = ...  # {manifest['num_data']:,} rows, binarize {manifest['binarize']}, sha256 "
            f"{manifest['data_digest'][:16]}...",
            "run = pv.fit(",
            f"    program, data, pv.objectives.{manifest['objective']},",
            f"    steps={manifest['steps']}, batch_size={manifest['batch_size']}, "
            f"seed={manifest['seed']},",
            f"    optimizer=torch.optim.{manifest['optimizer']}, lr={manifest['lr']}, "
            f"clip={manifest.get('clip')},",
            ")",
        ]
        section.facts = [(name, str(version)) for name, version in manifest["versions"].items()]
        section.facts += [(name, str(manifest[name])) for name in ("device", "threads", "seed")]
        if manifest.get("source_digest"):
            section.facts.append(
                ("sha256 of the program's source", f"{manifest['source_digest'][:16]}…")
            )
    section.code = "\n".join(lines)
    return section


def _told(value: Any) -> str:
    return "..." if isinstance(value, dict) and "!" in value else repr(value)
