"""Every block of Python on a page runs as printed: here, with small models, or in the test that reads its page."""
import ast
import inspect
import re

import numpy as np
import onnx
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, HOOKS, MODELS, TRANSFORMS, VISBACKENDS, DefaultScope
from onnx import helper
from printed import PAGES, ROOT, blocks, ten_lines

import mmprovpt
from mmprovpt.relocation import ALLOCATORS, RelocationSession

for library in ('mmdet', 'mmpretrain', 'mmseg'):
    pytest.importorskip(f'{library}.models')
    pytest.importorskip(f'{library}.datasets')
# Pages, or parts of them, whose blocks other tests run: the heading, the test.
ELSEWHERE = {
    'docs/contributing/attention.md': ('', 'test_attention/test_example.py'),
    'docs/how-to/custom_data.md': ('', 'test_custom_data.py'),
    'docs/how-to/dense.md': ('## Classes of your own', 'test_hooks/test_class_check.py'),
    'docs/how-to/deployment.md': ('### Older opsets', 'test_backbones/test_onnx_tracing.py'),  # and test_gradcam.py
    'docs/how-to/quantization.md': ('', 'test_quantization.py'),
    'docs/how-to/several_tasks.md': ('', 'test_several_tasks.py'),
}
SETTING = re.compile(
    r"^(?:_base_|backbone|compile|\w+_hooks|model|train_dataloader|tta_model|visualizer) ?= ?(?:dict|\[|True|')", re.M)
SMALL = {'PromptedVisionTransformer': dict(
             arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16), img_size=32, patch_size=16),
         'PromptedSwinTransformer': dict(embed_dims=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), init_cfg=None)}


def here(page):
    """A page's blocks that no other test runs."""
    text = page.read_text(encoding='utf-8')
    heading, test = ELSEWHERE.get(str(page.relative_to(ROOT)), (None, None))
    if heading is None:
        return blocks(page, 'python')
    assert page.name in (ROOT / 'tests' / test).read_text() and heading in text
    end = text.index(heading) if heading else 0
    return [code for code in blocks(page, 'python') if text.index(code.strip().splitlines()[0]) < end]


BLOCKS = [(str(page.relative_to(ROOT)), code) for page in PAGES for code in here(page)]
SETTINGS = [pair for pair in BLOCKS if SETTING.search(pair[1])]
CODE = [pair for pair in BLOCKS if pair not in SETTINGS]


def names_of(pairs):
    return [f'{page}-{code.splitlines()[0][:30]}' for page, code in pairs]


def vit():
    """A small one whose head is trained, too."""
    net = timm.create_model('vit_tiny_patch16_224', img_size=32, embed_dim=12, depth=2, num_heads=2, num_classes=2)
    mmprovpt.inject_prompts(net, dict(type='StaticPrompts', num_tokens=2))
    net.head.requires_grad_(True)
    return net


@pytest.fixture
def small_timm(monkeypatch):
    """timm's models are narrow, and nothing is downloaded."""
    create = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda **kwargs: create(**dict(
        kwargs, pretrained=False, embed_dim=48, num_heads=4)))


def build(registry, node):
    """An object of a config; of what needs files or a model, only that its class takes these arguments."""
    with registry.switch_scope_and_registry(None) as inner:
        kind = inner.get(node['type'])
    assert kind is not None, node['type']
    if registry is DATASETS or 'TTA' in node['type']:
        inspect.signature(kind).bind(**{key: value for key, value in node.items() if key != 'type'}, **(
            dict(module=None) if 'TTA' in node['type'] else {}))
        return None
    return registry.build(dict(node, **SMALL.get(node['type'].rpartition('.')[2], {})))


@pytest.mark.parametrize('page, code', SETTINGS, ids=names_of(SETTINGS))
def test_settings(page, code, tmp_path, small_timm):
    """All that a config names is built of its arguments."""
    if code.startswith('backbone='):  # arguments of a call
        cfg = eval(f'dict({code})')
    else:
        (tmp_path / 'config.py').write_text(code.replace('[...]', '[]'))
        cfg = Config.fromfile(tmp_path / 'config.py')
    assert cfg.get('compile') in (None, dict(backend='inductor'))
    model = cfg.get('model') or cfg
    built = []
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or (
            'mmdet' if 'PackDetInputs' in code else 'mmpretrain')):
        for key in ('backbone', 'neck'):
            built += [build(MODELS, model[key])] if key in model else []
        for node in [*cfg.get('custom_hooks', []), *cfg.get('default_hooks', {}).values()]:
            built += [build(HOOKS, node)] if node.get('type', '').startswith('mmprovpt.') else []
        built += [build(TRANSFORMS, node) for node in cfg.get('tta_pipeline', [])]
        built += [build(MODELS, cfg['tta_model'])] if 'tta_model' in cfg else []
        built += [build(DATASETS, cfg['train_dataloader']['dataset'])] if 'train_dataloader' in cfg else []
        built += [VISBACKENDS.build(dict(node, save_dir=str(tmp_path)))
                  for node in cfg.get('visualizer', {}).get('vis_backends', [])]
    assert built or 'compile' in cfg


