"""Visual prompts that move between the blocks of a frozen backbone, for OpenMMLab and timm.

A name is imported when it is first asked for. So ``mmprovpt.relocation`` needs torch alone, and ``inject_prompts``
only what its backbone needs.
"""
import importlib
import warnings

from .version import __version__, installed_versions, refuse_known_bad

refuse_known_bad(installed_versions())

# Public name → the room that has it.
_HOMES = dict(
    MultiTaskModel='tasks', config='shipped', PromptSet='prompts', PromptSets='prompts', find_prompts='prompts',
    add_prompts='backbones', folded='backbones', inject_prompts='backbones', load_prompts='backbones',
    remove_prompts='backbones', set_prompts='backbones', tuned_state_dict='backbones', using_prompts='backbones')

__all__ = ['MultiTaskModel', 'PromptSet', 'PromptSets', '__version__', 'add_prompts', 'config', 'find_prompts',
           'folded', 'inject_prompts', 'load_prompts', 'remove_prompts', 'set_prompts', 'tuned_state_dict',
           'using_prompts']


def __getattr__(name: str):
    if name == 'PromptPool':
        warnings.warn('mmprovpt.PromptPool is called PromptSet now; the old name goes with the next release',
                      FutureWarning, stacklevel=2)
        name = 'PromptSet'
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'.{_HOMES[name]}', __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
