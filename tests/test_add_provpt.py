"""tools/add_provpt.py: what it writes is a config that trains, and what takes no prompts is refused."""
import functools
import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.structures import PixelData
from tiny_task import TASK, write_images

from mmprovpt.cli.parameters import count_trainable
from mmprovpt.cli.runner import build_runner
from mmprovpt.relocation import PPOAllocator

ROOT = Path(__file__).parents[1]
SWIN = "type='SwinTransformer', embed_dims=12, depths=(1, 1), num_heads=(2, 3), strides=(4, 2), out_indices=(0, 1)"
PRETRAIN_SWIN = "type='mmpretrain.SwinTransformer', arch=dict(embed_dims=12, depths=(1, 1), num_heads=(2, 3)), " \
    'out_indices=(0, 1), pad_small_map=True'
VIT = "type='VisionTransformer', img_size=(32, 32), patch_size=8, embed_dims=16, num_layers=2, num_heads=2"
DETECTOR = """dict(
    type='RetinaNet', data_preprocessor=dict(type='DetDataPreprocessor'), backbone=dict(BACKBONE),
    neck=dict(type='FPN', in_channels=[12, 24], out_channels=8, num_outs=5),
    bbox_head=dict(type='RetinaHead', num_classes=3, in_channels=8, feat_channels=8),
    train_cfg=dict(allowed_border=-1, pos_weight=-1, debug=False, assigner=dict(
        type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1)))"""
SCHEDULE = """
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1000)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=0.01))
"""
DETECTION = f"default_scope = 'mmdet'\nmodel = {DETECTOR}" + SCHEDULE
BASES = {
    'hooks': DETECTION.replace('BACKBONE', f'{SWIN}, frozen_stages=1') + """
custom_hooks = [dict(type='EmptyCacheHook', priority=40)]
optim_wrapper.update(paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1, decay_mult=0.5), 'norm': dict()}))
""",
    'scope': DETECTION.replace('BACKBONE', PRETRAIN_SWIN),
    'wrapped': "default_scope = 'mmdet'\n" + f"""
model = dict(type='ByteTrack', data_preprocessor=dict(type='DetDataPreprocessor'), detector={DETECTOR})
""".replace('BACKBONE', SWIN) + SCHEDULE,
    'segmentation': f"""
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32)), backbone=dict({VIT}),
    decode_head=dict(type='FCNHead', in_channels=16, channels=8, num_classes=3, norm_cfg=dict(type='BN')))
""" + SCHEDULE,
}
PLACES = dict(dict.fromkeys(BASES, 'backbone'), wrapped='detector.backbone')


@pytest.fixture
def call(call):
    return functools.partial(call, 'add_provpt')


def build(cfg):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def batch(scope):
    """Two images of a codebase with what is to be learned of them."""
    if scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs
        return demo_mm_inputs(2, [[3, 64, 64]] * 2, num_classes=3, num_items=[2, 2], use_box_type=True)
    from mmseg.structures import SegDataSample
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(3, (1, 32, 32))),
                             metainfo=dict(img_shape=(32, 32))) for _ in range(2)]
    return dict(inputs=[torch.rand(3, 32, 32) * 255 for _ in range(2)], data_samples=samples)


