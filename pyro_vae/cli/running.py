"""One verb, from the words of a command line to an exit code."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pyro_vae.cli.flags import Flag, Given, flags_of, nearest, parser_of, split, typed, with_config
from pyro_vae.cli.sources import Model, find_model, find_objective, located
from pyro_vae.cli.stopping import Stop
from pyro_vae.cli.verbs.check import run_check
from pyro_vae.cli.verbs.compare import run_compare
from pyro_vae.cli.verbs.data import run_data
from pyro_vae.cli.verbs.evidence import run_evidence
from pyro_vae.cli.verbs.fit import run_fit
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.version import __version__

VERBS: dict[str, Callable[..., int]] = {
    "check": run_check,
    "fit": run_fit,
    "compare": run_compare,
    "evidence": run_evidence,
    "data": run_data,
}
STANDS = {  # what stands without a flag
    "check": "MODEL",
    "fit": "MODEL",
    "evidence": "RUN_DIR|MODEL",
    "data": "list | get NAME | verify NAME",
}
ABOUT_MODELS = (
    "MODEL is a name from models/, such as bernoulli_vae, or path/to/file.py:build; followed by "
    "--help it shows its own flags, --model.OPTION. --config FILE reads all flags from YAML."
)
CONFIG = Flag("config", str, help="a YAML file with these options")


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
        return _complain("", nearest(verb, list(VERBS)))
    asked: list[Model] = []  # whose code runs
    with warnings.catch_warnings():
        warnings.simplefilter("always", PyroVaeWarning)
        warnings.showwarning = _shown_by(verb, warnings.showwarning)
        try:
            return _run(verb, rest, asked)
        except BaseException as error:
            if stop.caused(error) or isinstance(error, BrokenPipeError):
                raise
            if isinstance(error, (ValueError, TypeError, OSError)):
                several = verb == "check" and "\n  " in str(error)  # its mistakes are its result
                said = str(error) if several else _one_line(error)
                return _complain(verb, said + _where(error, asked))
            places = (located(error, model.path) for model in asked)
            place = next((each for each in places if each), None)
            if place is None:
                raise
            return _complain(verb, " ".join(place.split()))


def _run(verb: str, arguments: Sequence[str], asked: list[Model]) -> int:
    function = VERBS[verb]
    own = [*_own_flags(verb), CONFIG]
    given = with_config(split(arguments, own))
    flags, found = list(own), _chosen(verb, given)
    if found.model is not None:
        asked.append(found.model)
        flags += found.model.flags()
    if found.objective is not None:
        flags += flags_of(found.objective, "objective.")
    given = with_config(split(arguments, flags))  # now with the types of all
    about = (inspect.getdoc(function) or "").split("Args:")[0]
    parser = parser_of(f"pyro-vae {verb}", about, flags)
    if given.help:
        print(_help(verb, parser))
        return 0
    if verb in ("check", "fit", "evidence") and found.stands is None:
        raise ValueError(f"which model? pyro-vae {verb} {STANDS[verb]} ...; see pyro-vae {verb} -h")
    limit = {"compare": 0, "data": 2}.get(verb, 1)
    if len(given.positionals) > limit:
        raise ValueError(f'unexpected "{given.positionals[limit]}"; options begin with --')
    values = typed(parser, _without_model(given), flags)
    del values["config"]
    options = {
        kind: {n.split(".")[1]: values.pop(n) for n in list(values) if n.startswith(f"{kind}.")
               and not n.endswith(".name")}
        for kind in ("model", "objective")
    }  # fmt: skip
    values = {name.removesuffix(".name"): value for name, value in values.items()}
    if verb == "data":
        return function(*given.positionals, **values)
    if verb == "compare":
        return function(**values)
    if verb == "check":
        return function(found.model, options["model"], **values)
    if verb == "fit":
        return function(found.model, options["model"], options["objective"], **values)
    if isinstance(found.stands, str):
        return function(found.stands, options["model"], **{**values, "program": found.model})
    return function(found.model, options["model"], **values)


class _Chosen:
    """What decides which flags there are."""

    def __init__(self) -> None:
        self.stands: str | Model | None = None  # a saved run's folder, or the model
        self.model: Model | None = None
        self.objective: type | None = None


def _chosen(verb: str, given: Given) -> _Chosen:
    chosen = _Chosen()
    if verb not in ("check", "fit", "evidence"):
        return chosen
    spec = given.positionals[0] if given.positionals else given.last("model.name")
    if spec is not None:
        is_run = verb == "evidence" and Path(spec).is_dir()
        if is_run:
            chosen.stands = spec
            spec = given.last("program")
        if spec is not None:
            chosen.model = find_model(spec)
            chosen.stands = chosen.stands or chosen.model
    if verb == "fit" and (chosen.model is not None or given.last("objective.name")):
        chosen.objective = find_objective(given.last("objective.name") or "AEVB")
    return chosen


def _own_flags(verb: str) -> list[Flag]:
    flags = flags_of(VERBS[verb])
    if verb == "evidence":  # there its type is that of a model
        about = "the model of a run made by a file of your own, path/to/file.py:build"
        flags.append(Flag("program", str, help=about))
    return [
        Flag("objective.name", f.kind, f.default, help=f.help) if f.name == "objective" else f
        for f in flags
    ]


def _without_model(given: Given) -> list[tuple[str, str | None]]:
    return [pair for pair in given.pairs if pair[0] != "model.name"]


# --- what is said -------------------------------------------------------------------------------


def _overview() -> str:
    lines = ["usage: pyro-vae VERB ...", "", "Auto-Encoding Variational Bayes in Pyro.", ""]
    for name, function in VERBS.items():
        first = (inspect.getdoc(function) or "").splitlines()[0]
        lines.append(f"  {name:<9} {STANDS.get(name, ''):<30} {first}")
    return "\n".join([*lines, "", ABOUT_MODELS, "pyro-vae VERB --help shows a verb's flags."])


def _help(verb: str, parser: Any) -> str:
    stands = f" {STANDS[verb]}" if verb in STANDS else ""
    text = parser.format_help().replace("--objective.name", "--objective")
    body = text.partition("\n\n")[2]
    usage = f"usage: pyro-vae {verb}{stands} [--FLAG VALUE ...]"
    about = f"\n{ABOUT_MODELS}\n" if "MODEL" in stands else ""
    return f"{usage}\n\n{body.rstrip()}\n{about}"


def _complain(verb: str, message: str) -> int:
    print(f"pyro-vae {verb}".rstrip() + f": {message}", file=sys.stderr)
    return 2


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _where(error: BaseException, asked: Sequence[Model]) -> str:
    """The line of the user's file that an error goes back to, if any."""
    cause: BaseException | None = error
    while cause is not None:
        for model in asked:
            place = located(cause, model.path, said=False)
            if place and str(model.path) not in str(error):
                return f" ({place})"
        cause = cause.__cause__
    return ""


def _shown_by(verb: str, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    told: set[str] = set()  # compare has several runs, and each of them may say the same

    def show(message: Any, category: type[Warning], *rest: Any, **options: Any) -> None:
        line = " ".join(str(message).split())
        if issubclass(category, PyroVaeWarning):
            if line not in told:
                print(f"pyro-vae {verb}: warning: {line}", file=sys.stderr)
            told.add(line)
        else:
            otherwise(message, category, *rest, **options)

    return show
