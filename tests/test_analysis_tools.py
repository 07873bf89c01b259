"""The tools that draw."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

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
