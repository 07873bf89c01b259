"""The ONNX tool: what its graphs compute, that prompts are constants in them, and what it refuses."""
import copy
import functools
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from matrix import randomise
from mmengine.config import Config
from tasks_toy import build, joined

from mmprovpt import tuned_state_dict
from mmprovpt.cli import export_onnx
from mmprovpt.cli.runner import build_model

ROOT = Path(__file__).parents[1]
VIT = dict(type='mmprovpt.PromptedVisionTransformer', img_size=32, patch_size=16,
           prompts=dict(type='StaticPrompts', num_tokens=[3, 0]))
MEAN_STD = dict(mean=[120., 110., 100.], std=[60., 50., 40.])
CONFIGS = {
    'vit': dict(
        default_scope='mmpretrain', data_preprocessor=dict(num_classes=3, to_rgb=True, **MEAN_STD),
        model=dict(
            type='ImageClassifier',
            backbone=dict(VIT, arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16)),
            head=dict(type='VisionTransformerClsHead', num_classes=3, in_channels=16))),
    'vapt': dict(
        default_scope='mmpretrain',
        model=dict(
            type='ImageClassifier',
            backbone=dict(
                VIT, arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16),
                prompts=dict(type='AdaptivePrompts', num_tokens=2, grid_size=3)),
            head=dict(type='VisionTransformerClsHead', num_classes=3, in_channels=16))),
    # One block of windows and one of shifted windows; 42 is not a multiple of patch times window.
    'swin': dict(
        default_scope='mmpretrain',
        model=dict(
            type='ImageClassifier',
            backbone=dict(
                type='mmprovpt.PromptedSwinTransformer', arch=dict(embed_dims=8, depths=(2, ), num_heads=(2, )),
                img_size=42, out_indices=(0, ), prompts=dict(type='StaticPrompts', num_tokens=2)),
            neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=3, in_channels=8))),
    # Two stages, so that the prompts pass a patch merging.
    'shallow-swin': dict(
        default_scope='mmpretrain',
        model=dict(
            type='ImageClassifier',
            backbone=dict(
                type='mmprovpt.PromptedSwinTransformer', arch=dict(embed_dims=8, depths=(2, 2), num_heads=(2, 2)),
                img_size=56, out_indices=(1, ), prompts=dict(type='ShallowPrompts', num_tokens=2)),
            neck=dict(type='GlobalAveragePooling'), head=dict(type='LinearClsHead', num_classes=3, in_channels=16))),
    'setr': dict(
        default_scope='mmseg',
        model=dict(
            type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32), **MEAN_STD),
            backbone=dict(VIT, embed_dims=16, num_layers=2, num_heads=2, out_indices=(1, )),
            decode_head=dict(
                type='SETRUPHead', in_channels=16, channels=8, num_classes=3, num_convs=1, up_scale=2, in_index=0,
                norm_cfg=dict(type='SyncBN')),
            test_cfg=dict(mode='slide', crop_size=(32, 32), stride=(16, 16)))),
}

_TINY = dict(embed_dim=16, depth=2, num_heads=2)
for name, options in dict(
        dinov3=dict(_TINY, model_name='vit_small_plus_patch16_dinov3_qkvb', img_size=32, dynamic_img_size=True),
        eva02=dict(_TINY, model_name='eva02_base_patch14_224', img_size=28),
        beit=dict(_TINY, model_name='beit_base_patch16_224', img_size=32),
        swinv2=dict(model_name='swinv2_tiny_window8_256', img_size=64, window_size=4, embed_dim=8, depths=(2, 2),
                    num_heads=(2, 2))).items():
    for form in ('', 'shallow-'):
        CONFIGS[form + name] = dict(
            default_scope='mmpretrain',
            model=dict(
                type='ImageClassifier',
                backbone=dict(type='mmprovpt.PromptedTIMMBackbone', **options, prompts=dict(
                    type='ShallowPrompts' if form else 'StaticPrompts', num_tokens=2)),
                neck=dict(type='mmprovpt.TIMMPooling', pool='avg' if name == 'swinv2' else 'token'),
                head=dict(type='LinearClsHead', num_classes=3, in_channels=16)))
CONFIGS['shallow-vit'] = copy.deepcopy(CONFIGS['vit'])
CONFIGS['shallow-vit']['model']['backbone']['prompts'] = dict(type='ShallowPrompts', num_tokens=2)


@pytest.fixture
def call(call):
    return functools.partial(call, 'export_onnx')


