"""One at a time: threads take turns, and what goes wrong in a turn leaves no mark."""

from pyro_vae.turns.taking import (
    has_turn,
    in_plain_surroundings,
    in_turn,
    out_of_turn,
    taking_turns,
)

__all__ = ["has_turn", "in_plain_surroundings", "in_turn", "out_of_turn", "taking_turns"]
