"""Programs: a generative model and its guide as ordinary Pyro functions, in one module.

========= ========================================================================
base      :class:`Program`: parameters that announce themselves to Pyro
vae       :class:`VAE`: a program from a prior, a likelihood and a posterior
rows      what a program is called with
arguments how its functions take them: whole, or the entries of a dict by name
inputs    what users pass as data, brought into that form
calling   a program at other parameters, or in evaluation mode
========= ========================================================================
"""

from pyro_vae.program.base import Program
from pyro_vae.program.calling import (
    Parameters,
    call_with,
    evaluating,
    materialize,
    require_program,
    trainable,
)
from pyro_vae.program.inputs import as_rows, as_tensor
from pyro_vae.program.rows import Rows, map_rows, num_rows, observed_rows
from pyro_vae.program.vae import VAE, built_by_name

__all__ = [
    "VAE",
    "Parameters",
    "Program",
    "Rows",
    "as_rows",
    "as_tensor",
    "built_by_name",
    "call_with",
    "evaluating",
    "map_rows",
    "materialize",
    "num_rows",
    "observed_rows",
    "require_program",
    "trainable",
]
