"""Which classes of upstream can be prompted: a table of full dotted names, which users extend.

By name, so that nothing is imported for it; exactly, because libraries have dozens of classes called ``Attention``, and
because a subclass may compute something else.
"""
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import nn

from mmprovpt.errors import ConfigError

from .base import PromptedAttention
from .beit import PromptedBEiTAttention
from .block import first_norm
from .mmcv_mha import PromptedMMCVAttention
from .mmpretrain_attention import PromptedMultiheadAttention
from .rotary import PromptedAttentionWithRoPE, PromptedRotaryAttention
from .timm_attention import PromptedTIMMAttention
from .window import PromptedWindowAttention
from .window_v2 import PromptedWindowAttentionV2


class Support(NamedTuple):
    """How one class of attention is prompted.

    Attributes:
        reads: The class that goes in front of it.
        blocks: Full names of blocks that are known to compute ``attention(norm1(x))`` on all tokens of an image.
        backbones: Full names of backbones (or their bases) that are known to give such blocks one image per sample.
        post_norm: Full names of blocks that are known to compute ``norm1(attention(x))``.
    """
    reads: type
    blocks: tuple[str, ...]
    backbones: tuple[str, ...]
    post_norm: tuple[str, ...] = ()


SUPPORTED: dict[str, Support] = {}


def support(attentions: Sequence[str], blocks: Sequence[str], backbones: Sequence[str],
            post_norm: Sequence[str] = ()) -> Callable[[type], type]:
    """Register a subclass of :class:`PromptedAttention` for classes of attention; a decorator.

    Args:
        attentions: Full dotted names, such as ``'my_package.vit.Attention'``.
        blocks, backbones, post_norm: See :class:`Support`; they are added to those known.

    Raises:
        ConfigError: Another class reads this attention already.
    """

    def register(reads: type) -> type:
        for name in attentions:
            known = SUPPORTED.get(name, Support(reads, (), ()))
            if known.reads is not reads:
                raise ConfigError(f'{name} is read by {known.reads.__name__} already')
            SUPPORTED[name] = Support(reads, (*known.blocks, *blocks), (*known.backbones, *backbones),
                                      (*known.post_norm, *post_norm))
        return reads

    return register


support(
    # The second is its place in timm before 1.0.17.
    ['timm.layers.attention.Attention', 'timm.models.vision_transformer.Attention'],
    ['timm.models.vision_transformer.Block'],
    ['timm.models.vision_transformer.VisionTransformer'],
    ['timm.models.vision_transformer.ResPostBlock'])(PromptedTIMMAttention)
support(
    ['timm.layers.attention.AttentionRope', 'timm.models.eva.EvaAttention'],
    ['timm.models.eva.EvaBlock'], ['timm.models.eva.Eva'],
    ['timm.models.eva.EvaBlockPostNorm'])(PromptedRotaryAttention)
support(['timm.models.beit.Attention'], ['timm.models.beit.Block'], ['timm.models.beit.Beit'])(PromptedBEiTAttention)
support(
    ['timm.models.swin_transformer.WindowAttention'],
    ['timm.models.swin_transformer.SwinTransformerBlock'],
    # With features_only, timm takes the stages out of the backbone.
    ['timm.models.swin_transformer.SwinTransformer', 'timm.models._features.FeatureDictNet'])(PromptedWindowAttention)
support(
    ['mmpretrain.models.utils.attention.MultiheadAttention'],
    ['mmpretrain.models.backbones.vision_transformer.TransformerEncoderLayer',
     'mmpretrain.models.backbones.deit3.DeiT3TransformerEncoderLayer'],
    ['mmpretrain.models.backbones.vision_transformer.VisionTransformer'])(PromptedMultiheadAttention)
support(
    ['mmcv.cnn.bricks.transformer.MultiheadAttention'],
    ['mmseg.models.backbones.vit.TransformerEncoderLayer'],
    ['mmseg.models.backbones.vit.VisionTransformer'])(PromptedMMCVAttention)
for _module in ('mmdet.models.backbones.swin', 'mmseg.models.backbones.swin'):
    support([f'{_module}.WindowMSA'], [f'{_module}.SwinBlock'], [f'{_module}.SwinTransformer'])(PromptedWindowAttention)
support(
    ['mmpretrain.models.utils.attention.WindowMSA'],
    ['mmpretrain.models.backbones.swin_transformer.SwinBlock'],
    ['mmpretrain.models.backbones.swin_transformer.SwinTransformer'])(PromptedWindowAttention)
support(
    ['timm.models.swin_transformer_v2.WindowAttention'], [],
    ['timm.models.swin_transformer_v2.SwinTransformerV2', 'timm.models._features.FeatureDictNet'],
    ['timm.models.swin_transformer_v2.SwinTransformerV2Block'])(PromptedWindowAttentionV2)
support(
    ['mmpretrain.models.utils.attention.WindowMSAV2'], [],
    ['mmpretrain.models.backbones.swin_transformer_v2.SwinTransformerV2'],
    ['mmpretrain.models.backbones.swin_transformer_v2.SwinBlockV2'])(PromptedWindowAttentionV2)
