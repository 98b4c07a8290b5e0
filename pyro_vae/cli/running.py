"""One verb, from the words of a command line to an exit code."""

from __future__ import annotations

import functools
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyro_vae.cli.alternatives import Pairs, alternatives, names_a_part
from pyro_vae.cli.building import Model
from pyro_vae.cli.config import read_config
from pyro_vae.cli.finding import find_model, require_named, with_parts
from pyro_vae.cli.flags import Flag, Given, flags_of, last, nearest, parser_of, split, typed
from pyro_vae.cli.sources import find_objective
from pyro_vae.cli.stopping import Stop
from pyro_vae.cli.telling import Notes, complain
from pyro_vae.cli.userfiles import located, shortage, told, words_of
from pyro_vae.cli.verbs.check import run_check
from pyro_vae.cli.verbs.compare import run_compare
from pyro_vae.cli.verbs.data import run_data
from pyro_vae.cli.verbs.diagnose import run_diagnose
from pyro_vae.cli.verbs.evidence import run_evidence
from pyro_vae.cli.verbs.fit import run_fit
from pyro_vae.cli.verbs.parts import run_parts
from pyro_vae.cli.verbs.posterior import run_posterior
from pyro_vae.cli.verbs.report import run_report
from pyro_vae.cli.verbs.reproduce import run_reproduce
from pyro_vae.defaults import __version__

VERBS: dict[str, Callable[..., int]] = {
    "check": run_check,
    "fit": run_fit,
    "compare": run_compare,
    "evidence": run_evidence,
    "diagnose": run_diagnose,
    "posterior": run_posterior,
    "report": run_report,
    "parts": run_parts,
    "data": run_data,
    "reproduce": run_reproduce,
}
TAKE_RUNS = ("evidence", "diagnose", "posterior", "report")  # or models
TAKE_MODELS = ("check", "fit", "compare", *TAKE_RUNS)
STANDS = {  # what stands without a flag
    "check": "MODEL",
    "fit": "MODEL",
    "evidence": "RUN_DIR|MODEL",
    "diagnose": "RUN_DIR|MODEL",
    "posterior": "RUN_DIR|MODEL",
    "report": "RUN_DIR|COMPARISON_DIR|MODEL",
    "parts": "[FOLDER | NAME]",
    "data": "list | get NAME | verify NAME",
    "reproduce": "FIGURE | all",
}
ABOUT_MODELS = (
    "MODEL is a name from models/, such as bernoulli_vae, or path/to/file.py:build; followed by "
    "--help it shows its own flags, --model.OPTION, and those of a part that is named, as in "
    "--model.prior Laplace --help. pyro-vae parts lists them. --config FILE reads all flags from "
    "YAML."
)
CONFIG = Flag("config", str, help="a YAML file with these options")
MODEL = Flag("model.name", str, help="the model, in place of MODEL")
PROGRAM = Flag(
    "program", str, help="the model of a run made by a file of your own, path/to/file.py:build"
)


def run(arguments: Sequence[str], stop: Stop) -> int:
    """Run one verb; a user's mistake is told in one line, with exit code 2."""
    verb, *rest = list(arguments) or ["--help"]
    if verb in ("-h", "--help"):
        print(_overview())
        return 0
    if verb == "--version":
        print(f"pyro-vae {__version__}")
        return 0
    if verb not in VERBS:
        return complain("", nearest(verb, list(VERBS)))
    files: list[Path] = []  # of the user's, whose code runs
    notes = Notes(verb)
    with notes.taken():
        try:
            return _run(verb, rest, files)
        except BaseException as error:
            if stop.caused(error) or isinstance(error, BrokenPipeError):
                raise
            message = words_of(error) or type(error).__name__
            if verb == "check" and "\n  " in str(error):  # its mistakes are its result
                return complain(verb, str(error) + _where(error, files))
            notes.forget()
            if isinstance(error, (ValueError, TypeError, OSError)):
                return complain(verb, _as_flags(message, verb) + _where(error, files))
            places = (located(error, path) for path in files)
            place = next((each for each in places if each), None) or shortage(error)
            if place is None and (sys.flags.dev_mode or not isinstance(error, Exception)):
                raise
            return complain(verb, place or _unforeseen(error))


def _run(verb: str, arguments: Sequence[str], files: list[Path]) -> int:
    function, own = VERBS[verb], _own_flags(verb)
    given = split(arguments, own)
    config = [pair for n, path in given.pairs if n == "config" for pair in read_config(path)]
    given = split(arguments, own, config)
    folder, base = _folder_and_model(verb, given)
    variants = _variants(verb, given, len(config))
    models = [] if base is None else _models(base, variants, files)
    of_models = list({flag.name: flag for model in models for flag in model.flags()}.values())
    if verb == "fit" and (models or given.last("objective.name")):
        own += flags_of(find_objective(given.last("objective.name") or "AEVB"), "objective.")
    given = split(arguments, [*own, *of_models], config)  # now with the types of all
    about = (inspect.getdoc(function) or "").split("Args:")[0]
    parser = parser_of(f"pyro-vae {verb}", about, [*own, *of_models])
    if given.help:
        print(_help(verb, parser))
        return 0
    if verb in STANDS and MODEL in own and folder is None and not models:
        raise ValueError(f"which model? pyro-vae {verb} {STANDS[verb]} ...; see pyro-vae {verb} -h")
    limit = {"compare": 0, "data": 2}.get(verb, 1)
    if len(given.positionals) > limit:
        raise ValueError(f'unexpected "{given.positionals[limit]}"; options begin with --')
    options: dict[str, dict[str, Any]] = {}
    for i, pairs in enumerate(_variants(verb, given, len(config))):
        flags = [*own, *(models[i].flags() if models else ())]
        if models:
            require_named(models[i], [name for name, _ in pairs])
        options = _by_kind(typed(parser_of(parser.prog, about, flags), pairs, flags))
        if models:
            if verb == "compare":
                _share_sizes(options)
            models[i] = models[i].with_options(options["model"])
    match verb:
        case "fit":
            return function(models[0], options["objective"], **options[""])
        case "check":
            return function(models[0], **options[""])
        case _ if verb in TAKE_RUNS:
            return function(folder, models[0] if models else None, **options[""])
        case "compare":
            return function(models, **options[""])
    return function(*given.positionals, **options[""])


