"""Upstream backbones with prompts, for configs.

Each takes every argument of the upstream class *of the current default scope* and ``prompts``. Where that library
has no such class (a ViT in mmdet), mmpretrain's is taken, as OpenMMLab's users do by hand; ``_scope_='mmseg'`` in
the backbone's config chooses another library.
"""
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import nn

from mmprovpt.prompts import inject_prompts
from mmprovpt.registry import MODELS


@MODELS.register_module()
def PromptedVisionTransformer(prompts: dict, **kwargs) -> nn.Module:
    """``VisionTransformer`` of mmpretrain or mmseg with prompts.

    Args:
        prompts: See :func:`mmprovpt.inject_prompts`.
        **kwargs: Of the upstream class.
    """
    return _prompted('VisionTransformer', prompts, kwargs)


@MODELS.register_module()
def PromptedSwinTransformer(prompts: dict, **kwargs) -> nn.Module:
    """``SwinTransformer`` of mmdet, mmseg or mmpretrain with prompts.

    Args:
        prompts: See :func:`mmprovpt.inject_prompts`.
        **kwargs: Of the upstream class.
    """
    return _prompted('SwinTransformer', prompts, kwargs)


@MODELS.register_module()
def PromptedTIMMBackbone(prompts: dict, **kwargs) -> nn.Module:
    """``TIMMBackbone`` of mmpretrain or mmseg with prompts, for any ViT or Swin of timm.

    Args:
        prompts: See :func:`mmprovpt.inject_prompts`.
        **kwargs: Of the upstream class, e.g. ``model_name='vit_small_patch14_dinov2'``.
    """
    return _prompted('TIMMBackbone', prompts, kwargs)


def _prompted(name: str, prompts: dict, kwargs: dict) -> nn.Module:
    if not isinstance(prompts, dict):
        raise TypeError(f"prompts={prompts!r}, but it must be a dict such as dict(type='StaticPrompts', num_tokens=10)")
    backbone = find_upstream(name)(**kwargs)
    inject_prompts(backbone, prompts)
    return backbone


def find_upstream(name: str) -> type:
    """The class of that name in the current default scope, or else in mmpretrain."""
    current = DefaultScope.get_current_instance()
    scopes = dict.fromkeys([current.scope_name] if current else [])
    scopes['mmpretrain'] = None
    for scope in scopes:
        try:
            found = ROOT_MODELS.get(f'{scope}.{name}')
        except (ImportError, RuntimeError):  # the library is not installed, or has no such class
            continue
        if isinstance(found, type):
            return found
    raise ValueError(f'No {name} in {" or ".join(scopes)}: either the library is not installed, or it has no such '
                     "backbone. Set default_scope, or _scope_='mmseg' (for example) in the backbone's config.")