support(
    ['mmpretrain.models.utils.attention.BEiTAttention'],
    ['mmpretrain.models.backbones.beit.BEiTTransformerEncoderLayer'],
    ['mmpretrain.models.backbones.beit.BEiTViT'])(PromptedBEiTAttention)
support(
    ['mmpretrain.models.backbones.vit_eva02.AttentionWithRoPE'],
    ['mmpretrain.models.backbones.vit_eva02.EVA02EndcoderLayer'],
    ['mmpretrain.models.backbones.vit_eva02.ViTEVA02'])(PromptedAttentionWithRoPE)
for _module, _name in (('mmseg.models.backbones.beit', 'BEiT'), ('mmseg.models.backbones.mae', 'MAE')):
    support([f'{_module}.{_name}Attention'], [f'{_module}.{_name}TransformerEncoderLayer'],
            [f'{_module}.{_name}'])(PromptedBEiTAttention)


def full_name(cls: type) -> str:
    """``'package.module.Class'``."""
    return f'{cls.__module__}.{cls.__qualname__}'


class Block(NamedTuple):
    """One block that can own prompts.

    Attributes:
        name: Its name in the backbone.
        module, attention: Itself, and its attention.
        backbone: The backbone around it, which is of a known class.
        width: C.
        norm_first: Whether its first norm comes before attention.
    """
    name: str
    module: nn.Module
    attention: nn.Module
    backbone: nn.Module
    width: int
    norm_first: bool


def find_blocks(backbone: nn.Module) -> list[Block]:
    """The blocks of a backbone that can own prompts, in the order of their forward.

    Raises:
        ConfigError: If there is none, or if a class of attention, block or backbone is not known: it is named, and so
            is what is supported.
    """
    modules = dict(backbone.named_modules())
    found = [name for name, module in modules.items() if full_name(type(module)) in SUPPORTED]
    strangers = [module for name, module in modules.items() if _is_attention(module)
                 and not any(_inside(name, other) or _inside(other, name) for other in found)]
    if not found and not strangers:
        strangers = [module for module in modules.values() if 'attention' in type(module).__name__.lower()
                     or hasattr(module, 'in_proj') or hasattr(module, 'kv')]
    if strangers or not found:
        names = ', '.join(sorted({full_name(type(module)) for module in strangers}))
        what = f'attention that takes no prompts: {names}' if names else 'no attention at all'
        raise ConfigError(
            f'{type(backbone).__name__} has {what}. Prompts are read by attention. {supported_text()}')
    return [_block(modules, name) for name in found]


def supported_text() -> str:
    """A sentence that names the supported classes of attention, with their backbones."""
    rows = [f'{name} in {" or ".join(entry.backbones)}' for name, entry in SUPPORTED.items()]
    return f'Supported are: {"; ".join(rows)}; others can be added (mmprovpt.attention.support).'


def _is_attention(module: nn.Module) -> bool:
    return any(hasattr(module, name) for name in ('qkv', 'q_proj', 'in_proj_weight'))


def _inside(name: str, other: str) -> bool:
    return f'{name}.'.startswith(f'{other}.')


def _block(modules: dict[str, nn.Module], name: str) -> Block:
    attention = modules[name]
    entry = SUPPORTED[full_name(type(attention))]
    known = (*entry.blocks, *entry.post_norm)
    above = [name[:end] for end in range(len(name) - 1, 0, -1) if name[end] == '.'] + ['']
    block = next((parent for parent in above if full_name(type(modules[parent])) in known), None)
    if block is None:
        raise ConfigError(_unknown(name, attention, 'block', modules[above[0]], known))
    owner = _owner(modules, above[above.index(block) + 1:], entry)
    if owner is None:
        raise ConfigError(_unknown(name, attention, 'backbone', modules[''], entry.backbones))
    module: Any = modules[block]
    norm_first = full_name(type(module)) not in entry.post_norm
    norm: Any = first_norm(module)
    return Block(block, module, attention, owner, norm.weight.numel(), norm_first)


def _owner(modules: dict[str, nn.Module], above: list[str], entry: Support) -> nn.Module | None:
    """The nearest module around a block whose class is a known backbone or derives from one."""
    for parent in above:
        if any(full_name(cls) in entry.backbones for cls in type(modules[parent]).__mro__):
            return modules[parent]
    return None


def _unknown(name: str, attention: nn.Module, what: str, stranger: nn.Module, known: Sequence[str]) -> str:
    return (f'{name} ({full_name(type(attention))}) is in a {what} {full_name(type(stranger))}, which is not known to '
            f'normalise all tokens of an image before attention. Known for it: {", ".join(known)}; others can be added '
            '(mmprovpt.attention.support).')


__all__ = [
    'Block', 'PromptedAttention', 'SUPPORTED', 'Support', 'find_blocks', 'full_name', 'support', 'supported_text'
]
