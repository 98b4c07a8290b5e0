"""What a diagnosis found, in words with numbers, and how often such words are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

Verdict = Literal["good", "bad", "note"]


class Finding(NamedTuple):
    """One answer to one question about a posterior.

    Attributes:
        question: what was asked, such as "calibration".
        verdict: "bad" where something is wrong, "good" where a test found nothing, "note" where
            there is nothing to judge.
        text: the answer in one or two sentences, with numbers, data by index, latents by name.
        level: how often the verdict is "bad" for a guide that is the exact posterior and data of
            the model's own; 0 where it never is, None where nothing is judged.
    """

    question: str
    verdict: Verdict
    text: str
    level: float | None = None


def named(items: Sequence[object], most: int = 5) -> str:
    """Indices of data, or names, for a sentence: "3, 17, 40 and 5 more"."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