def check_allocator(names):
    allocator = names['RoundRobinAllocator'](3)
    assert [allocator.act(None) for _ in range(4)] == [0, 1, 2, 0]
    other = ALLOCATORS.build(dict(type='RoundRobinAllocator'), num_blocks=3)
    other.load_state_dict(allocator.state_dict())
    assert other.act(None) == 1


def check_arrival(names):
    """A row is halved where it is."""
    prompts = mmprovpt.find_prompts(vit())
    before = prompts.tokens.detach().clone()
    session = RelocationSession(prompts, torch.optim.SGD([prompts.tokens], lr=0.1), arrival='halve')
    session.apply([(0, int(prompts.block_index[0]))])
    torch.testing.assert_close(prompts.tokens[0], before[0] / 2)
    torch.testing.assert_close(prompts.tokens[1:], before[1:])


def exported(folder):
    """A graph of two logits, the mean of a red and of a blue channel; an image of two pixels, BGR."""
    image, out = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ('image', 'logits'))
    model = helper.make_model(helper.make_graph(
        [helper.make_node('ReduceMean', ['image'], ['logits'], axes=[2, 3], keepdims=0)], 'mean', [image], [out]),
        opset_imports=[helper.make_opsetid('', 13)], ir_version=8)
    helper.set_model_props(model, dict(channels='"RGB"', mean='[10, 20, 30]', std='[1, 2, 4]'))
    onnx.save(model, folder / 'model.onnx')
    return dict(image=np.array([[[70, 40, 11], [70, 60, 13]]], np.uint8))


def check_logits(names):
    assert names['logits'].tolist() == [[2, 15, 10]]


def checkpoints(folder):
    torch.save(dict(state_dict={}), folder / 'epoch_12.pth')
    return dict(init_detector=lambda config, path: torch.load(path, weights_only=False))


# What stands before a block, and what holds after it, by a line of it.
RUN = {
    'class RoundRobinAllocator(Allocator):': (lambda folder: {}, check_allocator),
    'class Halve(Shrink):': (lambda folder: {}, check_arrival),
    'model = torch.compile(model)': (lambda folder: dict(model=vit(), torch=torch), None),
    'mmprovpt.folded(model.eval())': (
        lambda folder: dict(model=vit(), torch=torch, mmprovpt=mmprovpt, images=torch.rand(2, 1, 3, 32, 32)), None),
    "model.load_state_dict(torch.load('small.pth'))": (
        lambda folder: dict(model=vit(), torch=torch, mmprovpt=mmprovpt), None),
    "InferenceSession('model.onnx')": (exported, check_logits),
    'from mmprovpt.trust import only_weights': (checkpoints, None),
}
# Lines of a program that a test runs in several processes; calls of classes that tests run on models of theirs.
WITHIN = {'fully_shard(block, mesh=mesh)': 'examples/sharded_backbone.py'}
CALLS = 'DetInferencer('
MINE = 'test_printed_python.py'


def check_calls(code):
    """What is called takes these arguments: `Class(…)`, and `Class(…)(…)`."""
    names, called = {}, []
    for node in ast.parse(code).body:
        if isinstance(node, ast.ImportFrom):
            exec(ast.unparse(node), names)
            continue
        for call in (each for each in ast.walk(node) if isinstance(each, ast.Call)):
            kind = names[call.func.id] if isinstance(call.func, ast.Name) else names[call.func.func.id].__call__
            first = [] if isinstance(call.func, ast.Name) else [None]  # self
            inspect.signature(kind).bind(*first, *call.args, **{key.arg: key.value for key in call.keywords})
            called.append(kind)
    assert len(called) == 6


@pytest.mark.parametrize('page, code', CODE, ids=names_of(CODE))
def test_code(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if CALLS in code:
        return check_calls(code)
    for line, path in WITHIN.items():
        if line in code:
            program = (ROOT / path).read_text(encoding='utf-8').replace('return', 'model =')
            assert {each.strip() for each in code.splitlines()} <= {each.strip() for each in program.splitlines()}
            return None
    if page == 'README.md':  # its lines train
        tests = [path.read_text(encoding='utf-8') for path in (ROOT / 'tests').glob('test_*.py') if path.name != MINE]
        assert code == ten_lines() and any('= ten_lines()' in text for text in tests), 'no test runs these lines'
        return None
    before, after = next(value for line, value in RUN.items() if line in code)
    names = before(tmp_path)
    exec(code, names)
    return after and after(names)
