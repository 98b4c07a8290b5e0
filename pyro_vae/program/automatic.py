"""Pyro's automatic guides, AutoNormal and its kin, for latents that all data share.

Such a guide makes its parameters at its first call, from the sites of the model.  For a latent of
each datum they would be parameters of the very rows that it was called with, of no use for others;
so these are refused, and a network has to say q(z | x).
"""

from __future__ import annotations

from typing import Any

import pyro
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.utils import _pytree as pytree


def run_automatic(guide: AutoGuide, *args: Any, **kwargs: Any) -> Any:
    """Call an automatic guide as its model is called; at the first call its parameters appear.

    Raises:
        TypeError: the model has a latent in the plate of the data.
    """
    if guide.prototype_trace is None:
        # Beside all handlers: what it makes are its own parameters, under their own names.
        with pyro.poutine.block():
            _require_shared_latents(guide, args, kwargs)
            guide._setup_prototype(*args, **kwargs)
    return guide(*args, **kwargs)


def _require_shared_latents(guide: AutoGuide, args: Any, kwargs: Any) -> None:
    tensors = (t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim())
    rows = next((len(t) for t in tensors), None)
    sites = pyro.poutine.trace(guide.model).get_trace(*args, **kwargs).nodes.values()
    sites = [s for s in sites if s["type"] == "sample" and not site_is_subsample(s)]
    of_rows = {
        frame.name
        for site in sites
        if site["is_observed"]
        for frame in site["cond_indep_stack"]
        if frame.name == "data" or frame.size == rows
    }
    for site in sites:
        for frame in site["cond_indep_stack"]:
            if frame.name in of_rows and not site["is_observed"]:
                raise TypeError(
                    f"the guide is {type(guide).__name__}, which would hold parameters for every "
                    f'row of the latent "{site["name"]}", in pyro.plate("{frame.name}", ...), and '
                    "so fits no minibatches: write a guide(x) with a network, as in "
                    "pyro_vae.models.bernoulli_vae, and leave the automatic guide the latents "
                    "that all data share"
                )