@pytest.fixture
def write(tmp_path):
    """Writes a config and a checkpoint, 'small' if only what was tuned; returns the model, in eval mode."""

    def write(name, small=False):
        cfg = Config(CONFIGS[name]).copy()
        weights = str(tmp_path / 'frozen.pth')
        if small:
            cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=weights, prefix='backbone.')
        cfg.dump(str(tmp_path / 'config.py'))
        model = randomise(build_model(cfg)).eval()
        torch.nn.init.normal_(model.backbone.prompts.tokens)
        torch.save(dict(state_dict={key: value for key, value in model.state_dict().items() if 'prompts' not in key}),
                   weights)
        state_dict = tuned_state_dict(model) if small else model.state_dict()
        torch.save(dict(state_dict=state_dict), tmp_path / 'model.pth')
        return model

    return write


def pixels(batch, *shape):
    """(B, H, W, 3) uint8, BGR, as OpenCV reads images."""
    return np.random.default_rng(batch).integers(0, 255, (batch, *shape, 3), dtype=np.uint8)


def run(path, images):
    """Logits of images as they are read, by nothing but what the file says."""
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    steps = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    images = images[..., ::-1] if steps['channels'] == 'RGB' else images
    images = (images - np.array(steps['mean'])) / np.array(steps['std'])
    logits, = session.run(None, {'image': images.transpose(0, 3, 1, 2).astype(np.float32)})
    return torch.from_numpy(logits)


def assert_prompts_are_folded(path):
    """No norm and no product of constants is left: those were of the prompts."""
    graph = onnx.load(path).graph
    assert [node.name for node in graph.input] == ['image']
    known = {'image'}
    for node in graph.node:
        known.update(node.output if known & set(node.input) else ())
    of_constants = {node.op_type for node in graph.node if not known & set(node.output)}
    assert of_constants <= {'Split', 'Squeeze', 'Transpose', 'Constant'}  # torch.nn.MultiheadAttention's own
    assert {'MatMul', 'LayerNormalization', 'Softmax'} <= {node.op_type for node in graph.node}


