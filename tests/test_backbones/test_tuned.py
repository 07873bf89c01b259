"""A state dict of what was tuned: what it leaves out, how it comes back, and what it refuses."""
import hashlib

import pytest
import torch
from matrix import CASES, build, images, outputs, randomise
from mmengine.config import ConfigDict
from mmengine.runner import load_checkpoint
from torch import nn

from mmprovpt import inject_prompts, tuned_state_dict

TOKENS = dict(num_tokens=2)
KEY = 'backbone.prompts.frozen_sha256'
MINE = {KEY, 'backbone.prompts.tokens', 'backbone.prompts.block_index', 'backbone.prompts.form'}


class Detector(nn.Module):
    """Backbone, neck with batch norm, head."""

    def __init__(self, backbone, seed=0):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)
        torch.manual_seed(seed)
        with torch.no_grad():
            for tensor in (self.neck.running_mean, self.head.weight, self.head.bias, backbone.prompts.tokens):
                tensor.normal_()
        backbone.prompts.relocate(seed, 1)


def init_cfg(case, path):
    """As configs of that library write it, of a file with the weights of ``build(case)``."""
    reads_no_prefix = case.scope == 'mmseg' and case.upstream in ('VisionTransformer', 'BEiT')
    prefix = '' if reads_no_prefix else 'backbone.'
    torch.save(dict(state_dict={prefix + key: value for key, value in build(case).state_dict().items()}), path)
    cfg = ConfigDict(type='Pretrained', checkpoint=str(path))
    return ConfigDict(cfg, prefix='backbone.') if case.scope == 'mmpretrain' else cfg


def assert_same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def slow_fingerprint(upstream):
    """Of a backbone without prompts, by number for number."""
    digest = hashlib.sha256()
    for name in sorted(upstream.state_dict()):
        value = upstream.state_dict()[name]
        if value.dtype == torch.float32:
            digest.update(f'{name} torch.float32 {tuple(value.shape)};'.encode())
            for number in value.flatten().view(torch.int32).tolist():
                digest.update(number.to_bytes(4, 'little', signed=True))
    return list(digest.digest())


def test_holds_all_but_the_frozen_weights(case):
    model = Detector(build(case, TOKENS))
    full, small = model.state_dict(), tuned_state_dict(model)
    assert small.keys() == MINE | {key for key in full if key.startswith(('neck.', 'head.'))}
    for key in small.keys() - {KEY}:
        assert torch.equal(small[key], full[key])
    assert small[KEY].tolist() == slow_fingerprint(build(case))
    assert small._metadata == full._metadata  # the backbone's init_cfg names no checkpoint


@pytest.mark.parametrize('loader', ['mmengine', 'pytorch'])
def test_loads_strictly_beside_the_same_weights(case, tmp_path, loader):
    source, target = (Detector(build(case, TOKENS), seed) for seed in (0, 1))
    small = tuned_state_dict(source)
    if loader == 'pytorch':
        target.load_state_dict(small, strict=True)
    else:
        torch.save(dict(state_dict=small), tmp_path / 'x.pth')
        load_checkpoint(target, str(tmp_path / 'x.pth'), strict=True)
    assert KEY in small  # what was given is not changed
    assert_same(source, target)
    with torch.no_grad():
        for a, b in zip(*(outputs(model.backbone.eval(), images(case)) for model in (source, target))):
            assert torch.equal(a, b)


def test_reads_the_frozen_weights_where_init_cfg_says(case, tmp_path):
    """Whoever only tests or infers builds the model and loads into it, without init_weights."""
    cfg = init_cfg(case, tmp_path / 'pretrained.pth')
    source = Detector(build(case, TOKENS))
    target = Detector(randomise(build(case, TOKENS, init_cfg=cfg), seed=9), seed=1)
    target.load_state_dict(tuned_state_dict(source), strict=True)
    assert_same(source, target)


