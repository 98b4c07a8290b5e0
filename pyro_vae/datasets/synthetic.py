"""Data that a program made up: the truth is known, so recovery can be judged."""

from __future__ import annotations

from typing import Any

from pyro_vae import errors
from pyro_vae.datasets.data.arrays import from_array
from pyro_vae.datasets.data.base import Data


def synthetic(program: Any, num_data: int, *, like: Any = None, seed: int = 0) -> Data:
    """Draw a data set from a program's generative model: z ~ p(z), x ~ p(x | z).

    Args:
        program: any program, with the parameters that it has now.
        num_data: N.
        like: rows that say what x looks like, for programs that are no ``VAE``.
        seed: of the draws; the same seed gives the same data.

    Returns:
        :class:`Data` with x of shape (N, ...), neither scaled nor binarized.
    """
    num_data, seed = errors.whole("num_data", num_data), errors.seed_number(seed)
    from pyro_vae.predictive import sample

    made = sample(program, num_data, like=like, seed=seed)
    return from_array(
        {n: v.cpu() for n, v in made.items()} if isinstance(made, dict) else made.cpu()
    )
