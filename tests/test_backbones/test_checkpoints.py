"""Any checkpoint of upstream loads as it is; one that does not fit the frozen backbone raises."""
import logging

import pytest
import torch
from matrix import CASES, build, images, outputs, randomise
from mmengine.config import ConfigDict
from mmengine.runner import load_checkpoint
from torch import nn

TOKENS = dict(num_tokens=2)


class Model(nn.Module):
    """Stands for a detector: checkpoints of whole models prefix the backbone's keys."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def save(path, state):
    torch.save(dict(state_dict=state, meta={}), path)
    return str(path)


def prefixed(backbone):
    return {f'backbone.{key}': value for key, value in backbone.state_dict().items()}


def pretrained(case, path):
    """init_cfg as configs of that library write it."""
    init_cfg = ConfigDict(type='Pretrained', checkpoint=path)
    return ConfigDict(init_cfg, prefix='backbone.') if case.scope == 'mmpretrain' else init_cfg


def init_from(case, state, path, **overrides):
    if case.scope == 'mmseg' and case.upstream in ('VisionTransformer', 'BEiT'):  # which reads no prefix
        state = {key.removeprefix('backbone.'): value for key, value in state.items()}
    backbone = randomise(build(case, TOKENS, init_cfg=pretrained(case, save(path, state)), **overrides), seed=9)
    backbone.init_weights()
    return backbone


def assert_same_frozen(backbone, upstream):
    state = backbone.state_dict()
    for name, value in upstream.state_dict().items():
        assert torch.equal(state[name], value), name


def test_init_cfg(case, tmp_path):
    upstream = build(case)
    assert_same_frozen(init_from(case, prefixed(upstream), tmp_path / 'x.pth'), upstream)


@pytest.mark.parametrize('strict', [True, False])
def test_load_from_and_pytorch(case, tmp_path, strict):
    upstream = build(case)
    model = Model(randomise(build(case, TOKENS), seed=9))
    tokens = model.backbone.prompts.tokens.detach().clone()
    load_checkpoint(model, save(tmp_path / 'x.pth', prefixed(upstream)), strict=strict)
    assert_same_frozen(model.backbone, upstream)
    backbone = randomise(build(case, TOKENS), seed=9)
    backbone.load_state_dict(upstream.state_dict(), strict=strict)
    assert_same_frozen(backbone, upstream)
    assert torch.equal(model.backbone.prompts.tokens, tokens)


def test_resumed_checkpoint_brings_the_prompts(case, tmp_path):
    source, target = Model(build(case, TOKENS)), Model(randomise(build(case, TOKENS), seed=9))
    source.backbone.prompts.relocate(0, 1)
    load_checkpoint(target, save(tmp_path / 'x.pth', source.state_dict()))
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name
    with torch.no_grad():
        for a, b in zip(*(outputs(model.backbone, images(case)) for model in (source, target))):
            assert torch.equal(a, b)


@pytest.mark.parametrize('route', ['init_cfg', 'load_from', 'pytorch'])
def test_missing_key_is_named(case, tmp_path, route):
    state = prefixed(build(case))
    lost = [key for key in state if any(part in key for part in ('qkv.weight', 'q_proj.weight', 'in_proj_weight'))][1]
    del state[lost]
    with pytest.raises(RuntimeError, match='random weights') as error:
        load(route, case, state, tmp_path)
    assert f'Missing keys: {lost.removeprefix("backbone.") if route == "init_cfg" else lost}' in str(error.value)


@pytest.mark.parametrize('route', ['init_cfg', 'load_from', 'pytorch'])
def test_shape_that_does_not_fit_is_named(case, tmp_path, route):
    state = prefixed(build(case))
    layers = 'fc1.weight', 'fc1_g.weight', 'layers.0.0.weight', 'w12.weight'
    key = next(key for key in state if key.endswith(layers))
    state[key] = state[key][:-1]
    with pytest.raises(RuntimeError) as error:
        load(route, case, state, tmp_path)
    rows, columns = state[key].shape
    assert f'{(rows, columns)}, expected {(rows + 1, columns)}' in str(error.value)


def load(route, case, state, tmp_path):
    if route == 'init_cfg':
        init_from(case, state, tmp_path / 'x.pth')
    elif route == 'load_from':
        load_checkpoint(Model(build(case, TOKENS)), save(tmp_path / 'x.pth', state))
    else:
        Model(build(case, TOKENS)).load_state_dict(state, strict=False)


def test_checkpoint_of_another_model_is_refused(case):
    with pytest.raises(RuntimeError, match='Missing keys.*and .* more\nIt holds: stem.weight'):
        build(case, TOKENS).load_state_dict({'stem.weight': torch.zeros(1)}, strict=False)


def test_checkpoint_of_what_was_tuned_loads_alone(case):
    source, target = build(case, TOKENS), build(case, TOKENS)
    source.prompts.relocate(0, 1)
    state = {key: value for key, value in source.state_dict().items() if key.startswith('prompts.')}
    target.load_state_dict(state, strict=False)
    assert torch.equal(target.prompts.tokens, source.prompts.tokens)
    assert target.prompts.distribution.tolist() == source.prompts.distribution.tolist()


@pytest.mark.parametrize('name', ['mmdet-swin', 'mmseg-swin', 'mmpretrain-swin'])
def test_output_norms_may_be_missing(name, tmp_path):
    """Classifiers' checkpoints lack them; they stay the identity."""
    case = CASES[name]
    state = {key: value for key, value in prefixed(build(case)).items() if '.norm0.' not in key}
    backbone = build(case, TOKENS, init_cfg=pretrained(case, save(tmp_path / 'x.pth', state)))
    for parameter, value in (('weight', 1.), ('bias', 0.)):
        getattr(backbone.norm0, parameter).data.fill_(value)
    backbone.init_weights()
    assert backbone.norm0.weight.eq(1).all() and backbone.norm0.bias.eq(0).all()