@pytest.mark.parametrize('initialised', [False, True])
def test_reads_the_frozen_weights_where_the_checkpoint_says(case, tmp_path, initialised):
    """init_detector and others take init_cfg away; a training config may lack it."""
    source = Detector(build(case, TOKENS, init_cfg=init_cfg(case, tmp_path / 'pretrained.pth')))
    target = Detector(build(case, TOKENS), seed=1)
    if initialised:
        target.backbone.init_weights()
    randomise(target.backbone, seed=9)
    torch.save(tuned_state_dict(source), tmp_path / 'small.pth')
    small = torch.load(tmp_path / 'small.pth', weights_only=True)
    target.load_state_dict(small, strict=True)
    assert_same(source, target)
    assert tuned_state_dict(target)._metadata == small._metadata  # it says so again


def test_its_own_init_cfg_goes_first(tmp_path):
    case = CASES['mmpretrain-vit']
    source = build(case, TOKENS, init_cfg=init_cfg(case, tmp_path / 'pretrained.pth'))
    target = randomise(build(case, TOKENS, init_cfg=dict(type='Pretrained', checkpoint='/nowhere.pth')), seed=9)
    with pytest.raises(RuntimeError, match='cannot be read from.*/nowhere.pth'):
        target.load_state_dict(tuned_state_dict(source))


def test_what_the_checkpoint_says_is_checked(tmp_path):
    case = CASES['mmdet-swin']
    cfg = init_cfg(case, tmp_path / 'pretrained.pth')
    source, target = build(case, TOKENS, init_cfg=cfg), randomise(build(case, TOKENS), seed=9)
    other = randomise(build(case), seed=8).state_dict()
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in other.items()}), cfg.checkpoint)
    with pytest.raises(RuntimeError, match='(?s)other frozen weights.*init_cfg.*pretrained.pth'):
        target.load_state_dict(tuned_state_dict(source))


@pytest.mark.parametrize('initialised', [True, False])
def test_refuses_other_weights(case, tmp_path, initialised):
    """Be they of init_cfg or not; one bit is enough."""
    source = build(case, TOKENS)
    wanted = bytes(tuned_state_dict(source)['prompts.frozen_sha256'].tolist()).hex()
    target = build(case, TOKENS, init_cfg=init_cfg(case, tmp_path / 'pretrained.pth'))
    changed = next(value for value in source.frozen_tensors().values() if value.is_floating_point())
    changed.view(torch.int32).flatten()[0] ^= 1
    target.prompts.relocate(0, 1)
    small = tuned_state_dict(source)
    if initialised:
        target.init_weights()
    else:
        randomise(target, seed=9)
    before = {name: value.clone() for name, value in target.prompts.state_dict().items()}
    with pytest.raises(RuntimeError, match='other frozen weights') as error:
        target.load_state_dict(small, strict=False)
    given = bytes(small['prompts.frozen_sha256'].tolist()).hex()
    assert f'in the checkpoint: {given}\n' in str(error.value) and f'here:              {wanted}' in str(error.value)
    assert 'pretrained.pth' in str(error.value) and '--merge' in str(error.value)
    assert all(torch.equal(target.prompts.state_dict()[name], value) for name, value in before.items())


def test_init_cfg_that_names_a_small_checkpoint(tmp_path):
    case = CASES['mmpretrain-vit']
    source, cfg = build(case, TOKENS), init_cfg(case, tmp_path / 'small.pth')
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in tuned_state_dict(source).items()}),
               tmp_path / 'small.pth')
    target = randomise(build(case, TOKENS, init_cfg=cfg), seed=9)
    with pytest.raises(RuntimeError, match='on other frozen weights'):
        target.load_state_dict(tuned_state_dict(source))


def test_missing_weights_of_init_cfg_are_named():
    case = CASES['mmpretrain-vit']
    target = build(case, TOKENS, init_cfg=ConfigDict(type='Pretrained', checkpoint='/nowhere.pth', prefix='backbone.'))
    with pytest.raises(RuntimeError, match='holds only what was tuned.*cannot be read from.*/nowhere.pth'):
        randomise(target, 9).load_state_dict(tuned_state_dict(build(case, TOKENS)))


