"""The paper's figures, computed anew: ``figure_2.reproduce(budget=1e6)`` or ``pyro-vae reproduce``.

One file a figure, each with ``reproduce(...)``, which returns a :class:`Reproduction`: numbers, a
table of differences to the published curves, a picture, and words.  What was computed stays in a
folder, so that a second call goes on from the first.

Source: Kingma & Welling (2014), arXiv:1312.6114.
"""

from pyro_vae.paper.published import Published, published
from pyro_vae.paper.reproducing import FIGURES, read, reproduce
from pyro_vae.paper.reproduction import Reproduction

__all__ = ["FIGURES", "Published", "Reproduction", "published", "read", "reproduce"]