def check_classifier(model, path, shape, batch):
    images = torch.from_numpy(pixels(batch, *shape)).permute(0, 3, 1, 2)
    with torch.no_grad():
        samples = model.test_step(dict(inputs=list(images), data_samples=None))
    expected = torch.stack([sample.pred_score for sample in samples])
    assert expected.std(1).min() > 0.05  # not all alike, or equality would say little
    torch.testing.assert_close(run(path, pixels(batch, *shape)).softmax(1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('name, small, shape', [('vit', True, (32, 32)), ('swin', False, (42, 60)),
                                                ('vapt', True, (64, 64)), ('shallow-vit', True, (32, 32)),
                                                ('shallow-swin', False, (56, 84)), ('dinov3', True, (48, 32)),
                                                ('shallow-dinov3', False, (48, 32)), ('eva02', False, (28, 28)),
                                                ('beit', False, (32, 32)), ('shallow-beit', False, (32, 32)),
                                                ('swinv2', False, (64, 64)), ('shallow-swinv2', False, (64, 64))])
def test_classifiers(call, write, tmp_path, capsys, name, small, shape):
    model = write(name, small)
    given = [] if name in ('vit', 'shallow-vit') else ['--shape', *shape]
    call(tmp_path / 'config.py', tmp_path / 'model.pth', tmp_path / 'new/model.onnx', *given)
    for batch in (1, 3):
        check_classifier(model, tmp_path / 'new/model.onnx', shape, batch)
    assert_prompts_are_folded(tmp_path / 'new/model.onnx')
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['model.onnx']
    printed = capsys.readouterr().out
    assert f'image (B, 3, {shape[0]}, {shape[1]}) -> logits' in printed
    difference = float(printed.split('largest difference from PyTorch: ')[1].split()[0])
    assert 0 <= difference < 1e-5
    if name == 'vit':
        assert 'channels RGB, mean [120.0, 110.0, 100.0], std [60.0, 50.0, 40.0]' in printed


def test_a_segmentor(call, write, tmp_path):
    """Of one window: the whole image is as large."""
    model = write('setr')
    call(tmp_path / 'config.py', tmp_path / 'model.pth', tmp_path / 'model.onnx')
    for batch in (1, 3):
        images = torch.from_numpy(pixels(batch, 32, 32)).permute(0, 3, 1, 2)
        with torch.no_grad():
            samples = model.test_step(dict(inputs=list(images), data_samples=None))
        expected = torch.stack([sample.seg_logits.data for sample in samples])
        assert expected.shape == (batch, 3, 32, 32) and expected.std() > 0.05
        torch.testing.assert_close(run(tmp_path / 'model.onnx', pixels(batch, 32, 32)), expected, rtol=0, atol=1e-4)
    assert_prompts_are_folded(tmp_path / 'model.onnx')


def run_with(path, images, npz):
    """Outputs of normalised images (B, 3, H, W), with prompts of a file."""
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return [torch.from_numpy(each) for each in session.run(None, dict(image=images.numpy(), **np.load(npz)))]


@pytest.mark.parametrize('name, size', [('vit', 32), ('swin', 42), ('setr', 32)])
def test_one_graph_serves_every_set(name, size, call, write, tmp_path, capsys):
    """Sets of other numbers in other blocks, none included; with none, the model is upstream's."""
    model = write(name)
    config, weights, graph = tmp_path / 'config.py', tmp_path / 'model.pth', tmp_path / 'model.onnx'
    call(config, weights, graph, '--prompts-as-inputs', '--shape', size, size)
    assert 'model.npz: ' in capsys.readouterr().out
    state = model.state_dict()
    images = torch.randn(2, 3, size, size)
    outputs = []
    for number, counts in enumerate(([3, 0], [2, 5], [1, 1], [0, 4])):
        cfg = Config.fromfile(config)
        cfg.model.backbone.prompts.num_tokens = counts
        other = build_model(cfg).eval()
        other.load_state_dict({**other.state_dict(), **{
            key: value for key, value in state.items() if 'prompts.' not in key}})
        torch.nn.init.normal_(other.backbone.prompts.tokens)
        other.backbone.prompts.relocate(0, 1)
        torch.save(dict(state_dict=other.state_dict()), tmp_path / f'{number}.pth')
        call(config, tmp_path / f'{number}.pth', tmp_path / f'{number}.npz', '--for', graph, '--cfg-options',
             f'model.backbone.prompts.num_tokens={counts}')
        expected = logits_of(other, images)
        outputs.append(expected)
        got, = run_with(graph, images, tmp_path / f'{number}.npz')
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert not any(torch.allclose(outputs[0], each, atol=1e-3) for each in outputs[1:])
    got, = run_with(graph, images, tmp_path / 'model.npz')
    torch.testing.assert_close(got, logits_of(model, images), rtol=0, atol=1e-4 * float(got.abs().max()))
    # A set of a model with another head would give plausible logits.
    name, head = next((name, value) for name, value in other.named_parameters() if name.endswith(
        ('fc.weight', 'layers.head.weight', 'conv_seg.weight')))
    head.data.mul_(1.1)
    torch.save(dict(state_dict=other.state_dict()), tmp_path / 'other.pth')
    with pytest.raises(SystemExit, match='its backbone or head has other weights. .*other.npz is not written'):
        call(config, tmp_path / 'other.pth', tmp_path / 'other.npz', '--for', graph, '--cfg-options',
             f'model.backbone.prompts.num_tokens={counts}')
    assert not (tmp_path / 'other.npz').exists()


@torch.no_grad()
def logits_of(model, images):
    """Of normalised images."""
    if hasattr(model, 'decode_head'):
        return model.encode_decode(images, [dict(img_shape=images.shape[2:], ori_shape=images.shape[2:],
                                                 pad_shape=images.shape[2:], padding_size=[0] * 4)] * len(images))
    return model(images, mode='tensor')


def test_the_backbone_of_a_detector(call, tmp_path):
    """One graph of it for all sets and all heads."""
    config = Config.fromfile(ROOT / 'configs/demo/mask_rcnn_swin_mini_vpt_digits.py')
    config.model.backbone.update(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], init_cfg=None)
    config.model.backbone.prompts.num_tokens = [2, 0, 1, 3]
    config.model.neck.in_channels = [8, 16, 32, 64]
    config.dump(str(tmp_path / 'config.py'))
    model = build_model(Config.fromfile(tmp_path / 'config.py')).eval()
    torch.nn.init.normal_(model.backbone.prompts.tokens)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    call(tmp_path / 'config.py', tmp_path / 'model.pth', tmp_path / 'model.onnx', '--backbone-only',
         '--prompts-as-inputs', '--shape', 64, 64)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.backbone(images)
    got = run_with(tmp_path / 'model.onnx', images, tmp_path / 'model.npz')
    assert len(got) == len(expected) == 4
    for one, other in zip(got, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(other.abs().max()))


def test_one_backbone_for_several_tasks(call, tmp_path):
    """Of one checkpoint of several tasks: one graph, and a file of prompts for each."""
    cfg = joined()
    cfg.dump(str(tmp_path / 'config.py'))
    model = build(cfg).eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'model.pth')
    files, graph = (tmp_path / 'config.py', tmp_path / 'model.pth'), tmp_path / 'backbone.onnx'
    call(*files, graph, '--task', 'detect', '--backbone-only', '--prompts-as-inputs', '--shape', 32, 32)
    call(*files, tmp_path / 'classify.npz', '--task', 'classify', '--for', graph)
    images = torch.randn(2, 3, 32, 32)
    for task, prompts in dict(detect='backbone.npz', classify='classify.npz').items():
        with torch.no_grad():
            expected = model.tasks[task].backbone(images)
        for one, other in zip(run_with(graph, images, tmp_path / prompts), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(other.abs().max()))
    with pytest.raises(SystemExit, match='config.py is of several tasks: --task says which'):
        call(*files, graph)