@pytest.mark.parametrize('kind', ['StaticPrompts', 'AdaptivePrompts'])
@pytest.mark.parametrize('name', BASES)
def test_written_config_trains(name, kind, call, tmp_path, capsys):
    base_file, out = tmp_path / 'base.py', tmp_path / 'new' / 'provpt.py'
    base_file.write_text(BASES[name])
    call(base_file, '--num-tokens', 3, '--out', out, *['--prompts', kind][:2 * (kind != 'StaticPrompts')])
    assert out.read_text().startswith("_base_ = '../base.py'\n")
    base, cfg = Config.fromfile(base_file), Config.fromfile(out)
    hook = dict(type='mmprovpt.PromptRelocationHook', interval=10, by_epoch=False)
    assert cfg.custom_hooks == [*base.get('custom_hooks', []), hook]
    assert cfg.default_hooks == dict(seed=dict(type='mmprovpt.IterationSeedHook'))
    assert cfg.optim_wrapper.type == 'mmprovpt.FiniteOptimWrapper'

    before, model, place = build(base), build(cfg), PLACES[name]
    backbone = model.get_submodule(place)
    assert backbone.upstream is type(before.get_submodule(place))
    assert len(backbone.prompts.tokens) == 3 * backbone.prompts.num_blocks
    assert type(backbone.prompts).__name__ == kind
    policy = count_trainable(model, PPOAllocator(num_blocks=backbone.prompts.num_blocks, seed=0))
    report = capsys.readouterr().err
    assert f'trainable parameters: {count_trainable(before):,} before, {policy:,} after' in report
    assert f'model.{place}: ' in report and (
        f'prompts: {len(backbone.prompts.tokens)}, of {backbone.prompts.num_active:,} trained numbers\n') in report
    assert ('WindowMSA' in report) == (name != 'segmentation') and 'note: the config loads no weights' in report
    for note in ('frozen_stages=1 no longer matters', 'learning rate of its own', 'custom_hooks of the existing'):
        assert (note in report) == (name == 'hooks')

    state = {key: value.clone() for key, value in model.state_dict().items()}
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    if name == 'hooks':  # each parameter has a group of its own
        rates = [group['lr'] for parameter in backbone.prompts.parameters() for group in wrapper.param_groups
                 if group['params'][0] is parameter]
        assert rates == [0.1] * (1 if kind == 'StaticPrompts' else 5)
    model.train().train_step(batch(cfg.default_scope), wrapper)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, state[key])}
    trained = {f'{place}.prompts.{key}' for key, _ in backbone.prompts.named_parameters()}
    ours = {key for key in changed if place in key}
    # Adaptive rows start as 0, so what is multiplied by them has no gradient yet.
    assert f'{place}.prompts.tokens' in ours and ours <= trained and len(changed) > len(ours)


@pytest.mark.parametrize('lines, seed, wrapper', [
    ("optim_wrapper['type'] = 'OptimWrapper'", 'seed', 'mmprovpt.FiniteOptimWrapper'),
    ("optim_wrapper['type'] = 'AmpOptimWrapper'", 'seed', 'AmpOptimWrapper'),
    ("optim_wrapper = dict(type='MyWrapper', constructor='LearningRateDecayOptimWrapperConstructor', optimizer=dict())",
     'seed', 'MyWrapper'),
    ("optim_wrapper = dict(constructor='mine', a=dict(optimizer=dict()))", 'seed', None),
    ("default_hooks = dict(mine=dict(type='mmprovpt.IterationSeedHook'))", 'mine', 'mmprovpt.FiniteOptimWrapper'),
    ("default_hooks = dict(logger=None, timer=dict(type='IterTimerHook'))", 'seed', 'mmprovpt.FiniteOptimWrapper')])
def test_guards_where_the_config_has_mmengines_own(lines, seed, wrapper, call, tmp_path):
    """A type of the user's stays, and so does a hook that is there already."""
    (tmp_path / 'base.py').write_text(DETECTION.replace('BACKBONE', SWIN) + lines)
    call(tmp_path / 'base.py', '--out', tmp_path / 'new.py')
    base, cfg = (Config.fromfile(tmp_path / name) for name in ('base.py', 'new.py'))
    assert cfg.optim_wrapper.get('type') == wrapper
    assert {**cfg.optim_wrapper, 'type': 0} == {**base.optim_wrapper, 'type': 0}
    ours = dict(type='mmprovpt.IterationSeedHook')
    assert cfg.default_hooks == {**base.get('default_hooks', {}), seed: ours}


