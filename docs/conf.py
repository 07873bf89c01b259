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
html_theme, html_show_copyright = 'furo', False

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


def name_pages(app, name, content):
    """Links whose text is a file's name, which the repository's readers want, get the title of the page."""
    content[0] = re.sub(r'\[[\w/-]+\.md\]\((?=[^):]+\.md[)#])', '[](', content[0])


def skip_fields(app, what, name, obj, skip, options):
    """Fields of a NamedTuple stand in its docstring."""
    return True if str(getattr(obj, '__doc__', '')).startswith('Alias for field number') else None


def widen(app, page, template, context, doctree):
    """Commands and tables are wider than the theme's column of text."""
    context['metatags'] = context.get('metatags', '') + '<style>html .content { width: min(60em, 100%); }</style>'


def setup(app):
    """The root of the site leads to its first page, which lies in docs/ as its source does."""
    app.connect('autodoc-process-docstring', link_pages)
    app.connect('autodoc-skip-member', skip_fields)
    app.connect('source-read', name_pages)
    app.connect('html-page-context', widen)
    app.connect('build-finished', lambda app, error: (Path(app.outdir) / 'index.html').write_text(
        f'<meta http-equiv="refresh" content="0; url={root_doc}.html">', encoding='utf-8'))