def test_prompts_that_are_no_inputs(call, write, tmp_path):
    write('vapt')
    files = tmp_path / 'config.py', tmp_path / 'model.pth', tmp_path / 'model.onnx'
    with pytest.raises(SystemExit, match='AdaptivePrompts cannot be inputs of a graph, for they follow from the image'):
        call(*files, '--prompts-as-inputs')
    write('vit')
    with pytest.raises(SystemExit, match=r'model.onnx: .npz is what --for GRAPH.onnx writes'):
        call(*files, '--for', tmp_path / 'other.onnx')
    with pytest.raises(SystemExit, match='other.onnx cannot be read as an ONNX graph'):
        call(*files[:2], tmp_path / 'model.npz', '--for', tmp_path / 'other.onnx')
    call(*files)
    with pytest.raises(SystemExit, match='model.onnx has the inputs image, not those for the prompts of this model'):
        call(*files[:2], tmp_path / 'model.npz', '--for', files[2])


def test_another_graph_is_not_written(call, write, tmp_path, monkeypatch):
    write('vit')
    trace = export_onnx._trace

    def spoil_and_trace(graph, *args):
        graph.model.backbone.layers[0].attn.qkv.bias.data += 1
        return trace(graph, *args)

    monkeypatch.setattr(export_onnx, '_trace', spoil_and_trace)
    (tmp_path / 'new').mkdir()
    with pytest.raises(SystemExit, match='other logits than PyTorch, by .*model.onnx is not written'):
        call(tmp_path / 'config.py', tmp_path / 'model.pth', tmp_path / 'new/model.onnx')
    assert list((tmp_path / 'new').iterdir()) == []


def test_mistakes(call, write, tmp_path, monkeypatch):
    write('swin')
    config, out = tmp_path / 'config.py', tmp_path / 'model.onnx'
    with pytest.raises(SystemExit, match='no such checkpoint: no.pth'):
        call(config, 'no.pth', out)
    with pytest.raises(SystemExit, match='does not say what size.*PromptedSwinTransformer is for: give --shape'):
        call(config, tmp_path / 'model.pth', out)
    with pytest.raises(SystemExit, match='(?s)does not fit the config: .*head.fc.weight'):
        call(config, tmp_path / 'model.pth', out, '--cfg-options', 'model.head.num_classes=4')
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(SystemExit, match=r"onnxscript is missing: pip install 'mmprovpt\[onnx\]'"):
        call(config, tmp_path / 'model.pth', out, '--shape', 42, 42)
    assert not out.exists()


def test_opsets(call, write, tmp_path):
    write('vit')
    files = tmp_path / 'config.py', tmp_path / 'model.pth', tmp_path / 'model.onnx'
    for opset in (18, 20):
        call(*files, '--opset', opset)
        assert [entry.version for entry in onnx.load(files[-1]).opset_import if entry.domain == ''] == [opset]
    files[-1].unlink()
    for opset in (11, 99):
        with pytest.raises(SystemExit, match=f'opset {opset}: PyTorch writes this graph as opset 18. Take 18; older'):
            call(*files, '--opset', opset)
    assert not files[-1].exists()


def test_a_detector_is_refused(call, tmp_path):
    config = Config.fromfile(ROOT / 'configs/demo/mask_rcnn_swin_mini_provpt_digits.py')
    config.dump(str(tmp_path / 'config.py'))
    torch.save(dict(state_dict={}), tmp_path / 'model.pth')
    with pytest.raises(SystemExit, match='MaskRCNN is a detector: .*Detectors cannot'):
        call(tmp_path / 'config.py', tmp_path / 'model.pth', tmp_path / 'model.onnx')
