"""How Sphinx builds this folder: `sphinx-build -W docs out/site`.

Needs `pip install '.[docs]'` and no network. Notebooks are shown as they are
in git, with outputs cleared; the slow tests run them.
"""

import pathlib
import sys

DOCS = pathlib.Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

from sitegen import api_pages, docstrings  # noqa: E402

import sinkjax  # noqa: E402

project = "sinkjax"
author = "The sinkjax authors"
copyright = "2026, the sinkjax authors"
version = release = sinkjax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# Recorded results are data: pages show their figures and tables.
# A field named as a builtin type is no second meaning of that type.
suppress_warnings = ["ref.python"]
exclude_patterns = ["results", "parity.md", "gallery.md"]

nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "attrs_block"]
myst_heading_anchors = 3

# Modules write types as they are imported; a page needs the short name.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 60
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# Fields of named tuples are members, too: described once, in the class.
napoleon_use_ivar = True
napoleon_attr_annotations = False

# Two hyphens are a flag, not a dash.
smartquotes = False

html_theme = "furo"
html_title = "sinkjax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "friendly"
# Blocks in docstrings are formulas and tables; code says its language.
highlight_language = "none"
add_module_names = False


def setup(app) -> None:
  """API pages are written before Sphinx looks for pages."""
  api_pages.write(DOCS / "api")
  # Before napoleon, whose priority is 500: it must see finished text.
  app.connect("autodoc-process-docstring", docstrings.to_rst, priority=400)
  app.connect("autodoc-process-signature", docstrings.short_signature)
  app.connect("autodoc-skip-member", docstrings.skip_alias)
