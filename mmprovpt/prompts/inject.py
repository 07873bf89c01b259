"""Put prompts into a built backbone: find its attention, give each its rows, freeze the rest."""
import inspect
import math
from typing import Dict, List, NamedTuple, Tuple

from mmengine.logging import print_log
from torch import nn

from mmprovpt.attention import (
    PromptedMMCVAttention,
    PromptedMultiheadAttention,
    PromptedTIMMAttention,
    PromptedWindowAttention,
    PromptReader,
    adopt,
)
from mmprovpt.registry import MODELS

from .frozen import CheckpointedBlock, FrozenBackbone
from .prompt_set import PromptSet
from .shallow import KeepingBlock, KeepingWindowBlock

# (package, attention class) -> how it reads prompts, and the blocks known to normalise *before* attention. By name,
# so that nothing is imported; exactly, since a subclass may compute something else.
_SWIN_BLOCKS = ('SwinBlock', 'SwinTransformerBlock')
SUPPORTED: Dict[Tuple[str, str], Tuple[type, Tuple[str, ...]]] = {
    ('mmpretrain', 'MultiheadAttention'):
    (PromptedMultiheadAttention, ('TransformerEncoderLayer', )),
    ('timm', 'Attention'): (PromptedTIMMAttention, ('Block', )),
    ('mmcv', 'MultiheadAttention'): (PromptedMMCVAttention, ('TransformerEncoderLayer', )),
    ('mmdet', 'WindowMSA'): (PromptedWindowAttention, _SWIN_BLOCKS),
    ('mmseg', 'WindowMSA'): (PromptedWindowAttention, _SWIN_BLOCKS),
    ('mmpretrain', 'WindowMSA'): (PromptedWindowAttention, _SWIN_BLOCKS),
    ('timm', 'WindowAttention'): (PromptedWindowAttention, _SWIN_BLOCKS),
}
SUPPORTED_TEXT = ', '.join(f'{package} {name}' for package, name in SUPPORTED)


class Block(NamedTuple):
    """One block that can own prompts."""
    name: str
    module: nn.Module
    attention: nn.Module
    norm: nn.Module
    width: int


def inject_prompts(backbone: nn.Module, prompts: dict) -> PromptSet:
    """Make a built backbone a prompted one, in place.

    Its parameters are frozen and stay in eval mode through ``.train()``; its forward, arguments and state-dict
    keys stay, to which come those of ``backbone.prompts``. With 0 prompts its outputs are bit for bit as before.

    Args:
        backbone: Any ViT or Swin whose attention is supported (see :data:`SUPPORTED`).
        prompts: Config, e.g. ``dict(type='StaticPrompts', num_tokens=10, dropout=0.1)``.

    Returns:
        The pool, which is ``backbone.prompts`` from now on.

    Raises:
        ValueError: If the backbone has no supported attention, or has prompts already, or ``prompts`` has keys
            or values that do not fit.
        TypeError: If a value in ``prompts`` is of the wrong type.
    """
    if any(isinstance(module, PromptSet) for module in backbone.modules()):
        raise ValueError(f'{type(backbone).__name__} has prompts already')
    blocks = find_blocks(backbone)
    pool = _build_pool(backbone, blocks, prompts)
    backbone.requires_grad_(False)
    for number, block in enumerate(blocks):
        if getattr(block.module, 'with_cp', False):
            adopt(block.module, CheckpointedBlock)
            block.module.with_cp = False
        _connect(block, PromptReader(pool, number, block.norm))
    frozen = sum(parameter.numel() for parameter in backbone.parameters())
    adopt(backbone, FrozenBackbone)
    backbone.prompts = pool
    backbone.train(backbone.training)
    print_log(f'{type(backbone).__name__}: {len(pool.tokens)} prompts in {pool.num_blocks} blocks, {pool.num_active:,} '
              f'trainable parameters beside {frozen:,} frozen ones', 'current')
    return pool