def test_printed_config_runs(call, tmp_path, monkeypatch, capsys):
    """Through the real Runner: epochs, relocations, and an override that is kept."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / 'images')
    text = TASK.replace('mmprovpt.Prompted', '').replace('ROOT', str(tmp_path / 'images'))
    text = re.sub(r',\n *prompts=.*\)\),', '),', text)
    Path('base.py').write_text(re.sub('custom_hooks.*', '', text))
    call('base.py', '--num-tokens', 4, 2, '--interval', 2, '--cfg-options', 'train_dataloader.batch_size=8',
         'pipeline.0.type=LoadImageFromFile')
    printed = capsys.readouterr()
    assert 'every 2 of 4 epochs, 2 periods' in printed.err and '2 periods are few' in printed.err
    Path('new.py').write_text(printed.out)
    cfg = Config.fromfile('new.py')
    assert cfg.train_dataloader.batch_size == 8 and cfg.pipeline == Config.fromfile('base.py').pipeline
    assert 'batch_size=8' in printed.out and 'lr' not in printed.out
    cfg.work_dir, cfg.experiment_name = 'work', 'printed'
    runner = build_runner(cfg)
    runner.train()
    assert len(runner.model.backbone.prompts.tokens) == 6
    log, = Path('work').glob('*/relocations.jsonl')
    assert [json.loads(line)['iter'] for line in log.read_text().splitlines()] == [2, 4]


def test_installed_configs(call, tmp_path):
    """As the recipes, which are written by hand."""
    pairs = {'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py': 'retinanet_swin_t_coco',
             'mmseg::mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py': 'mask2former_swin_t_ade20k'}
    for name, recipe in pairs.items():
        call(name, '--out', tmp_path / f'{recipe}.py')
        cfg, recipe = (Config.fromfile(folder / f'{recipe}.py') for folder in (tmp_path, ROOT / 'configs/recipes'))
        assert cfg.model.backbone.prompts.pop('dropout') == 0.1  # the default
        assert cfg.model == recipe.model
        keys = [each.optim_wrapper.get('paramwise_cfg', {}).get('custom_keys', {}) for each in (cfg, recipe)]
        ours, theirs = (each.get('backbone.prompts', {}).get('lr_mult') for each in keys)
        assert ours == theirs
        if 'max_iters' in cfg.train_cfg:
            assert cfg.custom_hooks == recipe.custom_hooks


LAZY = """
from mmdet.models import DetDataPreprocessor, SwinTransformer
from mmengine.config import read_base
from mmengine.runner import IterBasedTrainLoop
with read_base():
    from .other import *
