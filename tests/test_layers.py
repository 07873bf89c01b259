"""Who may import whom in the package, and that nobody imports upwards or in a circle."""
import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'mmprovpt'

# From the bottom up: who is in a line imports from that line and those above it only. The package itself is imported
# before any part of it, so it is at the bottom.
LAYERS = [
    ['version'],
    ['__init__', 'errors'],
    ['files', 'kinds', 'log', 'older_torch', 'registry', 'shipped', 'trust'],
    ['attention', 'prompts', 'relocation'],
    ['backbones'],
    ['datasets', 'tasks', 'visualization'],
    ['hooks'],
    ['cli'],
    ['sweep'],
    ['__main__'],
]
RANKS = {room: rank for rank, layer in enumerate(LAYERS) for room in layer}


def module_name(path: Path, root: Path) -> str:
    """``'mmprovpt.prompts.static'``; of an ``__init__.py`` the name of its folder."""
    parts = path.relative_to(root.parent).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def room_of(module: str) -> str:
    return (module.split('.') + ['__init__'])[1]


def statements(node: ast.AST, deferred: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Import statements, and whether they wait until a function is called."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, deferred
        inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from statements(child, deferred or inside)


def imports(root: Path) -> list[tuple[str, str, bool]]:
    """(module, module of this package that it imports, whether that waits until a function is called)."""
    files = {module_name(path, root): path for path in root.rglob('*.py')}
    found = []
    for module, path in files.items():
        package = module if path.name == '__init__.py' else module.rpartition('.')[0]
        for node, deferred in statements(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                parents = package.split('.')[:len(package.split('.')) - node.level + 1] if node.level else []
                base = '.'.join(parents + ([node.module] if node.module else []))
                names = [f'{base}.{alias.name}' if f'{base}.{alias.name}' in files or base == root.name else base
                         for alias in node.names]
            found += [(module, name, deferred) for name in names if name.partition('.')[0] == root.name]
    return found


def complaints(root: Path) -> list[str]:
    """What is wrong with the imports of a package, a sentence each."""
    edges = imports(root)
    unknown = {room_of(name) for module, target, _ in edges for name in (module, target)} - set(RANKS)
    if unknown:
        return [f'{room} is in no layer, or a name that {root.name} finds when asked' for room in sorted(unknown)]
    found = [f'{module} imports {target}, which lies higher' for module, target, _ in edges
             if RANKS[room_of(module)] < RANKS[room_of(target)]]
    at_once = [(module, target) for module, target, deferred in edges if not deferred]
    rooms = [(room_of(module), room_of(target)) for module, target in at_once if room_of(module) != room_of(target)]
    for pairs in (at_once, rooms):
        graph: dict[str, set[str]] = {}
        for one, other in pairs:
            graph.setdefault(one, set()).add(other)
        try:
            list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            found.append('a circle: ' + ' <- '.join(error.args[1]))
    return found


def test_nobody_imports_upwards_or_in_a_circle():
    assert complaints(PACKAGE) == []


def test_layers_are_those_of_the_package():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == '.py' or (path / '__init__.py').exists()}
    assert rooms == set(RANKS)


@pytest.mark.parametrize('files, expected', [
    ({'errors.py': 'from .files import write'}, 'mmprovpt.errors imports mmprovpt.files, which lies higher'),
    ({'files.py': 'def f():\n    import mmprovpt.cli.runner'}, 'files imports mmprovpt.cli.runner, which lies'),
    ({'files.py': 'try:\n    from mmprovpt import hooks\nexcept ImportError:\n    pass'}, 'imports mmprovpt.hooks'),
    ({'cli/a.py': 'from mmprovpt import inject_prompts'}, 'inject_prompts is in no layer'),
    ({'hooks/a.py': 'from . import b', 'hooks/b.py': 'from .a import c'}, 'a circle: mmprovpt.hooks.'),
    ({'prompts/a.py': 'from mmprovpt.attention.b import c', 'attention/d.py': 'from ..prompts.e import f'},
     'a circle: (attention <- prompts|prompts <- attention)'),
    ({'hooks/__init__.py': 'from .a import b', 'hooks/a.py': 'from mmprovpt.hooks import b'}, 'a circle: '),
    ({'hooks/a.py': 'from .b import c', 'hooks/b.py': 'def c():\n    from .a import c'}, None),
    ({'cli/a.py': 'import mmengine\nfrom mmprovpt.registry import HOOKS\nfrom ..hooks.b import x'}, None),
])
def test_what_is_found(files, expected, tmp_path):
    """That the tests above can fail."""
    for name, text in files.items():
        path = tmp_path / 'mmprovpt' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = complaints(tmp_path / 'mmprovpt')
    assert len(found) == (expected is not None) and re.search(expected or '', ''.join(found))
