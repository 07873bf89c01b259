"""The site: `make docs`. Its source is the whole repository, so that links are those that GitHub follows."""
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from mmprovpt.version import __version__  # noqa: E402

project, release, html_title = 'mmprovpt', __version__, f'mmprovpt {__version__}'
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
root_doc = 'docs/index'
include_patterns = ['docs/**', 'README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'configs/demo/README.md']
exclude_patterns = ['docs/README.md']  # part of docs/index
html_theme = 'furo'

myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4
myst_fence_as_directive = ['math']

autodoc_default_options = {'members': True}
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
napoleon_use_ivar = True  # or the fields of a NamedTuple are described twice


def link_pages(app, what, name, obj, options, lines):
    """Pages that docstrings name by their paths become links, and must be there."""
    lines[:] = [re.sub(r'(``)?\bdocs/([\w/-]+)\.md(``)?', r':doc:`/docs/\2`', line) for line in lines]


def setup(app):
    """The root of the site leads to its first page, which lies in docs/ as its source does."""
    app.connect('autodoc-process-docstring', link_pages)
    app.connect('build-finished', lambda app, error: (Path(app.outdir) / 'index.html').write_text(
        f'<meta http-equiv="refresh" content="0; url={root_doc}.html">', encoding='utf-8'))
