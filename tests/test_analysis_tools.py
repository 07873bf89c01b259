"""The tools that draw."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmprovpt.visualization import read_training

ROOT = Path(__file__).parents[1]
VIT = dict(type='mmprovpt.PromptedVisionTransformer', prompts=dict(type='StaticPrompts', num_tokens=2),
           img_size=32, patch_size=8)
MODEL = {
    'mmpretrain': dict(
        type='ImageClassifier',
        backbone=dict(VIT, arch=dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)),
        head=dict(type='LinearClsHead', num_classes=2, in_channels=32)),
    'mmseg': dict(
        type='EncoderDecoder', backbone=dict(VIT, embed_dims=32, num_layers=3, num_heads=2),
        test_cfg=dict(mode='whole'),
        decode_head=dict(type='FCNHead', in_channels=32, channels=8, num_classes=2, norm_cfg=dict(type='SyncBN'))),
    'mmdet': dict(
        type='RetinaNet',
        backbone=dict(type='mmprovpt.PromptedSwinTransformer', embed_dims=12, depths=(2, 2), num_heads=(2, 3),
                      strides=(4, 2), out_indices=(0, 1), prompts=dict(type='StaticPrompts', num_tokens=2)),
        neck=dict(type='FPN', in_channels=[12, 24], out_channels=8, num_outs=5),
        bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8)),
}
PREPROCESSOR = dict(mmpretrain='ClsDataPreprocessor', mmseg='SegDataPreProcessor', mmdet='DetDataPreprocessor')
PACK = dict(mmpretrain='PackInputs', mmseg='PackSegInputs', mmdet='PackDetInputs')


@pytest.fixture
def call(call):
    return lambda tool, *args: call(f'analysis_tools/{tool}', *args)


def write_log(path, blocks, end=''):
    row = {'period': 1, 'iter': 9, 'from': 0, 'to': 1, 'reward': None, 'distribution': [1, 3] + [2] * (blocks - 2)}
    path.write_text(json.dumps(row) + '\n' + end)
    return path


def test_plot_relocation(call, tmp_path, capsys):
    logs = [write_log(tmp_path / 'a', 3), write_log(tmp_path / 'b', 3, end='{"per')]
    call('plot_relocation', *logs, '--out', tmp_path / 'new/both.png', '--names', 'A', 'B')
    with Image.open(tmp_path / 'new/both.png') as image:
        image.verify()
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / 'new/both.png')
    assert 'warning:' in printed.err and 'line 2, the last, is cut off' in printed.err


def test_mistakes_of_plot_relocation(call, tmp_path):
    logs = [write_log(tmp_path / 'a', 3), write_log(tmp_path / 'b', 4)]
    for args, message in ((logs, 'different numbers of blocks: .*a 3, .*b 4'), ([tmp_path / 'c'], 'no such file'),
                          ([logs[0], '--names', 'A', 'B'], '1 logs, but --names gives 2')):
        with pytest.raises(SystemExit, match=message):
            call('plot_relocation', *args, '--out', tmp_path / 'out.png')
    assert not (tmp_path / 'out.png').exists()


def write_run(folder, epochs=True):
    """Two periods of 5 iterations of a run with a validation after each."""
    (folder / 'vis_data').mkdir(parents=True)
    rows = []
    for period in (1, 2):
        rows += [dict(loss=3 / period, epoch=period, iter=5 * period - 1, step=5 * period - 1),
                 {'top1': 10. * period, 'mIoU': 20. * period, 'time': .1, 'step': period if epochs else 5 * period},
                 {'train/relocation/loss': 1., 'step': 5 * period}]
    (folder / 'vis_data/scalars.json').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    line = 'Epoch(train)  [1][4/5]  lr: 1' if epochs else 'Iter(train) [ 4/10] lr: 1'
    (folder / 'a.log').write_text(f'noise\n10:15 - INFO - {line}\n')
    moves = [(1, 0, 1, [1, 3]), (2, 1, 1, [1, 3])]
    (folder / 'relocations.jsonl').write_text(''.join(json.dumps(
        {'period': period, 'iter': 5 * period, 'from': source, 'to': target, 'previous_reward': None,
         'distribution': counts}) + '\n' for period, source, target, counts in moves))
    return folder


@pytest.mark.parametrize('epochs', [True, False])
def test_plot_training(call, tmp_path, capsys, epochs):
    training = read_training(write_run(tmp_path / 'run/2026', epochs))
    assert training.losses.tolist() == [[4, 3], [9, 1.5]]
    assert {name: values.tolist() for name, values in training.metrics.items()} == {
        'mIoU': [[5, 20], [10, 40]], 'top1': [[5, 10], [10, 20]]}
    assert training.closed == [5, 10] and training.moved == [5]
    assert training.relocations.counts.T.tolist() == [[2, 2], [1, 3], [1, 3]]
    call('plot_training', tmp_path / 'run', '--out', tmp_path / 'new/one.png')
    call('plot_training', tmp_path / 'run', '--out', tmp_path / 'two.png', '--metric', 'top1', 'mIoU')
    (tmp_path / 'run/2026/relocations.jsonl').unlink()
    call('plot_training', tmp_path / 'run/2026', '--out', tmp_path / 'static.png')
    heights = []
    for name in ('static', 'new/one', 'two'):
        with Image.open(tmp_path / f'{name}.png') as image:
            heights.append(image.height)
    assert heights == sorted(set(heights))  # a panel more each
    assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / 'new/one.png')


def test_mistakes_of_plot_training(call, tmp_path):
    run = write_run(tmp_path / 'run')
    for args, message in (([tmp_path / 'nowhere'], 'error: no run in .*nowhere'),
                          ([run, '--metric', 'mAP'], "no metric 'mAP', but mIoU, top1"),
                          ([run, '--out', run / 'relocations.jsonl'], 'relocations.jsonl')):
        with pytest.raises(SystemExit, match=message):
            call('plot_training', '--out', tmp_path / 'out.png', *args)
    log = run / 'relocations.jsonl'
    log.write_text('no JSON\n' + log.read_text())
    with pytest.raises(SystemExit, match='error: .*relocations.jsonl is not a relocation log'):
        call('plot_training', run, '--out', tmp_path / 'out.png')
    (run / 'vis_data/scalars.json').write_text('')
    with pytest.raises(SystemExit, match='holds no loss'):
        call('plot_training', run, '--out', tmp_path / 'out.png')
    assert not (tmp_path / 'out.png').exists()


@pytest.fixture
def files(tmp_path):
    """Writes config, checkpoint and image of a scope, and returns their paths."""

    def write(scope):
        normalise = dict(mean=[127.] * 3, std=[60.] * 3)
        steps = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 40)), dict(type='LoadAnnotations')]
        if scope == 'mmpretrain':
            steps = steps[:-1]
        pack = dict(type=PACK[scope], meta_keys=('img_path', 'ori_shape', 'img_shape'))
        config = dict(
            default_scope=scope, model=MODEL[scope], data_preprocessor=dict(type=PREPROCESSOR[scope], **normalise),
            test_dataloader=dict(dataset=dict(type='RepeatDataset', dataset=dict(pipeline=[*steps, pack]))))
        Config(config).dump(str(tmp_path / 'config.py'))
        with DefaultScope.overwrite_default_scope(scope):
            model = MODELS.build(dict(MODEL[scope], data_preprocessor=config['data_preprocessor']))
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
        pixels = np.random.default_rng(0).integers(0, 255, (48, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'image.png')
        return [tmp_path / name for name in ('config.py', 'model.pth', 'image.png')]

    return write


@pytest.mark.parametrize('scope', MODEL)
def test_plot_attention(call, files, tmp_path, capsys, scope):
    call('plot_attention', *files(scope), '--out', tmp_path / 'new/attention.png')
    with Image.open(tmp_path / 'new/attention.png') as image:
        # Without a class token there is one row of pictures only.
        assert (image.height > 600) == (scope != 'mmdet')
    assert ('no class token' in capsys.readouterr().out) == (scope == 'mmdet')


def test_mistakes_of_plot_attention(call, files, tmp_path):
    config, checkpoint, image = files('mmpretrain')
    with pytest.raises(SystemExit, match='no such image file: .*no.png'):
        call('plot_attention', config, checkpoint, tmp_path / 'no.png')
    state = torch.load(checkpoint)['state_dict']
    torch.save({key: value for key, value in state.items() if 'prompts.' not in key}, checkpoint)
    with pytest.raises(SystemExit, match='holds no prompts'):
        call('plot_attention', config, checkpoint, image)
    text = config.read_text().replace('mmprovpt.Prompted', '')
    config.write_text(text[:text.index('prompts=')] + text[text.index("type='VisionTransformer"):])
    with pytest.raises(SystemExit, match='ImageClassifier must have one set of prompts, but has 0'):
        call('plot_attention', config, checkpoint, image)
