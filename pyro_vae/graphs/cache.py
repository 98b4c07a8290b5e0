"""The compiler's cache on disk, from which a killed compilation's half of a library is taken out.

Torch lets the linker write a library in its final place and takes for whole what it finds there, so
after a kill in between no process can load it again; a library that only shows what the CPU can do
would change the code of all later graphs without a word.  A library that is whole ends with its
table of sections, which the first bytes point to.  Whoever writes one holds torch's lock of its
name, and is left alone.
"""

from __future__ import annotations

import logging
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pyro_vae.torch_internals import compile_cache

logger = logging.getLogger("pyro_vae")

ELF = struct.Struct("<40xQ10xHH")  # where the table of sections is; of how many bytes, how many
_swept: set[str] = set()  # folders, once a process: what is broken later shows when it is loaded


def is_whole(path: Path) -> bool:
    """Whether a library, as Linux has them, is all there.  Others are held to be."""
    try:
        with path.open("rb") as file:
            head, size = file.read(64), os.fstat(file.fileno()).st_size
    except OSError:
        return True  # gone, or not ours to read
    if len(head) < 64:
        return False
    if head[:6] != b"\x7fELF\x02\x01":
        return not head.startswith((b"\x7fELF", b"\0\0\0\0"))
    start, width, number = ELF.unpack_from(head)
    return start > 0 and number > 0 and start + width * number <= size


def sweep() -> None:
    """Take broken libraries out of the cache, so that they are built anew."""
    folder = compile_cache()
    if folder in _swept:
        return
    _swept.add(folder)
    _removed(path for path in Path(folder).glob("*/*.so") if not is_whole(path))


def removed_as_named(error: BaseException) -> bool:
    """Take out what an error of the compiler names in its cache; whether there was anything."""
    said, cause = "", error
    while cause is not None:
        said, cause = f"{said} {cause}", cause.__cause__ or cause.__context__  # type: ignore[assignment]
    folder = compile_cache()
    named = {Path(name) for name in re.findall(r"/[^\s:'\"]+?\.(?:so|o|gch|pch)\b", said)}
    return _removed(path for path in sorted(named) if str(path).startswith(folder + os.sep))


def _removed(paths: Iterator[Path]) -> bool:
    locks, found = Path(compile_cache()) / "locks", False
    for path in paths:
        try:
            with FileLock(locks / f"{path.name.partition('.')[0]}.lock", timeout=0):
                path.unlink(missing_ok=True)
        except (OSError, Timeout):  # another process writes it just now, or it is not ours
            continue
        logger.info("%s was left half written and is built anew", path)
        found = True
    return found
