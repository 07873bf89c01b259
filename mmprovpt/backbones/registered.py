"""Upstream backbones with prompts, for configs.

Each takes every argument of the upstream class *of the current default scope* and ``prompts``. Where that library
has no such class (a ViT in mmdet), mmpretrain's is taken, as OpenMMLab's users do by hand; ``_scope_='mmseg'`` in
the backbone's config chooses another library.
"""
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope

from mmprovpt.attention import find_blocks
from mmprovpt.errors import ConfigError
from mmprovpt.registry import MODELS

from .adopt import combined
from .inject import build_prompts, own
from .prompted import PromptedBackbone


class _Registered(PromptedBackbone):
    """What they have in common; a built one is an instance of its class and of the upstream one."""

    is_registered = True
    upstream_name: str

    def __new__(cls, *args, **kwargs):
        if not hasattr(cls, 'upstream'):
            cls = combined(cls, find_upstream(cls.upstream_name))
        return super().__new__(cls)

    def __init__(self, *args, prompts: dict, **kwargs) -> None:
        if not isinstance(prompts, dict):
            raise ConfigError(f"prompts={prompts!r}, but it must be a dict such as dict(type='StaticPrompts', "
                              'num_tokens=10)')
        super().__init__(*args, **kwargs)
        blocks = find_blocks(self)
        own(self, blocks, build_prompts(self, blocks, prompts))


def _register(name: str, libraries: str) -> type:
    doc = f"""``{name}`` of {libraries} with prompts.

    Args:
        prompts (dict): See :func:`mmprovpt.inject_prompts`.
        args, kwargs: Of the upstream class.
    """
    cls = type(f'Prompted{name}', (_Registered, ), dict(upstream_name=name, __doc__=doc, __module__=__name__))
    return MODELS.register_module(module=cls)


PromptedVisionTransformer = _register('VisionTransformer', 'mmpretrain or mmseg')
PromptedSwinTransformer = _register('SwinTransformer', 'mmdet, mmseg or mmpretrain')
PromptedSwinTransformerV2 = _register('SwinTransformerV2', 'mmpretrain')
PromptedDistilledVisionTransformer = _register('DistilledVisionTransformer', 'mmpretrain')
PromptedDeiT3 = _register('DeiT3', 'mmpretrain')
PromptedViTEVA02 = _register('ViTEVA02', 'mmpretrain')
PromptedMoCoV3ViT = _register('MoCoV3ViT', 'mmpretrain')
PromptedBEiTViT = _register('BEiTViT', 'mmpretrain')
PromptedBEiT = _register('BEiT', 'mmseg')
PromptedMAE = _register('MAE', 'mmseg')


@MODELS.register_module()
class PromptedTIMMBackbone(_Registered):
    """``TIMMBackbone`` of mmpretrain or mmseg with prompts, for any ViT or Swin of timm.

    ``features_only=True, out_indices=(2, 5, 8, 11)`` of upstream gives necks the maps (B, C, h, w) behind these blocks,
    without class token and registers, of the image sizes that timm's ``dynamic_img_size=True, dynamic_img_pad=True``
    allow a plain ViT.

    Args:
        prompts (dict): See :func:`mmprovpt.inject_prompts`.
        final_norm (bool): With ``features_only``, whether a plain ViT's last norm is applied to each of its maps.
        args, kwargs: Of the upstream class, e.g. ``model_name='vit_small_patch14_dinov2'``.
    """

    upstream_name = 'TIMMBackbone'

    def __init__(self, *args, prompts: dict, final_norm: bool = False, **kwargs) -> None:
        if final_norm:
            if not kwargs.setdefault('features_only', True):
                raise ConfigError('final_norm=True is for features_only=True: without that, timm applies it anyway')
            from .timm_features import NormedFeatures
            kwargs['feature_cls'] = NormedFeatures
        super().__init__(*args, prompts=prompts, **kwargs)


# Upstream's names → ours, for configs.
PROMPTED = {cls.upstream_name: f'mmprovpt.{cls.__name__}' for cls in _Registered.__subclasses__()}


def find_upstream(name: str) -> type:
    """The class of that name in the current default scope, or else in mmpretrain."""
    current = DefaultScope.get_current_instance()
    scopes = dict.fromkeys([current.scope_name] if current else [])
    scopes['mmpretrain'] = None
    if name in ('BEiT', 'MAE'):  # so mmpretrain calls its ways to pre-train
        scopes = dict(mmseg=None)
    for scope in scopes:
        try:
            found = ROOT_MODELS.get(f'{scope}.{name}')
        except (ImportError, RuntimeError):  # the library is not installed, or has no such class
            continue
        if isinstance(found, type):
            return found
    raise ConfigError(f'No {name} in {" or ".join(scopes)}: either the library is not installed, or it has no such '
                      "backbone. Set default_scope, or _scope_='mmseg' (for example) in the backbone's config.")
