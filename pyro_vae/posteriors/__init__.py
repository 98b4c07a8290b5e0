"""Posteriors: modules that return q(z | x).  One file a kind; found by listing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_vae.posteriors.suiting import fits as fits
from pyro_vae.posteriors.suiting import suggested as suggested
from pyro_vae.posteriors.suiting import suited as suited
from pyro_vae.recording.listing import exported, names_in

if TYPE_CHECKING:  # a class in a new file needs no entry: it is found, and is Any to type checkers
    from pyro_vae.posteriors.gaussian import Gaussian as Gaussian

ALSO = ("fits", "suggested", "suited")


def __getattr__(name: str) -> Any:
    return exported(__name__, name, ALSO)


def __dir__() -> list[str]:
    return names_in(__name__, ALSO)