def test_layout_of_swins_authors(tmp_path):
    """``convert_weights=True`` in mmdet; patch merging lists its channels in another order there."""
    case = CASES['mmdet-swin']
    upstream = build(case)
    official = {}
    for key, value in upstream.state_dict().items():
        if key.startswith('norm'):
            continue
        for ours, theirs in (('stages.', 'layers.'), ('attn.w_msa.', 'attn.'), ('ffn.layers.0.0.', 'mlp.fc1.'),
                             ('ffn.layers.1.', 'mlp.fc2.'), ('projection', 'proj')):
            key = key.replace(ours, theirs)
        if 'downsample.' in key:  # (..., C, 4) with neighbours 00, 01, 10, 11 -> 4 neighbours 00, 10, 01, 11 of C
            value = value.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]].transpose(-1, -2).flatten(-2)
        official[key] = value
    official.update({'norm.weight': torch.ones(48), 'norm.bias': torch.zeros(48), 'head.weight': torch.zeros(5, 48)})
    path = tmp_path / 'swin.pth'
    torch.save(dict(model=official), path)
    backbone = build(case, TOKENS, convert_weights=True, init_cfg=pretrained(case, str(path)))
    backbone.init_weights()
    state = backbone.state_dict()
    for key, value in upstream.state_dict().items():
        assert key.startswith('norm') or torch.equal(state[key], value), key


def test_old_layout_of_mmpretrains_swin():
    """Its conversion asks whether the class is exactly upstream's."""
    case = CASES['mmpretrain-swin']
    upstream, backbone = build(case), build(case, TOKENS)
    old = {key.replace('norm2.', 'norm.') if key.startswith('norm2.') else key: value.clone()
           for key, value in upstream.state_dict().items()}
    old['stages.0.blocks.1.attn.attn_mask'] = torch.zeros(1)
    backbone.load_state_dict(old)
    assert_same_frozen(backbone, upstream)
    assert type(backbone).__name__ == 'PromptedSwinTransformer'


@pytest.mark.parametrize('name, size', [('mmpretrain-vit', dict(img_size=64)), ('mmseg-vit', dict(img_size=(64, 64)))])
def test_positions_are_resized_as_upstream(name, size, tmp_path):
    case = CASES[name]
    state = prefixed(build(case))
    prompted = init_from(case, state, tmp_path / 'x.pth', **size)
    if name == 'mmseg-vit':
        state = {key.removeprefix('backbone.'): value for key, value in state.items()}
    upstream = build(case, init_cfg=pretrained(case, save(tmp_path / 'y.pth', state)), **size)
    upstream.init_weights()
    assert_same_frozen(prompted, upstream)


def test_mmdet_checkpoint_without_prefix(tmp_path):
    case = CASES['mmdet-swin']
    path = save(tmp_path / 'x.pth', build(case).state_dict())
    backbone = build(case, TOKENS, init_cfg=pretrained(case, path))
    with pytest.raises(RuntimeError, match="no key starts with 'backbone.'"):
        backbone.init_weights()


def test_random_frozen_weights_are_said(case, monkeypatch):
    said = []
    monkeypatch.setattr('mmprovpt.backbones.prompted.log', lambda *args: said.append(args))
    build(case, TOKENS).init_weights()
    (message, level), = said
    assert 'prompts will be tuned on random weights' in message
    assert level == logging.WARNING
