"""Give a built module new behaviour without touching its parameters or their names."""
import types

from torch import nn

_CLASSES = {}


def adopt(module: nn.Module, mixin: type) -> None:
    """Put ``mixin`` in front of the class of ``module``, in place.

    Like ``torch.nn.utils.parametrize``, it swaps ``module.__class__`` for a subclass made on the fly, so
    parameters, buffers, hooks, state-dict keys and ``isinstance`` stay as they were. Unlike there, the result
    can be pickled.

    Args:
        module: Any module; changed in place.
        mixin: A class whose methods may call ``super()`` to reach those of the module's own class.
    """
    module.__class__ = combined(mixin, type(module))


def combined(mixin: type, upstream: type) -> type:
    """The class (mixin, upstream); one and the same object for each pair."""
    if (mixin, upstream) not in _CLASSES:
        # A class of ours that users derive from keeps its name; else it is upstream's that people know.
        name = mixin.__name__ if getattr(mixin, 'is_registered', False) else f'Prompted{upstream.__name__}'
        namespace = dict(__reduce_ex__=_reduce_ex, __module__=upstream.__module__, upstream=upstream, mixin=mixin,
                         __doc__=mixin.__doc__)
        _CLASSES[mixin, upstream] = types.new_class(name, (mixin, upstream), exec_body=lambda ns: ns.update(namespace))
    return _CLASSES[mixin, upstream]


def _reduce_ex(self, protocol):
    # pickle looks classes up by name and would not find this one: name its parents instead, upstream's last.
    classes, upstream = [], type(self)
    while hasattr(upstream, 'mixin'):
        classes.append(upstream.mixin)
        upstream = upstream.upstream
    return _new, (*classes, upstream), self.__getstate__() if hasattr(self, '__getstate__') else self.__dict__


def _new(*classes: type) -> nn.Module:
    *mixins, cls = classes
    for mixin in reversed(mixins):
        cls = combined(mixin, cls)
    return object.__new__(cls)


def release(module: nn.Module) -> None:
    """Give a module its upstream class back."""
    while hasattr(type(module), 'mixin'):
        module.__class__ = type(module).upstream
