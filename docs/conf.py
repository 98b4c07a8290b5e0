"""The documentation site: Sphinx reads Markdown (MyST), notebooks and docstrings from here.

``make docs`` builds it into docs/_build/html, with every warning an error.  Notebooks are shown
with the outputs that are committed, never run.  Why Sphinx: the docstrings are reStructuredText
with Google's sections, which autodoc and napoleon read as they are; myst-nb takes the notebooks;
links between pages and names are checked while it builds (``make docs ARGS='-b linkcheck'`` tries
those to other sites).
"""

import re
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing a major refactor")

import made_pages  # noqa: E402
from docutils import nodes  # noqa: E402
from latex2mathml.converter import convert  # noqa: E402

from pyro_vae import defaults  # noqa: E402

made_pages.write()
made_pages.copy_notebooks()

project = "pyro_vae"
copyright = "the pyro_vae authors"
version = release = defaults.__version__
html_math_renderer = "mathml"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
suppress_warnings = ["mystnb.unknown_mime_type"]  # ipywidgets, shown as their text

# --- pages --------------------------------------------------------------------------------------

nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

# --- docstrings ---------------------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what is taken, in words
autodoc_preserve_defaults = True
napoleon_custom_sections = [("Source", "notes_style")]
napoleon_use_rtype = False
napoleon_use_ivar = True


def read_as_prose(
    app: Any, kind: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are read in terminals too: |z| is an absolute value, (..., *event) a shape."""
    indent = None  # of a displayed equation
    for i, line in enumerate(lines):
        own = len(line) - len(line.lstrip())
        if line.lstrip().startswith(".. math::"):
            indent = own
        elif indent is not None and line.strip() and own <= indent:
            indent = None
        if indent is None and "``" not in line and ":math:" not in line:
            line = re.sub(r"(?<!\\)\|", r"\\|", line)
            line = re.sub(r"^(\s+\w+): ([A-Z])\.$", r"\1: \2\\.", line)  # no item of a list
            lines[i] = re.sub(r"(?<=, )\*(?=\w+\))", r"\\*", line)


def with_values(
    app: Any, kind: str, name: str, value: Any, options: Any, signature: Any, returns: Any
) -> Any:
    """What ``defaults.BATCH_SIZE`` in a signature is."""
    if signature:
        signature = re.sub(r"\bdefaults\.(\w+)", lambda m: repr(getattr(defaults, m[1])), signature)
    return signature, returns


# --- formulas -----------------------------------------------------------------------------------
# As MathML, which browsers draw by themselves: pages need no network, and no script.


def formula(self: Any, node: Any, display: str) -> None:
    drawn = convert(node.astext(), display=display)
    # log p: the names of functions keep apart from what they are of.
    drawn = re.sub(
        r"(<mi>(?:log|exp|sup|max|min)</mi>)(?=<m)", r'\1<mspace width="0.17em"/>', drawn
    )
    self.body.append(f'<span class="math {display}">{drawn}</span>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", read_as_prose, priority=400)  # ahead of napoleon
    app.connect("autodoc-process-signature", with_values)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda self, node: formula(self, node, "inline"), None),
        block_renderers=(lambda self, node: formula(self, node, "block"), None),
    )


# --- looks --------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"pyro_vae {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}
html_copy_source = False
html_extra_path = ["_extra"]  # llms.txt
copybutton_prompt_text = "$ "
linkcheck_timeout = 10
