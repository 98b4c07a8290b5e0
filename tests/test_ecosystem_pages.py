"""The Python of the pages on what stands around: run in order, in one namespace a page."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [
    "howto/scikit_learn.md", "howto/tracking.md", "howto/frames.md", "howto/export.md",
    "from_pyro.md", "from_scvi.md", "from_pythae.md",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::pyro_vae.errors.PyroVaeWarning")
@pytest.mark.filterwarnings("ignore:.*torch.*:FutureWarning")
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S):
        exec(compile(block, page, "exec"), names)
