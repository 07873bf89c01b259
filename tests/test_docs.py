"""What documents point to exists: links, anchors, files that text and code name; and the version is one."""
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import mmprovpt
from mmprovpt.version import __version__

ROOT = Path(__file__).parents[1]
FOLDERS = ('docs', 'configs', 'mmprovpt', 'tools', 'tests', 'benchmarks', 'examples')


def files(*suffixes):
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob('*') if path.suffix in suffixes]
    return sorted(found + [path for path in ROOT.glob('*') if path.suffix in suffixes])


PAGES = files('.md')


def prose(path):
    """A page without its blocks of code, where brackets are no links."""
    return re.sub(r'```.*?```|<!--.*?-->', '', path.read_text(encoding='utf-8'), flags=re.S)


def anchors(path):
    """The names that GitHub gives a page's headings."""
    headings = re.findall(r'^#+ (.*)$', prose(path), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


def name_of(path):
    return str(path.relative_to(ROOT))


def test_there_are_pages():
    folders = {path.parent.name for path in PAGES if ROOT / 'docs' in path.parents}
    assert folders >= {'start', 'how-to', 'method', 'evidence', 'reference', 'contributing'}


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if re.match('[a-z]+:', target):
            continue
        path, _, anchor = target.partition('#')
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or ROOT not in there.parents or anchor and anchor not in anchors(there):
            broken.append(target)
    assert not broken


def test_every_page_is_linked():
    """Whoever begins at README.md or docs/README.md finds each page."""
    reached, waiting = set(), [ROOT / 'README.md', ROOT / 'docs/README.md']
    while waiting:
        page = waiting.pop()
        if page in reached or not page.exists():
            continue
        reached.add(page)
        targets = re.findall(r'\]\(([^)#\s]+\.md)', prose(page))
        waiting += [(page.parent / target).resolve() for target in targets if '://' not in target]
    assert [name_of(page) for page in PAGES if page not in reached] == []


@pytest.mark.parametrize('folder', FOLDERS)
def test_pages_named_in_code_exist(folder):
    missing = {(name_of(path), page) for path in files('.py', '.sh', '.md') if path.is_relative_to(ROOT / folder)
               for page in re.findall(r'docs/[\w/-]+\.md', path.read_text(encoding='utf-8'))
               if not (ROOT / page).is_file()}
    assert not missing


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_files_named_in_pages_exist(page):
    """Scripts and configs in text and commands, but for patterns and for files of other repositories."""
    if page.name in ('CHANGELOG.md', 'authors_code.md'):
        pytest.skip('it names files that are gone, or of another repository')
    text = page.read_text(encoding='utf-8')
    named = re.findall(rf'(?<![\w/.-])(?:{"|".join(FOLDERS)})/[\w/.-]+\.(?:py|sh|json)(?!\w)', text)
    assert not {path for path in named if not (ROOT / path).is_file()}


def test_rows_of_reliability_name_tests_that_are_there():
    """And as many as they say; every row has its command."""
    text = (ROOT / 'docs/reliability.md').read_text(encoding='utf-8')
    cells = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('| ')]
    rows = [row for row in cells if row[-1] != 'command']
    assert len(rows) > 30 and all(len(row) == 4 for row in rows)
    commands = [(int(number), command.strip('`').split()) for _, number, _, command in rows]
    assert {words[0] for _, words in commands} == {'pytest', 'python'}
    assert all((ROOT / words[1]).is_file() for _, words in commands if words[0] == 'python')
    rows = [(number, words[1:]) for number, words in commands if words[0] == 'pytest']
    names = sorted({name for _, words in rows for name in words})
    done = subprocess.run([sys.executable, '-m', 'pytest', '--collect-only', '-q', *names], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stdout[-2000:]
    found = [re.split(r'\[', line)[0] for line in done.stdout.splitlines() if '::' in line]
    counts = {name: sum(each == name or each.startswith(f'{name}::') for each in found) for name in names}
    assert [(sum(counts[name] for name in words), words) for _, words in rows] == rows


def test_arguments_are_those_of_the_code():
    """docs/reference/arguments.md is what docs/arguments.py would write."""
    arguments = runpy.run_path(str(ROOT / 'docs/arguments.py'))
    assert (ROOT / 'docs/reference/arguments.md').read_text(encoding='utf-8') == arguments['page']()


# Who draws what lies there.
DRAWN = {'docs/method/figures': 'docs/figures.py', 'docs/figures': 'docs/pictures.py',
         'docs/how-to/figures': 'examples/serve.py',  # whose page it shows
         'docs/evidence/figures': 'benchmarks/study/figures.py',
         'docs/evidence/scale.png': 'benchmarks/performance/scale.py'}


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_figures_name_the_script_that_draws_them(page):
    text = page.read_text(encoding='utf-8')
    for target in re.findall(r'!\[[^\]]+\]\(([^)]+)\)', text):
        path = name_of((page.parent / target).resolve())
        script = next((script for place, script in DRAWN.items() if path.startswith(place)), None)
        assert script is not None, f'{path}: who draws it?'
        assert script in text or page.name == 'README.md' and page.parent == ROOT  # which says what it shows


def test_figures_of_the_method_are_what_their_script_draws():
    script = runpy.run_path(str(ROOT / 'docs/figures.py'))
    drawn = {path.stem: path.read_text(encoding='utf-8') for path in (ROOT / 'docs/method/figures').iterdir()}
    assert drawn == {name: figure().svg() for name, figure in script['FIGURES'].items()}
    pages = ''.join(page.read_text(encoding='utf-8') for page in (ROOT / 'docs/method').glob('*.md'))
    assert all(f'(figures/{name}.svg)' in pages for name in drawn)


def test_every_room_has_its_page_of_the_api():
    rooms = {path.parent.name for path in (ROOT / 'mmprovpt').glob('*/__init__.py')} - {'cli'}  # what tools share
    api = ROOT / 'docs/reference/api'
    assert rooms == {path.stem for path in api.glob('*.rst')} - {'mmprovpt', 'trust'}
    named = (api / 'mmprovpt.rst').read_text(encoding='utf-8')
    assert [name for name in mmprovpt.__all__ if f'``{name}``' not in named] == ['__version__', 'config']


def test_no_private_references():
    """A source is a paper, or a page of this repository; nothing refers to lists that a reader does not have."""
    private = re.compile(r'METHOD §|\b00[123],? (?:Eq|Tab|Fig|App|§)|/work/')
    found = [(name_of(path), number + 1) for path in files('.md', '.py') if path != Path(__file__)
             for number, line in enumerate(path.read_text(encoding='utf-8').splitlines()) if private.search(line)]
    assert not found


def test_one_version():
    citation = (ROOT / 'CITATION.cff').read_text(encoding='utf-8')
    assert re.findall(r'^version: (\S+)$', citation, re.M) == [__version__]
    assert f'\n## {__version__}' in (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')