def _folder_and_model(verb: str, given: Given) -> tuple[str | None, Model | None]:
    """A saved run's folder, and the model without its parts; some verbs take either."""
    if verb not in TAKE_MODELS:
        return None, None
    spec, folder = given.last("model.name"), None
    if verb != "compare" and given.positionals:
        spec = given.positionals[0]
    elif verb == "compare" and spec is None and any(n.startswith("model.") for n, _ in given.pairs):
        spec = "vae"
    if verb in TAKE_RUNS and spec is not None and Path(spec).is_dir():
        spec, folder = given.last("program"), spec
    also = (
        "" if verb not in TAKE_RUNS else ", and no folder of a run is there; pass what --out named"
    )
    return folder, None if spec is None else find_model(spec, also)


def _variants(verb: str, given: Given, in_config: int) -> list[Pairs]:
    """The command line, or one for each way to choose among the parts that it names.

    Raises:
        ValueError: several for one argument, of which only ``compare`` makes something.
    """
    if verb == "compare":
        return alternatives(given.pairs, in_config)
    for pairs in (given.pairs[:in_config], given.pairs[in_config:]):
        names = [name.removesuffix(".name") for name, _ in pairs if names_a_part(name)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"--{name} is given {names.count(name)} times, expected once: pyro-vae compare "
                    "takes several"
                )
    return [given.pairs]


def _models(base: Model, variants: Sequence[Pairs], files: list[Path]) -> list[Model]:
    """The model with the parts of each variant; ``files`` takes the user's whose code runs."""
    files += base.files
    modules = dict.fromkeys(base.files, sys.modules[base.function.__module__])
    found = []
    for pairs in variants:
        found.append(with_parts(base, functools.partial(last, pairs), modules))
        files += [path for path in modules if path not in files]
    return found


def _share_sizes(options: dict[str, dict[str, Any]]) -> None:
    """Sizes of ``compare`` are the model's; raises ValueError where both are given."""
    for name in ("latent_dim", "hidden_dim"):
        if name in options[""] and name in options["model"]:
            raise ValueError(f"--{name} and --model.{name} say the same: give one of them")
        if name in options[""]:
            options["model"][name] = options[""][name]


def _by_kind(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of the model, of the objective, and of the verb itself, under ""."""
    options: dict[str, dict[str, Any]] = {"model": {}, "objective": {}, "": {}}
    for name, value in values.items():
        kind, _, option = name.rpartition(".") if "." not in name else name.partition(".")
        options[kind][option] = value
    if (objective := options["objective"].pop("name", None)) is not None:
        options[""]["objective"] = objective
    for name in ("config", "program"):
        options[""].pop(name, None)
    return options


def _own_flags(verb: str) -> list[Flag]:
    flags = [
        Flag("objective.name", f.kind, f.default, help=f.help) if f.name == "objective" else f
        for f in flags_of(VERBS[verb])
    ]
    named = [MODEL] if verb in TAKE_MODELS else []
    return [*named, *flags, *([PROGRAM] if verb in TAKE_RUNS else []), CONFIG]


# --- what is said -------------------------------------------------------------------------------


def _overview() -> str:
    lines = ["usage: pyro-vae VERB ...", "", "Auto-Encoding Variational Bayes in Pyro.", ""]
    for name, function in VERBS.items():
        first = (inspect.getdoc(function) or "").splitlines()[0]
        lines.append(f"  {name:<9} {STANDS.get(name, ''):<30} {first}")
    return "\n".join([*lines, "", ABOUT_MODELS, "pyro-vae VERB --help shows a verb's flags."])


def _help(verb: str, parser: Any) -> str:
    stands = f" {STANDS[verb]}" if verb in STANDS else ""
    text = re.sub(r"(--[\w.]+)\.name\b", r"\1", parser.format_help())
    body = text.partition("\n\n")[2]
    usage = f"usage: pyro-vae {verb}{stands} [--FLAG VALUE ...]"
    about = f"\n{ABOUT_MODELS}\n" if "MODEL" in stands else ""
    return f"{usage}\n\n{body.rstrip()}\n{about}"


def _unforeseen(error: BaseException) -> str:
    """What no check of ours has foreseen, by its place."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{told(error)} ({place.filename}:{place.lineno}), which no check has foreseen: python -X "
        "dev -m pyro_vae shows where it comes from"
    )


def _as_flags(message: str, verb: str) -> str:
    """A message of the package's with its arguments as flags: ``resume=True`` is ``--resume``."""
    names = "|".join(inspect.signature(VERBS[verb]).parameters)
    message = message.replace(" to pv.fit", "").replace("pass missing=True", "give --model.missing")
    message = re.sub(rf"(?<![\w.-])({names})=(True\b)?", r"--\1 ", message)
    message = re.sub(rf"^({names})(?= (is|needs|watches) )", r"--\1", message)
    return " ".join(message.split())


def _where(error: BaseException, files: Sequence[Path]) -> str:
    """The line of the user's file that an error goes back to, if any."""
    cause: BaseException | None = error
    while cause is not None:
        for path in files:
            place = located(cause, path, said=False)
            if place and str(path) not in words_of(error):
                return f" ({place})"
        cause = cause.__cause__
    return ""
