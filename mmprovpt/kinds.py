"""Classes that a config chooses by name: the one mechanism by which users add their own."""
import importlib
import inspect
import math
import types
import warnings
from collections.abc import Collection, Sequence
from typing import Any

from .errors import ConfigError

_PLAIN = {int: 'an int', float: 'a finite number', bool: 'True or False', str: 'a string', type(None): 'None'}


class Kinds(dict):
    """Name → class, for one place in a config, such as ``pruner=dict(type='IdlenessPruner', criterion='taylor')``.

    Users add a class of their own by the decorator ``@PRUNERS.register``, or give the class itself, or its full name
    with dots, as ``type``.
    A class may have two attributes for options of earlier releases, which then are no longer arguments:
    ``renamed``, old name → new name, taken with a warning; and ``removed``, old name → what to do instead, refused.

    Args:
        what: What these classes are, for messages: ``'pruner'``.

    Attributes:
        gone: Names of classes of earlier releases → what to do instead, for a message.
    """

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.gone: dict[str, str] = {}

    def register(self, cls: type) -> type:
        """Add a class under its name; a decorator.

        Raises:
            ConfigError: Another class has the name.
        """
        if self.get(cls.__name__, cls) is not cls:
            raise ConfigError(f'a {self.what} called {cls.__name__} exists already ({self[cls.__name__].__module__}): '
                              'give yours another name')
        self[cls.__name__] = cls
        return cls

    def check(self, config: dict, runtime: Sequence[str] = ()) -> tuple[type, dict]:
        """The class that a config means, and its arguments, without building it.

        Args:
            config: ``dict(type=name, full name or class, argument=value, ...)``.
            runtime: Arguments that the program gives and a config cannot.

        Raises:
            ConfigError: The config is no dict, its type is missing or unknown, or an argument is unknown, was removed
                or is of the wrong type.
        """
        if not isinstance(config, dict) or 'type' not in config:
            raise ConfigError(f"{self.what}={config!r}, but it must be a dict such as dict(type='{next(iter(self))}')")
        name, arguments = config['type'], {key: value for key, value in config.items() if key != 'type'}
        cls = name if isinstance(name, type) else self.get(str(name).removeprefix('mmprovpt.')) or _imported(name)
        if cls is None and name in self.gone:
            raise ConfigError(f'{self.what}: there is no {name} any more: {self.gone[name]}')
        if cls is None:
            raise ConfigError(f'{self.what}: type={name!r} is unknown; known are {", ".join(self)}')
        for old, new in getattr(cls, 'renamed', {}).items():
            if old in arguments:
                if new in arguments:
                    raise ConfigError(f'{cls.__name__}: {old} is called {new} now, and both are given: leave {new}')
                warnings.warn(f'{cls.__name__}: {old} is called {new} now; the old name goes with the next release',
                              FutureWarning, stacklevel=3)
                arguments[new] = arguments.pop(old)
        for old, advice in getattr(cls, 'removed', {}).items():
            if old in arguments:
                raise ConfigError(f'{cls.__name__} has no {old} any more: {advice}')
        known = [key for key in arguments_of(cls) if key not in runtime]
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            raise ConfigError(f'{cls.__name__} has no argument {", ".join(unknown)}; known are {", ".join(known)}')
        check_types(cls, arguments)
        return cls, arguments

    def build(self, config: dict, **runtime):
        """Build what a config means.

        Args:
            config: See :meth:`check`.
            **runtime: Arguments known only now. Those in the config take precedence, and those that the class does not
                have are left out.

        Raises:
            ConfigError: See :meth:`check`.
        """
        cls, arguments = self.check(config)
        known = arguments_of(cls)
        return cls(**{**{key: value for key, value in runtime.items() if key in known}, **arguments})


def _imported(name) -> type | None:
    """The class of a full name with dots, as MMEngine writes classes when it dumps a config."""
    module, _, attribute = str(name).rpartition('.')
    try:
        found = getattr(importlib.import_module(module), attribute, None) if module else None
    except ImportError:
        return None
    return found if isinstance(found, type) else None


def check_types(cls: type, arguments: dict) -> None:
    """Check options against the annotations of a class's arguments, where these are of plain types.

    True and 2.5 are no ints, and numbers are finite. What is annotated otherwise, or not at all, the class checks.

    Raises:
        ConfigError: Names the class, the argument, its value and what it must be.
    """
    annotations = _annotations(cls)
    for name, value in arguments.items():
        annotation = annotations.get(name)
        wanted = annotation.__args__ if isinstance(annotation, types.UnionType) else (annotation, )
        if set(wanted) <= set(_PLAIN) and not any(_is_a(value, each) for each in wanted):
            raise ConfigError(f'{cls.__name__}: {name}={value!r}, but it must be '
                              f'{" or ".join(_PLAIN[each] for each in wanted)}')


def check_choice(name: str, value: str, known: Collection[str]) -> None:
    """Check an option that is one of some names.

    Raises:
        ConfigError: Names the option, its value and what it must be.
    """
    if value not in known:
        raise ConfigError(f'{name}={value!r}, but it must be one of {", ".join(known)}')


def _is_a(value, wanted: type) -> bool:
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))


def arguments_of(cls: type) -> list[str]:
    """Names of a class's arguments, with those that its ``**kwargs`` hand on to its bases."""
    return list(_annotations(cls))


def _annotations(cls: type) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for base in cls.__mro__:
        if '__init__' not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                names.setdefault(p.name, p.annotation)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    names.pop('self', None)
    return names
