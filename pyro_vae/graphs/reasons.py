"""Why something was not compiled, in a line, with what to do where that is known."""

from __future__ import annotations

import re
import sys

SAYS = "the C++ compiler says:"


def may_end_well(error: Exception) -> bool:
    """Whether it may be the cache, or vector instructions that a compiler of old does not know.

    Else something is known to be wrong: no compiler, no headers, a folder.
    """
    said = reason_of(error)
    return said.startswith(("the compiler failed", SAYS)) and "Python.h" not in said


def reason_of(error: Exception) -> str:
    text = str(error).strip()
    if "InvalidCxxCompiler" in f"{type(error).__name__} {text}" or "No working C++" in text:
        return "no C++ compiler was found (on Debian or Ubuntu: apt install g++)"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.filename is not None:
            return (
                f"the compiler's cache cannot be written ({cause.filename}: {cause.strerror}): set "
                "TORCHINDUCTOR_CACHE_DIR to a folder that can"
            )
        cause = cause.__cause__ or cause.__context__
    lines = text.splitlines() or [""]
    if "C++ compile error" in text:
        return _compilers_reason(lines)
    return f"the compiler failed, {type(error).__name__}: {lines[0][:160]}"


def _compilers_reason(lines: list[str]) -> str:
    """The first error of a C++ compiler's output, and what to do where that is known."""
    output = lines[lines.index("Output:") + 1 :] if "Output:" in lines else lines
    said = next((line for line in output if re.search(r"\berror\b", line)), "")
    said = " ".join((said or next(filter(str.strip, output), lines[0])).split())
    advice = ""
    if "Python.h" in said:
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        advice = (
            f"; install Python's headers (on Debian or Ubuntu: apt install {python}-dev, or "
            "python3-dev for the system's own)"
        )
    if " " in sys.prefix:
        advice += f"; torch cannot compile below a path with a space, {sys.prefix}: move it"
    return f"{SAYS} {said[:200]}{advice}"
