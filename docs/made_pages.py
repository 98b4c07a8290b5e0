"""Pages that are made at each build: the API reference, from the package's own lists of names, and
copies of the notebooks, which stand outside of this folder.

A part or an objective in a new file appears without an entry here, because its folder lists it.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "api"

# page -> (title, a sentence, (heading, module, names or None for all that it lists) ...)
PAGES: dict[str, tuple[str, str, tuple[tuple[str, str, tuple[str, ...] | None], ...]]] = {
    "programs": (
        "Programs and their parts",
        "A program is a model with its guide; a part a prior, a likelihood or a posterior.",
        (
            ("Programs", "pyro_vae", ("Program", "VAE", "check")),
            ("Contracts of parts", "pyro_vae", ("Prior", "Likelihood", "Posterior")),
        ),
    ),
    "training": (
        "Training and comparing",
        "``fit`` trains a program and returns a run; ``compare`` trains several alike.",
        (
            ("Training", "pyro_vae", ("fit", "Run", "load")),
            ("Comparing", "pyro_vae", ("compare", "Comparison")),
            (
                "Beside an auto-encoder",
                "pyro_vae",
                ("compare_autoencoder", "AutoencoderComparison"),
            ),
            ("Gradients", "pyro_vae", ("gradient_report", "GradientReport")),
            ("Step sizes", "pyro_vae.optimizers", ("Adagrad",)),
            ("Engine", "pyro_vae.engine", None),
        ),
    ),
    "using": (
        "Using a trained program",
        "Draws, codes, decoded latents, reconstructions.",
        (
            ("Predictions", "pyro_vae", ("sample", "encode", "decode", "reconstruct")),
            ("ArviZ", "pyro_vae", ("to_inference_data", "summarize")),
        ),
    ),
    "evidence": (
        "log p(x)",
        "Estimates for each datum that say how far to trust them.",
        (
            ("The two that are used most", "pyro_vae", ("elbo", "log_evidence")),
            ("What they return, and comparing it", "pyro_vae", ("Evidence", "compare_evidence")),
            (
                "More bounds",
                "pyro_vae.evidence",
                (
                    "ChiSquareBound",
                    "chi_square_bound",
                    "predicted_bias",
                    "from_log_weights",
                    "from_reciprocal_weights",
                ),
            ),
        ),
    ),
    "diagnosis": (
        "Diagnosis",
        "How far to trust a posterior.",
        (
            ("The page", "pyro_vae", ("diagnose", "Diagnosis")),
            ("Better draws", "pyro_vae", ("refine", "Refinement")),
            (
                "One question at a time",
                "pyro_vae.diagnostics",
                (
                    "Finding",
                    "gaps",
                    "predictive_checks",
                    "misspecification",
                    "rate_distortion",
                    "pareto_khat",
                    "split_rhat",
                    "integrated_time",
                ),
            ),
            ("Calibration", "pyro_vae.calibration", None),
            ("Chains", "pyro_vae.chains", None),
        ),
    ),
    "objectives": ("Objectives", "What is ascended.", (("", "pyro_vae.objectives", None),)),
    "priors": ("Priors", "Modules that return p(z).", (("", "pyro_vae.priors", None),)),
    "likelihoods": (
        "Likelihoods",
        "Modules that return p(x | z).",
        (("", "pyro_vae.likelihoods", None),),
    ),
    "posteriors": (
        "Posteriors",
        "Modules that return q(z | x).",
        (("", "pyro_vae.posteriors", None),),
    ),
    "networks": ("Networks", "What encoders and decoders are.", (("", "pyro_vae.networks", None),)),
    "distributions": (
        "Distributions",
        "Laws that Pyro lacks.",
        (("", "pyro_vae.distributions", None),),
    ),
    "models": (
        "Models",
        "Programs that are ready: one file each.",
        (("", "pyro_vae.models", None),),
    ),
    "datasets": ("Data sets", "Ours, and your own arrays.", (("", "pyro_vae.datasets", None),)),
    "plotting": (
        "Pictures",
        "Arrays or our objects in, Axes out.",
        (("", "pyro_vae.plotting", None),),
    ),
}


def names_of(module: Any) -> list[str]:
    """Public names: ``__all__``, or what the module's ``dir`` lists, without modules."""
    names = getattr(module, "__all__", None) or [n for n in dir(module) if not n.startswith("_")]
    return [name for name in names if not inspect.ismodule(getattr(module, name))]


def entry(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    full = f"{module}.{name}"
    if inspect.isclass(value):
        return f".. autoclass:: {full}\n   :members:\n"
    return f".. autofunction:: {full}\n" if callable(value) else f".. autodata:: {full}\n"


def page(title: str, sentence: str, parts: Any) -> str:
    lines = [title, "=" * len(title), "", sentence, ""]
    for heading, module, names in parts:
        if heading:
            lines += [heading, "-" * len(heading), ""]
        if module == "pyro_vae.models":
            lines += models()
        else:
            found = names_of(importlib.import_module(module)) if names is None else names
            lines += [entry(module, name) for name in found]
    return "\n".join(lines) + "\n"


def models() -> list[str]:
    """The modules themselves: a model file opens with its mathematics."""
    import pkgutil

    import pyro_vae.models as folder

    found = sorted(m.name for m in pkgutil.iter_modules(folder.__path__))
    return [f".. automodule:: pyro_vae.models.{name}\n   :members:\n" for name in found]


def write() -> None:
    HERE.mkdir(exist_ok=True)
    for name, about in PAGES.items():
        write_if_changed(HERE / f"{name}.rst", page(*about))
    index = ["API reference", "=============", "", ".. toctree::", "   :maxdepth: 1", ""]
    write_if_changed(
        HERE / "index.rst", "\n".join([*index, *(f"   {name}" for name in PAGES)]) + "\n"
    )


def copy_notebooks() -> None:
    """To docs/notebooks: Sphinx reads nothing outside of its folder."""
    folder = HERE.parent / "notebooks"
    folder.mkdir(exist_ok=True)
    originals = {path.name: path for path in (HERE.parents[1] / "notebooks").glob("*.ipynb")}
    for old in folder.glob("*.ipynb"):
        if old.name not in originals:
            old.unlink()
    for name, path in originals.items():
        text = path.read_text(encoding="utf-8").replace("](../docs/", "](../")
        write_if_changed(folder / name, text)


def write_if_changed(path: Path, text: str) -> None:
    """Sphinx reads again what is newer than its page."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