default_scope = None
""" + DETECTION.partition('\n')[2].replace('BACKBONE', SWIN).replace("'SwinTransformer'", 'SwinTransformer').replace(
    "'DetDataPreprocessor'", 'DetDataPreprocessor').replace("'IterBasedTrainLoop'", 'IterBasedTrainLoop')
for _name in ('RetinaNet', 'FPN', 'RetinaHead', 'task_modules.MaxIoUAssigner'):
    LAZY = LAZY.replace(repr(_name.split('.')[-1]), repr(f'mmdet.models.{_name}'))
TEACHER = DETECTION.replace('BACKBONE', SWIN).replace(
    'model = ', "model = dict(type='SoftTeacher', semi_train_cfg=dict(), detector=") \
    .replace('ignore_iof_thr=-1)))', 'ignore_iof_thr=-1))))')
REFUSED = {
    'no model': (SCHEDULE, [], 'needs one backbone=.* but it has 0'),
    'convolutions': (DETECTION.replace('BACKBONE', "type='ResNet', depth=18"), [],
                     'ResNet has no attention.*Supported are: timm.layers.attention.Attention in'),
    'attention': (DETECTION.replace('BACKBONE', "type='mmpretrain.MViT', arch='tiny'"), [],
                  'MultiScaleAttention.*Supported are: timm.layers.attention.Attention in'),
    'class': (DETECTION.replace('BACKBONE', "type='mmpretrain.MAEViT', arch='deit-tiny'"), [],
              'no prompted type for it, only for VisionTransformer, SwinTransformer, .*, TIMMBackbone'),
    'pre-training': ("default_scope = 'mmpretrain'\n"
                     "model = dict(type='MAE', backbone=dict(type='MAEViT', arch='b', mask_ratio=0.75))\n" + SCHEDULE,
                     [], 'the config pre-trains its backbone, by MAE. Prompts are for one that is pre-trained'),
    'arguments': (DETECTION.replace('BACKBONE', f'{SWIN}, no_such_argument=1'), [],
                  'the config cannot be built: TypeError: .*no_such_argument'),
    'prompts': (DETECTION.replace('BACKBONE', f"{SWIN}, prompts=dict(type='StaticPrompts')"), [],
                'has prompts=.*already'),
    'hook': (DETECTION.replace('BACKBONE', SWIN) + "custom_hooks = [dict(type='mmprovpt.PromptRelocationHook')]", [],
             'PromptRelocationHook already'),
    'two': ('model = dict(a=dict(backbone=dict(type=1)), b=dict(backbone=dict(type=1)))', [],
            'it has 2: a.backbone, b.backbone'),
    'list': ('model = dict(a=[dict(backbone=dict(type=1))])', [], 'model.a.0.backbone lies in a list'),
    'teacher': (TEACHER, [], 'model.detector.backbone is built as student.backbone and teacher.backbone'),
    'type': (DETECTION.replace('BACKBONE', "type='NoSuchNet'"), [], 'cannot be built: .*NoSuchNet'),
    'no training': (DETECTION.replace('BACKBONE', SWIN).replace('max_iters', 'max_its'), [], 'no train_cfg'),
    'interval': (DETECTION.replace('BACKBONE', SWIN), ['--interval', 1001], 'from 1 to 1000, the iters'),
    'counts': (DETECTION.replace('BACKBONE', SWIN), ['--num-tokens', 1, 2, 3], '3 entries, but the backbone has 2'),
    'no prompt': (DETECTION.replace('BACKBONE', SWIN), ['--num-tokens', 0], 'without a prompt there is nothing'),
    'out': (DETECTION.replace('BACKBONE', SWIN), ['--out', 'base.py'], 'base.py exists already'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refuses(name, call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text, options, message = REFUSED[name]
    Path('base.py').write_text(text)
    with pytest.raises(SystemExit, match=f'(?s)error: .*{message}'):
        call('base.py', *options)
    assert capsys.readouterr().out == '' and [path.name for path in tmp_path.iterdir()] == ['base.py']


def test_what_is_missing_for_another_part_is_no_reason_to_refuse(call, tmp_path, capsys, monkeypatch):
    """A language model that cannot be downloaded, beside a vision backbone."""
    def offline(name):
        raise OSError(f'cannot connect to fetch {name}')

    monkeypatch.setattr('transformers.AutoTokenizer.from_pretrained', offline)
    text = DETECTION.replace('RetinaNet', 'GLIP').replace('BACKBONE', SWIN).replace(
        'backbone=dict', "language_model=dict(type='BertModel', name='a/bert'), backbone=dict")
    (tmp_path / 'base.py').write_text(text)
    call(tmp_path / 'base.py', '--out', tmp_path / 'new.py')
    report, cfg = capsys.readouterr().err, Config.fromfile(tmp_path / 'new.py')
    assert 'note: only the backbone was built and counted, because the rest cannot be built here: OSError: ' \
        'cannot connect to fetch a/bert' in report
    assert cfg.model.backbone.type == 'mmprovpt.PromptedSwinTransformer' and cfg.model.type == 'GLIP'
    with DefaultScope.overwrite_default_scope('mmdet'):
        before, after = (MODELS.build(Config.fromfile(tmp_path / f'{name}.py').model.backbone)
                         for name in ('base', 'new'))
    policy = count_trainable(after, PPOAllocator(num_blocks=2, seed=0))
    assert f'trainable parameters: {count_trainable(before):,} before, {policy:,} after' in report


@pytest.mark.parametrize('hooks', ['', "custom_hooks = [dict(type='EmptyCacheHook')]\n"])
def test_what_a_pure_python_config_is_told_works_as_printed(hooks, call, tmp_path, capsys):
    (tmp_path / 'other.py').write_text('val_cfg = None\n', encoding='utf-8')
    (tmp_path / 'base.py').write_text(LAZY + hooks, encoding='utf-8')
    with pytest.raises(SystemExit) as stop:
        call(tmp_path / 'base.py')
    before, advice = str(stop.value.code).split('\n\n', 1)
    assert before.startswith('error: ') and 'pure Python kind' in before and capsys.readouterr().out == ''
    (tmp_path / 'mine.py').write_text(advice, encoding='utf-8')
    cfg = Config.fromfile(tmp_path / 'mine.py')
    model = MODELS.build(cfg.model)  # as a Runner does where there is no default scope
    assert model.backbone.upstream.__module__ == 'mmdet.models.backbones.swin'
    assert model.backbone.prompts.distribution.tolist() == [10, 10]
    hook = HOOKS.build(cfg.custom_hooks[-1])
    assert (hook.interval, hook.by_epoch) == (10, False) and len(cfg.custom_hooks) == 1 + bool(hooks)
    assert HOOKS.build(cfg.default_hooks.seed) and cfg.optim_wrapper.type == 'mmprovpt.FiniteOptimWrapper'
    before = model.backbone.prompts.tokens.detach().clone()
    with DefaultScope.overwrite_default_scope('mmdet'):
        losses = batch('mmdet')
    model.train().train_step(losses, build_optim_wrapper(model, cfg.optim_wrapper))
    assert not torch.equal(model.backbone.prompts.tokens, before)


@pytest.mark.parametrize('name, message', [
    ('none.py', 'no such config file: none.py'),
    ('nopackage::x.py', 'nopackage is not installed'),
    ('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_2x_coco.py', 'similar are: .*swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'),
])
def test_no_such_config(name, message, call):
    with pytest.raises(SystemExit, match=message):
        call(name)
