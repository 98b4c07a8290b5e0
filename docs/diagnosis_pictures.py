r"""The pictures of docs/diagnosis.md: ``python docs/diagnosis_pictures.py`` (about a minute).

Each question is drawn for a guide that is the exact posterior and for one that is wrong in the way
that the question asks about, both of linear-Gaussian models, whose posteriors are known.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import pyro_vae as pv
from pyro_vae.calibration import simulate
from pyro_vae.models import linear_gaussian

OUT = Path(__file__).parent / "diagnosis"
WIDTH = 900  # pixels a picture


def oracle(posterior: Any = "full") -> Any:
    """A model of ten numbers and four latents, the last of which says little."""
    torch.manual_seed(1)
    weight = torch.randn(10, 4) * torch.tensor([1.2, 0.8, 0.5, 0.1])
    weight[:, 1] += weight[:, 0]  # the first two hang together in the posterior
    return linear_gaussian.build(10, latent_dim=4, posterior=posterior, weight=weight)


def good() -> Any:
    program = oracle()
    program.guide_is_exact_posterior()
    return program


def bad() -> Any:
    """The best guide of independent latents, off a little and ignoring the third latent."""
    program = oracle("diagonal")
    program.guide_is_best()
    with torch.no_grad():
        program.guide_weight[0] *= 0.8
        program.guide_weight[2] = 0.0
        program.guide_bias[1] += 0.15
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    own = simulate(good(), 1000, like=torch.zeros(2, 10), seed=5).x
    strange = own * torch.linspace(0.8, 1.6, 10)  # data that the model does not make
    for name, program, x in (("good", good(), own), ("bad", bad(), strange)):
        found = pv.diagnose(program, x, num_close=30)
        print(f"{found}\n")
        for question, figure in found.plot(out).items():
            path = out / f"{question}_{name}.png"
            figure.savefig(path, dpi=110)
            (out / f"{question}.png").unlink(missing_ok=True)
            with Image.open(path) as picture:
                height = round(picture.height * WIDTH / picture.width)
                small = picture.convert("RGB").resize((WIDTH, height), Image.LANCZOS)
            small.quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    main()
