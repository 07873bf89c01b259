"""The configs of dense tasks: what they say, what they count, what features they see."""
import sys

import published
import pytest
import timm
import torch
from convert_weights import convert
from dense_task import ROOT, build, config, parse, small_setr
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.utils import get_installed_path
from test_configs import POLICY, differences, read
from timm.models import load_checkpoint

from mmprovpt.cli.options import read_config
from mmprovpt.cli.parameters import count_config
from mmprovpt.cli.preflight import check_files
from mmprovpt.errors import ConfigError
from mmprovpt.shipped import shipped

MASK_RCNN = ('', '_ms_crop_3x')
# Interval of relocation and iterations of the schedule (COCO: 7330 an epoch).
PAIRS = {f'setr_{head}_vit_{size}_{{}}_ade20k': (1600, 160000) for head in ('pup', 'naive', 'mla') for size in 'bl'}
PAIRS.update({f'mask_rcnn_swin_t_{{}}{kind}_coco': (3000, 36 * 7330) if '3x' in kind else (1000, 12 * 7330)
              for kind in MASK_RCNN})
# Those that have baselines without prompts.
BASED = [pair for pair in PAIRS if 'naive' not in pair and 'mla' not in pair]
# Those that exist with the other kinds of prompts, too, and the widths of their blocks.
ADAPTIVE = {'setr_pup_vit_b_{}_ade20k': [768] * 12,
            'mask_rcnn_swin_t_{}_coco': [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2}


def test_no_config_is_missing_or_unknown():
    assert {path.stem for path in (ROOT / 'configs').glob('*.py')} \
        == {pair.format(method) for pair in PAIRS for method in ('vpt', 'provpt')} \
        | {pair.format(method) for pair in BASED for method in ('frozen', 'full', 'lora')} \
        | {pair.format(method) for pair in ADAPTIVE for method in ('vapt', 'provapt', 'vpt_shallow')}


@pytest.mark.parametrize('pair', ADAPTIVE)
def test_twins_with_other_prompts(pair):
    widths = ADAPTIVE[pair]
    for twin, method in dict(vapt='vpt', provapt='provpt', vpt_shallow='vpt').items():
        assert differences(parse(pair.format(method)), parse(pair.format(twin))) - {'custom_hooks'} \
            == {'model.backbone.prompts.type'}
    paper, ours = (parse(pair.format(method))['custom_hooks'][0] for method in ('provpt', 'provapt'))
    assert ours == dict(paper, pruner=dict(type='IdlenessPruner', criterion='gate_fisher'))
    deep, shallow = (count_config(config(pair.format(method))) for method in ('vpt', 'vpt_shallow'))
    assert deep - shallow == 10 * sum(widths[1:])
    # Less: prompts as long as blocks are wide. More: rows, kernels and norms of 11 blocks, a projector for each width.
    more = 10 * 11 * (13**2 + 1) + sum(2**2 + 2 * width for width in widths[1:]) + 2 * 8 * sum(set(widths))
    assert count_config(config(pair.format('vapt'))) - count_config(config(pair.format('vpt'))) \
        == more - 10 * sum(widths[1:])


@pytest.mark.parametrize('pair', PAIRS)
def test_twins_differ_in_relocation_only(pair):
    vpt, provpt = (parse(pair.format(method)) for method in ('vpt', 'provpt'))
    interval, iterations = PAIRS[pair]
    assert differences(vpt, provpt) == {'custom_hooks'} and 'custom_hooks' not in vpt
    assert provpt['custom_hooks'] == [dict(
        type='mmprovpt.PromptRelocationHook', interval=interval, by_epoch=False,
        pruner=dict(type='IdlenessPruner', criterion='taylor'), allocator=dict(type='PPOAllocator'))]
    schedule = provpt['train_cfg']
    assert iterations == schedule.get('max_iters', schedule.get('max_epochs', 0) * 7330)
    assert 87 <= iterations / interval <= 100  # the paper's runs have 100 periods
    assert provpt['model']['backbone']['prompts'] == dict(type='StaticPrompts', num_tokens=10, dropout=0.1)


@pytest.mark.parametrize('pair', BASED)
def test_baselines(pair):
    vpt, frozen, full = (parse(pair.format(method)) for method in ('vpt', 'frozen', 'full'))
    assert differences(vpt, frozen) == {'model.backbone.prompts.num_tokens'}
    assert frozen['model']['backbone']['prompts']['num_tokens'] == 0
    assert differences(vpt, full) == {'model.backbone.type', 'model.backbone.prompts'}
    backbone = full['model']['backbone']
    assert 'prompts' not in backbone and backbone.get('frozen_stages', -1) == -1
    assert f'mmprovpt.Prompted{backbone["type"]}' == vpt['model']['backbone']['type']
    lora = parse(pair.format('lora'))
    assert {key for key in differences(full, lora) if not key.startswith('model.backbone.')} == {'lora'}
    assert differences(lora['model']['backbone']['module'], backbone) <= {'type'}  # a scope before it
    assert {key: value for key, value in lora['model']['backbone'].items() if key != 'module'} \
        == dict(type='mmpretrain.LoRAModel', alpha=16, rank=16, drop_rate=0.1, targets=[dict(type='qkv')])


@pytest.mark.parametrize('head', ['pup', 'naive', 'mla'])
def test_setr_is_mmsegs(head):
    """What of MMSegmentation's SETR changes, and nothing else."""
    theirs = Config.fromfile(
        f'{get_installed_path("mmseg")}/.mim/configs/setr/setr_vit-l_{head}_8xb2-160k_ade20k-512x512.py')
    ours, base = (parse(f'setr_{head}_vit_{size}_vpt_ade20k') for size in 'lb')
    assert ours['default_scope'] == theirs.default_scope == 'mmseg'
    changed = {key for key in differences(theirs, ours) if not key.startswith('model.backbone.')}
    values = {'backbone', 'in21k_pixels', 'multi_scale'}  # of _base_/setr_ade20k.py
    assert changed - values == {
        'default_hooks.classes', 'default_hooks.seed', 'optim_wrapper.type', 'auto_scale_lr', 'tta_pipeline',
        'data_preprocessor.mean', 'data_preprocessor.std',
        'model.data_preprocessor.mean', 'model.data_preprocessor.std'}
    backbone = ours['model']['backbone']
    # The same blocks feed the heads, in the same width, at the same size.
    assert tuple(backbone['out_indices']) == tuple(theirs.model.backbone.out_indices)
    assert (backbone['img_size'], ) * 2 == theirs.model.backbone.img_size
    assert backbone['interpolate_mode'] == theirs.model.backbone.interpolate_mode
    heads = {'model.neck.in_channels'} if head == 'mla' else {'model.decode_head.in_channels', 'model.auxiliary_head'}
    assert differences(ours, base) == heads | {
        'model.backbone.arch', 'model.backbone.out_indices', 'model.backbone.init_cfg.checkpoint'}
    for theirs_aux, ours_aux in zip(theirs.model.auxiliary_head, base['model']['auxiliary_head']):
        assert differences(theirs_aux, ours_aux) == (set() if head == 'mla' else {'in_channels'})


def without_scopes(node):
    """MMEngine notes where it has read 'mmdet::'."""
    if isinstance(node, dict):
        return {key: without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return type(node)(map(without_scopes, node)) if isinstance(node, (list, tuple)) else node


def test_mask_rcnn_is_mmdets():
    for kind, theirs in (('', '1x'), ('_ms_crop_3x', 'ms-crop-3x')):
        theirs = Config.fromfile(
            f'{get_installed_path("mmdet")}/.mim/configs/swin/mask-rcnn_swin-t-p4-w7_fpn_{theirs}_coco.py')
        ours = without_scopes(parse(f'mask_rcnn_swin_t_vpt{kind}_coco'))
        assert differences(theirs, ours) == {
            'model.backbone.type', 'model.backbone.prompts', 'default_hooks.classes', 'default_hooks.seed',
            'optim_wrapper.type'}
        assert ours['val_evaluator']['metric'] == ours['test_evaluator']['metric'] == ['bbox', 'segm']


@pytest.mark.parametrize('distribution', ['mmsegmentation', 'onedl_mmsegmentation', None])
def test_mmseg_is_found_by_its_module(distribution, tmp_path, monkeypatch):
    """Whatever its distribution is called: here is another mmseg, in front of the installed one."""
    package = tmp_path / 'mmseg'
    (package / '.mim/configs/setr').mkdir(parents=True)
    (package / '__init__.py').touch()
    (package / '.mim/configs/setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512.py').write_text('another = dict(lr=7)\n')
    if distribution:
        info = tmp_path / f'{distribution}-9.9.9.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {distribution}\nVersion: 9.9.9\n')
        (info / 'top_level.txt').write_text('mmseg\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'mmseg', raising=False)
    assert Config.fromfile(ROOT / 'configs/setr_pup_vit_l_vpt_ade20k.py').another.lr == 7


@pytest.mark.parametrize('package, name', [
    ('mmseg', 'setr_pup_vit_b_provpt_ade20k'), ('mmdet', 'mask_rcnn_swin_t_provpt_coco')])
def test_without_the_codebase(package, name, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # find_spec then finds none
    monkeypatch.setattr('mmengine.config.config.is_installed', lambda given: given != package)
    with pytest.raises(ConfigError, match=f'{name}.py needs a package that is not installed: .*{package}'):
        read_config(ROOT / f'configs/{name}.py')


def conv_bn(kernel, inputs, outputs):
    return kernel**2 * inputs * outputs + 2 * outputs


def up_head(width, convs, kernel):
    inputs = [width] + [256] * (convs - 1)
    return 2 * width + sum(conv_bn(kernel, i, 256) for i in inputs) + 257 * 150


def setr_heads(head, width):
    if head == 'pup':
        return up_head(width, 4, 3) + 3 * up_head(width, 2, 3)
    if head == 'naive':
        return up_head(width, 1, 1) + 3 * up_head(width, 2, 1)
    neck = 4 * (2 * width + conv_bn(1, width, 256) + conv_bn(3, 256, 256))
    decode = 4 * (conv_bn(3, 256, 128) + conv_bn(3, 128, 128)) + 513 * 150
    return neck + decode + 4 * 257 * 150


@pytest.mark.parametrize('size, width, blocks', [('b', 768, 12), ('l', 1024, 24)])
@pytest.mark.parametrize('head', ['pup', 'naive', 'mla'])
def test_parameters_of_setr(head, size, width, blocks):
    expected = setr_heads(head, width) + 10 * blocks * width
    policy = 2 * (3 * blocks * 64 + 64 + 64 * 64 + 64) + 65 * blocks + 65
    assert blocks != 12 or policy == POLICY
    assert count_config(config(f'setr_{head}_vit_{size}_vpt_ade20k')) == expected
    assert count_config(config(f'setr_{head}_vit_{size}_provpt_ade20k')) == expected + policy
    if f'setr_{head}_vit_{size}_{{}}_ade20k' not in BASED:
        return
    heads = setr_heads(head, width)
    assert count_config(config(f'setr_{head}_vit_{size}_frozen_ade20k')) == heads
    # Patches, class token and positions of 512 px; blocks of norms, attention and MLP.
    backbone = width * (3 * 16**2 + 1) + width + (32**2 + 1) * width + blocks * (12 * width**2 + 13 * width)
    assert count_config(config(f'setr_{head}_vit_{size}_full_ade20k')) == heads + backbone
    assert count_config(config(f'setr_{head}_vit_{size}_lora_ade20k')) == heads + blocks * 16 * 4 * width


def test_parameters_of_mask_rcnn():
    widths = [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2
    conv = 9 * 256 * 256 + 256
    fpn = sum(256 * (width + 1) for width in (96, 192, 384, 768)) + 4 * conv
    rpn = conv + 257 * 3 * (1 + 4)
    boxes = (256 * 49 + 1) * 1024 + 1025 * 1024 + 1025 * (81 + 4 * 80)
    masks = 4 * conv + 4 * 256 * 256 + 256 + 257 * 80
    expected = 10 * sum(widths) + fpn + rpn + boxes + masks
    for kind in MASK_RCNN:
        assert count_config(config(f'mask_rcnn_swin_t_vpt{kind}_coco')) == expected
        assert count_config(config(f'mask_rcnn_swin_t_provpt{kind}_coco')) == expected + POLICY
    heads = expected - 10 * sum(widths)
    # Blocks of norms, attention with 13² biases a head of 32, and MLP; patches and their norm; merging; output norms.
    swin = sum(12 * width**2 + 13 * width + 13**2 * width // 32 for width in widths) + 96 * (3 * 4**2 + 1 + 2) \
        + sum(8 * width**2 + 8 * width for width in (96, 192, 384)) + 2 * (96 + 192 + 384 + 768)
    assert [count_config(config(f'mask_rcnn_swin_t_{method}_coco')) for method in ('frozen', 'full', 'lora')] \
        == [heads, heads + swin, heads + 16 * 4 * sum(widths)]


@torch.no_grad()
def test_setr_sees_timms_features(tmp_path):
    """From a file in the layout of ViT-B_16.npz, at four times the pixels of its pre-training."""
    small = dict(embed_dim=24, depth=4, num_heads=2, num_classes=0)
    published.jax(published.randomise(timm.create_model('vit_base_patch16_224', img_size=48, **small)),
                  str(tmp_path / 'x.npz'))
    convert(str(tmp_path / 'x.npz'), str(tmp_path / 'x.pth'))
    cfg = small_setr(config('setr_pup_vit_b_vpt_ade20k'))
    cfg.model.backbone.update(
        img_size=96, prompts=dict(type='StaticPrompts', num_tokens=0),
        init_cfg=dict(parse('setr_pup_vit_b_vpt_ade20k')['model']['backbone']['init_cfg'],
                      checkpoint=str(tmp_path / 'x.pth')))
    model = build(cfg)
    model.init_weights()
    model.eval()
    reference = timm.create_model('vit_base_patch16_224', img_size=96, **small)
    load_checkpoint(reference, str(tmp_path / 'x.npz'))
    pixels = torch.randint(0, 256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    inputs = model.data_preprocessor(dict(inputs=list(pixels.flip(1))))['inputs']  # BGR, as files are read
    ours = model.extract_feat(inputs)
    theirs = reference.eval().forward_intermediates(
        pixels / 127.5 - 1, indices=4, norm=False, intermediates_only=True)
    assert len(ours) == 4 and ours[0].shape == (2, 24, 6, 6)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('options, rate', [
    ({}, 0.001), ({'optim_wrapper.paramwise_cfg.custom_keys.prompts.lr_mult': 100}, 0.1)])  # docs/how-to/dense.md
def test_learning_rates_of_setr(options, rate):
    cfg = small_setr(config('setr_pup_vit_b_provpt_ade20k'))
    cfg.merge_from_dict(options)
    model = build(cfg)
    names = {id(parameter): name.split('.')[0] for name, parameter in model.named_parameters()}
    rates = {(names[id(group['params'][0])], group['lr']) for group in
             build_optim_wrapper(model, cfg.optim_wrapper).param_groups if group['params'][0].requires_grad}
    assert rates == {('backbone', rate), ('decode_head', 0.01), ('auxiliary_head', 0.01)}


def test_missing_data_and_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        check_files(config('setr_pup_vit_b_provpt_ade20k'))
    message = str(error.value)
    for line in ("train_dataloader.dataset.data_prefix.img_path = 'images/training': no such directory",
                 f'looked for: {tmp_path}/data/ade/ADEChallengeData2016/annotations/validation',
                 f'what to do: put ADE20k there ({shipped("docs/how-to/dense.md")}), or override data_root with ',
                 "model.backbone.init_cfg.checkpoint = 'checkpoints/vit_b16_in21k.pth': no such file",
                 f'what to do: get it as {shipped("docs/how-to/weights.md")} says'):
        assert line in message


@pytest.mark.parametrize('head', ['setr_pup', 'upernet', 'mask2former'])
def test_camvid_twins(head):
    """One backbone, one head, one schedule; prompts are 12 × 10 rows of 384 numbers, and PRO-VPT has a policy."""
    configs = {method: read(f'camvid/{head}_vit_s_{method}_camvid.py')
               for method in ('vpt', 'provpt', 'frozen', 'lora', 'full')}
    assert differences(configs['vpt'], configs['provpt']) == {'custom_hooks'}
    counts = {method: count_config(cfg) for method, cfg in configs.items()}
    assert counts['vpt'] - counts['frozen'] == 12 * 10 * 384
    assert counts['provpt'] - counts['vpt'] == POLICY
    assert counts['lora'] - counts['frozen'] == 12 * 16 * 4 * 384
    assert counts['full'] > 21e6
    for cfg in configs.values():
        assert cfg.model.decode_head.num_classes == len(cfg.train_dataloader.dataset.metainfo.classes) == 11
        assert cfg.model.decode_head.ignore_index == cfg.test_evaluator.ignore_index == 11
