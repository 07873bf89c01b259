"""The backbones of configs are classes like any other."""
import copy
import pickle
import pydoc

import pytest
import torch
from matrix import CASES, OWN, build, images, outputs
from mmengine.registry import MODELS, DefaultScope

from mmprovpt.backbones import registered
from mmprovpt.errors import ConfigError

CONFIGURABLE = [name for name, case in CASES.items() if case.upstream in OWN]


@pytest.mark.parametrize('name', CONFIGURABLE)
def test_instance_of_ours_and_of_upstreams(name):
    case = CASES[name]
    backbone = build(case, dict(num_tokens=1))
    ours = getattr(registered, f'Prompted{case.upstream}')
    assert isinstance(backbone, ours) and isinstance(backbone, type(build(case)))
    assert type(backbone).__name__ == f'Prompted{case.upstream}'
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert type(twin) is type(backbone)


def test_the_class_as_type():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(dict(
            type=registered.PromptedVisionTransformer, **CASES['mmpretrain-vit'].cfg,
            prompts=dict(type='StaticPrompts', num_tokens=1)))
    assert isinstance(backbone, registered.PromptedVisionTransformer)


def test_a_prompts_class_as_type():
    from mmprovpt.prompts import ShallowPrompts
    backbone = build(CASES['mmpretrain-vit'], dict(type=ShallowPrompts, num_tokens=2))
    assert type(backbone.prompts) is ShallowPrompts


@pytest.mark.parametrize('name', CONFIGURABLE)
def test_a_subclass_keeps_its_overrides(name):
    case = CASES[name]
    ours = getattr(registered, f'Prompted{case.upstream}')

    class Mine(ours):
        """Somebody's own."""

        def __init__(self, *args, factor=1, **kwargs):
            super().__init__(*args, **kwargs)
            self.factor = factor

        def forward(self, x):
            return tuple(self.factor * out for out in torch.utils._pytree.tree_leaves(super().forward(x)))

        def train(self, mode=True):
            self.told = mode
            return super().train(mode)

    with DefaultScope.overwrite_default_scope(case.scope):
        torch.manual_seed(0)
        plain = ours(**case.cfg, prompts=dict(type='StaticPrompts', num_tokens=2)).eval()
        torch.manual_seed(0)
        mine = Mine(**case.cfg, prompts=dict(type='StaticPrompts', num_tokens=2), factor=3).eval()
    assert isinstance(mine, Mine) and isinstance(mine, ours) and type(mine).__name__ == 'Mine' and mine.told is False
    with torch.no_grad():
        for a, b in zip(outputs(mine, images(case)), outputs(plain, images(case)), strict=True):
            assert torch.equal(a, 3 * b)


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet'])
@pytest.mark.parametrize('name, library, cfg', [
    ('BEiT', 'mmseg', CASES['mmseg-beit'].cfg), ('MAE', 'mmseg', CASES['mmseg-beit'].cfg),
    ('MoCoV3ViT', 'mmpretrain', dict(CASES['mmpretrain-vit'].cfg, frozen_stages=3, norm_eval=True))])
def test_names_that_other_things_have_too(name, library, cfg, scope):
    """MMPretrain's BEiT and MAE are ways to pre-train."""
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(dict(cfg, type=f'mmprovpt.Prompted{name}', prompts=dict(
            type='StaticPrompts', num_tokens=2)))
    assert backbone.upstream.__name__ == name and backbone.upstream.__module__.startswith(f'{library}.models.')
    sum(out.square().sum() for out in outputs(backbone.train(), torch.randn(1, 3, 32, 32))).backward()
    assert backbone.prompts.tokens.grad.abs().sum(1).all()
    assert [key for key, value in backbone.named_parameters() if value.grad is not None] == ['prompts.tokens']


def test_help_shows_prompts():
    for ours in (registered.PromptedVisionTransformer, registered.PromptedSwinTransformer,
                 registered.PromptedTIMMBackbone):
        text = pydoc.render_doc(ours)
        assert 'prompts' in text.split('Method resolution order')[0] and 'inject_prompts' in text
        assert 'prompts: dict' in pydoc.render_doc(ours.__init__)


def test_without_prompts():
    with DefaultScope.overwrite_default_scope('mmdet'):
        with pytest.raises(TypeError, match='prompts'):
            MODELS.build(dict(type='mmprovpt.PromptedSwinTransformer'))
        with pytest.raises(ConfigError, match='prompts=None, but it must be a dict'):
            MODELS.build(dict(type='mmprovpt.PromptedSwinTransformer', prompts=None))
