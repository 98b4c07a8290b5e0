"""Networks of the parts.  One file a kind; classes are found by listing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro_vae.networks.base import Network as Network
from pyro_vae.networks.mlp import positive as positive
from pyro_vae.recording.listing import exported, names_in

if TYPE_CHECKING:  # a class in a new file needs no entry: it is found, and is Any to type checkers
    from pyro_vae.networks.mlp import MLP as MLP

ALSO = ("Network", "positive")


def __getattr__(name: str) -> Any:
    return exported(__name__, name, ALSO)


def __dir__() -> list[str]:
    return names_in(__name__, ALSO)
