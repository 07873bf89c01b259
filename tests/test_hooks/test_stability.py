"""``feature_stability``: similarity of features after pruning, allocation and tuning (001 Fig. 6)."""
import copy
import json

import pytest
import torch
import torch.nn.functional as F
from matrix import CASES, build, images
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel
from test_hooks.toy_run import make_runner, relocation_hook
from torch import nn

from mmprovpt.hooks.stability import block_features
from mmprovpt.hooks.verification import HeldBatches
from mmprovpt.relocation import NeedAllocator
from mmprovpt.visualization import read_log

BLOCKS = ('TransformerEncoderLayer', 'Block', 'SwinBlock', 'SwinTransformerBlock')


def slow_features(backbone, x):
    """(B, C) of every block, found by the names of upstream's classes."""
    found, has_class_token = [], any('cls_token' in name for name, _ in backbone.named_parameters())
    handles = [
        module.register_forward_hook(lambda module, args, out: found.append(
            out[:, 0] if has_class_token else out.reshape(len(x), -1, out.shape[-1]).mean(1)))
        for module in backbone.modules() if type(module).__name__.removeprefix('Prompted') in BLOCKS]
    backbone.eval()
    with torch.no_grad():
        backbone(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize('name', CASES)
def test_features_of_every_block(name):
    case = CASES[name]
    backbone = build(case, dict(num_tokens=2))
    backbone.train()
    x = images(case, case.sizes[-1])
    found = block_features(backbone, x)
    assert backbone.training and len(found) == case.depth == backbone.prompts.num_blocks
    for mine, theirs in zip(found, slow_features(backbone, x)):
        torch.testing.assert_close(mine, theirs)


class Pixels(BaseDataPreprocessor):
    """Makes images of the toy's vectors."""

    def __init__(self):
        super().__init__()
        self.register_buffer('pixels', torch.randn(6, 3 * 32 * 32, generator=torch.Generator().manual_seed(0)))

    def forward(self, data, training=False):
        data = super().forward(data, training)
        return dict(data, inputs=(data['inputs'] @ self.pixels).unflatten(1, (3, 32, 32)))


class Seeing(BaseModel):
    """A small prompted ViT and a head."""

    def __init__(self):
        super().__init__(Pixels())
        torch.manual_seed(0)
        self.backbone = build(CASES['timm-vit'], dict(num_tokens=2, dropout=0.5))
        self.head = nn.Linear(32, 1)

    def forward(self, inputs, targets=None, mode='tensor'):
        return dict(loss=F.mse_loss(self.head(self.backbone(inputs)[-1].mean(1)).squeeze(1), targets))


class Copies(Hook):
    """Backbones just before each relocation."""
    priority = 'VERY_HIGH'

    def __init__(self):
        self.before = []

    def before_train_epoch(self, runner):
        self.before.append(copy.deepcopy(runner.model.backbone))

    after_train = before_train_epoch


def train(folder, copies=None, **kwargs):
    hook = dict(feature_stability=3, relocate_per_period=2, pruner=dict(type='RandomPruner'),
                allocator=dict(type='UniformAllocator'))
    runner = make_runner(folder, model=Seeing(), hook=hook, hooks=[copies] if copies else [], **kwargs)
    runner.train()
    path = max(folder.glob('*/relocations.jsonl'))
    return runner, path, [json.loads(line) for line in path.read_text().splitlines()]


def test_similarities_are_those_of_copies(tmp_path):
    copies = Copies()
    runner, path, rows = train(tmp_path, copies, epochs=4)
    x = HeldBatches(runner, relocation_hook(runner)._optim_wrapper, 1, runner.seed).inputs()[:3]
    ends = [slow_features(backbone, x) for backbone in copies.before]

    def similarity(one, other):
        return [F.cosine_similarity(a, b).mean().item() for a, b in zip(one, other)]

    assert len(rows) == 2 * 3 + 1
    for row in rows:
        period, found = row['period'], row['feature_stability']
        if period == 1:
            assert found['tuning'] is None
        else:
            assert found['tuning'] == pytest.approx(similarity(ends[period - 1], ends[period]), abs=1e-5)
        if row['prompt'] is None:
            assert found['pruning'] is found['allocation'] is None
            continue
        moved = copy.deepcopy(copies.before[period])
        both = [each for each in rows if each['period'] == period]
        for each in both:
            moved.prompts.relocate(each['prompt'], -1)
        assert found['pruning'] == pytest.approx(similarity(ends[period], slow_features(moved, x)), abs=1e-5)
        for each in both:
            moved.prompts.relocate(each['prompt'], each['to'])
        assert found['allocation'] == pytest.approx(similarity(ends[period], slow_features(moved, x)), abs=1e-5)
        assert min(found['pruning']) < 0.9999, 'something changed'
    drawn = read_log(path).stability
    assert drawn.shape == (3, 3, 4)
    assert drawn[2, :, 3].tolist() == rows[-1]['feature_stability']['tuning']


def test_it_changes_nothing_and_resumes(tmp_path):
    runner, _, rows = train(tmp_path / 'whole', epochs=4)
    without = make_runner(tmp_path / 'off', model=Seeing(), epochs=4, hook=dict(
        relocate_per_period=2, pruner=dict(type='RandomPruner'), allocator=dict(type='UniformAllocator')))
    without.train()
    assert all(torch.equal(a, b) for a, b in zip(runner.model.state_dict().values(),
                                                 without.model.state_dict().values()))
    train(tmp_path / 'part', epochs=2)
    _, _, resumed = train(tmp_path / 'part', epochs=4, resume=True)
    assert resumed == rows


def test_need_reaches_the_allocator(tmp_path, monkeypatch):
    """Here and not with the toy, whose blocks read without a norm: need is a gradient behind it."""
    seen, act = [], NeedAllocator.act

    def recording(self, state, signals=None):
        seen.append(signals['need'])
        return act(self, state, signals)

    monkeypatch.setattr(NeedAllocator, 'act', recording)
    runner = make_runner(tmp_path, model=Seeing(), epochs=5, hook=dict(
        pruner=dict(type='RandomPruner'), allocator=dict(type='NeedAllocator', temperature=0)))
    runner.train()
    rows = relocation_hook(runner).history.rows
    assert len(seen) == 4 and all(need.shape == (3, ) and need.nansum() > 0 for need in seen)
    assert [row['to'] for row in rows[:4]] == [int(need.nan_to_num(0).argmax()) for need in seen]
    assert any(row['to'] != row['from'] for row in rows)


@pytest.mark.parametrize('value', [-1, 1.5])
def test_bad_numbers(tmp_path, value):
    with pytest.raises(ValueError, match='feature_stability must be an int >= 0'):
        make_runner(tmp_path, hook=dict(feature_stability=value))