def test_weights_loaded_by_timm_are_not_initialised_again(monkeypatch):
    source, target = (build(CASES['timm-vit'], TOKENS) for _ in range(2))
    target._is_init = True  # as mmpretrain's TIMMBackbone notes that timm has loaded what it has
    target.init_cfg = dict(type='Normal')
    monkeypatch.setattr(type(target), 'init_weights', lambda self: pytest.fail('initialised again'))
    target.load_state_dict(tuned_state_dict(source))
    randomise(target, 9)
    with pytest.raises(RuntimeError, match='other frozen weights'):
        target.load_state_dict(tuned_state_dict(source))


def test_precision_is_part_of_the_weights():
    """Half of the bits are not the weights that were tuned on; halving what was loaded is fine."""
    case = CASES['timm-vit']
    source, target = build(case, TOKENS), build(case, TOKENS).half()
    with pytest.raises(RuntimeError, match='dtype'):
        target.load_state_dict(tuned_state_dict(source))
    halved = tuned_state_dict(source.half())
    target.load_state_dict(halved)
    assert_same(source, target)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_has_a_fingerprint(dtype):
    backbone = build(CASES['timm-vit'], TOKENS).to(dtype)
    target = randomise(build(CASES['timm-vit'], dict(num_tokens=2)).to(dtype), 9)
    with pytest.raises(RuntimeError, match='other frozen weights'):
        target.load_state_dict(tuned_state_dict(backbone))
    target.load_state_dict(backbone.state_dict())
    target.load_state_dict(tuned_state_dict(backbone))


def test_what_was_set_free_again_is_tuned():
    case = CASES['mmpretrain-vit']
    source, target = (build(case, TOKENS) for _ in range(2))
    for backbone in (source, target):
        backbone.ln1.requires_grad_(True)
    with torch.no_grad():
        source.ln1.weight += 1
    small = tuned_state_dict(source)
    assert {key for key in small if not key.startswith('prompts.')} == {'ln1.weight', 'ln1.bias'}
    target.load_state_dict(small, strict=True)
    assert_same(source, target)


def test_shape_of_a_tuned_weight_is_checked_too():
    source = build(CASES['mmpretrain-vit'], TOKENS)
    source.ln1.requires_grad_(True)
    small = tuned_state_dict(source)
    small['ln1.weight'] = small['ln1.weight'][:-1]
    with pytest.raises(RuntimeError, match=r'ln1.weight: \(31,\), expected \(32,\)'):
        build(CASES['mmpretrain-vit'], TOKENS).load_state_dict(small, strict=False)


def test_prompts_alone_are_taken_with_a_warning(monkeypatch):
    """A state dict that somebody cut by hand."""
    said = []
    monkeypatch.setattr('mmprovpt.backbones.loading.log', lambda *args, **kwargs: said.append(args[0]))
    source, target = (build(CASES['timm-vit'], TOKENS) for _ in range(2))
    target.load_state_dict({key: value for key, value in tuned_state_dict(source).items() if 'sha256' not in key})
    assert 'does not say which frozen weights' in said[-1]
    assert_same(source, target)


def test_no_prompts_at_all():
    with pytest.raises(ValueError, match='Linear has no backbone with prompts'):
        tuned_state_dict(nn.Linear(2, 2))


def test_two_backbones():
    case = CASES['timm-vit']

    class Pair(nn.Module):

        def __init__(self):
            super().__init__()
            self.a, self.b = randomise(build(case), 1), build(case)
            inject_prompts(self.a, dict(type='StaticPrompts', num_tokens=1))
            inject_prompts(self.b, dict(type='StaticPrompts', num_tokens=2))

    source, target = Pair(), Pair()
    small = tuned_state_dict(source)
    assert len(small) == 8 and not torch.equal(small['a.prompts.frozen_sha256'], small['b.prompts.frozen_sha256'])
    target.load_state_dict(small, strict=True)
    assert_same(source, target)
    small['a.prompts.frozen_sha256'] = small['b.prompts.frozen_sha256']
    with pytest.raises(RuntimeError, match='other frozen weights'):
        target.load_state_dict(small, strict=True)
