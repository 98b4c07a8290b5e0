"""Reports: one self-contained HTML file that says what was run, and what came of it.

============== ===================================================================
writing        :func:`report`
runs           the sections on a run, or on a program alone
comparisons    the sections on a comparison
plane          the map of a latent plane, and what its points decode to
parts          sections and pictures
page.html      the page, with its style page.css and its script page.js
============== ===================================================================
"""

from pyro_vae.reporting.writing import report

__all__ = ["report"]
