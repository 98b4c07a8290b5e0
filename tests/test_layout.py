"""The house: imports run one way, files stay short, and every room has its place on the map."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyro_vae"

# A room is a file or a folder at the top of the package.  It may use the rooms of the lines above.
LEVELS = (
    "defaults errors recording torch_internals",
    "noise turns distributions networks",
    "optimizers progress graphs program cluster",
    "priors likelihoods posteriors densities evaluation",
    "models predictive chains checking",
    "objectives evidence datasets",
    "calibration refinement plotting",
    "inference_data runs",
    "diagnostics",
    "engine",
    "training gradients",
    "comparison",
    "paper reporting sklearn",
    "__init__",  # only names where things are, and imports them when they are asked for
    "cli",
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms.split()}
MOST_LINES = {"pyro_vae": 350, "models": 350, "tests": 500, "benchmarks": 350}


def files(folder):
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


# (models/ stands at the top of the repository, and is a part of the package by a symlink.)
# An entry of the interpreter's is no room: ``python -m pyro_vae`` is ``pyro_vae.cli``.
MODULES = {module_of(p): p for p in files("pyro_vae") if p != PACKAGE / "__main__.py"}
MODULES |= {f"models.{path.stem}": path for path in files("models")}


def room_of(module):
    return module.split(".")[0]


def file_of(dotted):
    """The file that ``pyro_vae.<dotted>`` names: a module, a folder's face, or a name in either."""
    parts = dotted.split(".") if dotted else []
    for length in range(len(parts), -1, -1):
        for candidate in (".".join(parts[:length]), ".".join([*parts[:length], "__init__"])):
            if candidate in MODULES:
                return candidate
    raise AssertionError(f"{dotted} is nowhere")


def imports_of(source):
    """What a file imports from the package, also in functions and for types alone."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "pyro_vae":
                yield file_of(name.removeprefix("pyro_vae").removeprefix("."))


GRAPH = {
    module: {used for used in imports_of(path.read_text()) if used != module}
    for module, path in MODULES.items()
}


def upwards(graph):
    """Pairs (module, used) where the used room is not below the room of the module."""
    return [
        (module, used)
        for module, uses in graph.items()
        for used in sorted(uses)
        if room_of(module) != room_of(used) and LEVEL[room_of(used)] >= LEVEL[room_of(module)]
    ]


def circle(graph):
    """The first circle of imports between files, as a path; empty where there is none."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        path.append(module)
        for used in sorted(graph[module]):
            # A folder's face imports its files, and they each other: that is how Python loads them.
            if used != f"{module.rpartition('.')[0]}.__init__" and (found := visit(used)):
                return found
        path.pop()
        done.add(module)
        return []

    for module in graph:
        if found := visit(module):
            return found
    return []


def test_every_room_has_its_place():
    rooms = {room_of(module) for module in MODULES}
    assert rooms == set(LEVEL)
    assert sum(map(len, map(str.split, LEVELS))) == len(LEVEL), "a room stands on two levels"
    assert len(LEVELS) <= 15
    assert len(rooms - {"__init__"}) <= 39


def test_the_map_names_every_room():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = {room_of(module) for module in MODULES} - {"__init__"}
    assert [
        room for room in sorted(rooms) if f"`{room}/`" not in text and f"`{room}.py`" not in text
    ] == []


def test_imports_run_one_way():
    assert upwards(GRAPH) == []


def test_no_circle_of_imports():
    assert circle(GRAPH) == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("engine.steps", "from pyro_vae.training.loop import Loop", "training.loop"),
        ("noise", "def f():\n    from pyro_vae.program import Program", "program.__init__"),
        ("evidence.bound", "import pyro_vae", "__init__"),
        ("runs.run", "if TYPE_CHECKING:\n    from pyro_vae import engine", "engine.__init__"),
    ],
)
def test_an_import_upwards_is_found(module, source, found):
    graph = {**GRAPH, module: GRAPH[module] | set(imports_of(source))}
    assert upwards(graph) == [(module, found)]


def test_a_circle_is_found():
    graph = {**GRAPH, "noise": GRAPH["noise"] | {"progress"}, "progress": {"noise"}}
    assert set(circle(graph)) == {"noise", "progress"}


@pytest.mark.parametrize("folder", MOST_LINES)
def test_files_are_short(folder):
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files(folder)}
    assert {n: length for n, length in lengths.items() if length > MOST_LINES[folder]} == {}
