"""The config that a checkpoint carries: Python source of whoever made it, which is read and not executed."""
import ast
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import mmengine.registry
from mmengine.config import Config

from mmprovpt.errors import ConfigError

_REMEDY = 'give your own by --config, or pass --trust-checkpoint if you trust whoever made it'


def parse_config(text: str) -> Config:
    """What MMEngine writes into ``meta['cfg']``: lines ``name = value`` of literals and ``dict(…)``.

    Nothing is imported for it, not even its ``custom_imports``.

    Raises:
        ConfigError: It holds other Python, or asks to run code of a repository.
    """
    try:
        lines = ast.parse(text).body
        cfg = {}
        for line in lines:
            if not (isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name)):
                raise _no_literal(line)
            cfg[line.targets[0].id] = _value(line.value)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f'the config in the checkpoint cannot be read ({error}): {_REMEDY}') from error
    if 'trust_remote_code' in text:  # of transformers' models
        raise ConfigError(f'the config in the checkpoint says trust_remote_code: {_REMEDY}')
    return Config(cfg)


@contextmanager
def only_registered() -> Iterator[None]:
    """Build from a config that nobody vouches for: a ``type`` names what is registered, and no other object.

    Where nothing of that name is registered, MMEngine's registries take any function that can be imported by it.

    Raises:
        ConfigError: The config names something else.
    """
    unknown = []

    def find(name: str):
        found = _registered(name)
        if found is None:
            unknown.append(name)
        return found

    try:
        with mock.patch('mmengine.registry.registry.get_object_from_string', find, create=True):
            yield
    except Exception as error:
        named = next((name for name in unknown if name in str(error)), None)
        if named is None:
            raise
        raise ConfigError(f'the config in the checkpoint has type={named!r}, which is no registered class: '
                          f'{_REMEDY}') from error


def _registered(name: str):
    """The registered class of a full name, as pure Python configs are dumped; imports nothing. None: there is none."""
    module, _, rest = name.rpartition('.')
    parts = [rest]
    while module and module not in sys.modules:
        module, _, rest = module.rpartition('.')
        parts.insert(0, rest)
    found = sys.modules.get(module)
    for part in parts:
        found = getattr(found, part, None)
    roots = [value for value in vars(mmengine.registry).values() if isinstance(value, mmengine.registry.Registry)]
    return found if any(found is each for root in roots for each in _classes(root)) else None


def _classes(registry: mmengine.registry.Registry) -> Iterator:
    """All that a registry and those below it hold."""
    yield from registry.module_dict.values()
    for child in registry.children.values():
        yield from _classes(child)


def _value(node: ast.expr):
    if isinstance(node, ast.Call):
        if (getattr(node.func, 'id', None) != 'dict' or not all(part.arg for part in node.keywords)
                or not all(isinstance(part, ast.Dict) for part in node.args) or len(node.args) > 1):
            raise _no_literal(node)
        return {**_value(node.args[0] if node.args else ast.Dict([], [])),
                **{part.arg: _value(part.value) for part in node.keywords}}
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise _no_literal(node)
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind = dict(List=list, Tuple=tuple, Set=set)[type(node).__name__]
        return kind(map(_value, node.elts))
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise _no_literal(node) from None


def _no_literal(node: ast.AST) -> ValueError:
    return ValueError(f'line {node.lineno} is no literal: {ast.unparse(node)[:60]}')