def find_blocks(backbone: nn.Module) -> List[Block]:
    """The blocks of a backbone that can own prompts, in the order of their forward.

    Raises:
        ValueError: If there is none, or if some attention is of a class that is not supported.
    """
    modules = dict(backbone.named_modules())
    found = {name: module for name, module in modules.items() if _mixin(module)}
    strangers = sorted({
        f'{type(module).__module__}.{type(module).__name__}'
        for name, module in modules.items()
        if _is_attention(module) and not any(_inside(name, other) or _inside(other, name) for other in found)
    })
    if strangers or not found:
        found = f'attention that takes no prompts: {", ".join(strangers)}' if strangers else 'no attention at all'
        raise ValueError(
            f'{type(backbone).__name__} has {found}. Prompts are read by attention. '
            f'Supported attention classes are: {SUPPORTED_TEXT}.')
    return [_block(modules, name) for name in found]


def _mixin(module: nn.Module):
    return SUPPORTED.get((type(module).__module__.partition('.')[0], type(module).__name__))


def _is_attention(module: nn.Module) -> bool:
    return any(hasattr(module, name) for name in ('qkv', 'q_proj', 'in_proj_weight'))


def _inside(name: str, other: str) -> bool:
    return f'{name}.'.startswith(f'{other}.')


def _block(modules: Dict[str, nn.Module], name: str) -> Block:
    """The block around an attention: the nearest parent that has a first norm."""
    attention, known = modules[name], _mixin(modules[name])[1]
    parent = name
    while '.' in parent:
        parent = parent.rpartition('.')[0]
        module = modules[parent]
        norm = getattr(module, 'norm1', None)
        if norm is not None and type(module).__name__ in known:
            return Block(parent, module, attention, norm, norm.weight.numel())
    around = type(modules[name.rpartition('.')[0]]).__name__
    raise ValueError(f'{name} ({type(attention).__name__}) is in a {around}, which is not known to normalise its '
                     f'tokens before attention; known blocks for it are: {", ".join(known)}')


def _connect(block: Block, reader: PromptReader) -> None:
    """Have a block's attention read prompts, or the block keep their outputs, which in a ViT makes them tokens."""
    attention = _mixin(block.attention)[0]
    windows = attention is PromptedWindowAttention
    if windows or not reader.pool.keeps_outputs:
        block.attention.prompt_reader = reader
        adopt(block.attention, attention)
    if reader.pool.keeps_outputs:
        block.module.kept = reader
        adopt(block.module, KeepingWindowBlock if windows else KeepingBlock)


def _build_pool(backbone: nn.Module, blocks: List[Block], prompts: dict) -> PromptSet:
    prompts = dict(prompts)
    kinds = {name: kind for name, kind in MODELS.module_dict.items()
             if isinstance(kind, type) and issubclass(kind, PromptSet)}
    from . import FORMS
    kinds.update(FORMS)
    name = str(prompts.pop('type', None)).removeprefix('mmprovpt.')
    if name not in kinds:
        raise ValueError(f"prompts: type={name!r} is unknown; known types are {sorted(kinds)}, as in "
                         "prompts=dict(type='StaticPrompts', num_tokens=10)")
    patches = _patch_embedding(backbone)
    given_here = dict(
        widths=[block.width for block in blocks], mergings=_mergings(backbone),
        patch_fan_in=patches.in_channels * math.prod(patches.kernel_size))  # 3 · patch² for RGB
    known = [key for kind in kinds[name].__mro__ if issubclass(kind, PromptSet)
             for key in inspect.signature(kind.__init__).parameters if key not in ('self', 'kwargs', *given_here)]
    unknown = sorted(set(prompts) - set(known))
    if unknown:
        raise ValueError(f'prompts: unknown keys {unknown}; {name} knows {sorted(set(known))}')
    if 'num_tokens' not in prompts:
        raise ValueError('prompts: num_tokens is missing: the number of prompts per block, an int or a list of '
                         f'{len(blocks)} ints')
    pool = kinds[name](**prompts, **given_here)
    patches.register_forward_hook(pool.observe_grid)
    return pool


def _mergings(backbone: nn.Module) -> List[nn.Module]:
    return [module for module in backbone.modules() if type(module).__name__ == 'PatchMerging']


def _patch_embedding(backbone: nn.Module) -> nn.Conv2d:
    conv = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    if conv is None:
        raise ValueError(f'{type(backbone).__name__} has no convolution that embeds patches, from whose size the '
                         'initialisation of prompts follows')
    return conv
