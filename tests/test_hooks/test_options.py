"""Options of the hook beyond the paper's setting, in a real Runner."""
import json
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from matrix import CASES, build
from mmengine.model import BaseDataPreprocessor, BaseModel
from test_hooks.toy_run import make_runner, read_rows, relocation_hook
from torch import nn

from mmprovpt.relocation import NeedAllocator


def train(folder, **hook):
    runner = make_runner(folder, hook=hook, epochs=6)
    runner.train()
    path, = folder.glob('*/relocations.jsonl')
    return runner, [json.loads(line) for line in path.read_text().splitlines()]


def test_several_prompts_per_period(tmp_path):
    runner, rows = train(tmp_path, relocate_per_period=2, pruner=dict(type='RandomPruner'),
                         allocator=dict(type='UniformAllocator'))
    # Five relocations of two prompts; the sixth period ends the training.
    assert Counter(row['period'] for row in rows) == {1: 2, 2: 2, 3: 2, 4: 2, 5: 2, 6: 1}
    assert [row['previous_reward'] is None for row in rows] == [True] * 2 + [False] * 9
    counts = [2, 2, 2]
    for first, second in zip(rows[0:10:2], rows[1:10:2]):
        assert first['prompt'] != second['prompt'] and first['previous_reward'] == second['previous_reward']
        for row in (first, second):
            counts[row['from']] -= 1
            counts[row['to']] += 1
        assert first['distribution'] == second['distribution'] == counts
    assert relocation_hook(runner).session.prompts.distribution.tolist() == counts


def test_reward_by_the_last_part_of_a_period(tmp_path):
    """Rewards add up from the logged losses and idleness (PRO-VPT Eq. 8), whole or tail."""
    losses = {}
    for tail in (1.0, 0.5):
        _, rows = train(tmp_path / str(tail), loss_tail=tail, pruner=dict(type='RandomPruner'),
                        allocator=dict(type='UniformAllocator'))
        losses[tail] = [row['loss'] for row in rows]
        for row, after in zip(rows, rows[1:]):
            assert after['previous_reward'] == pytest.approx(row['loss'] - row['idleness'] - after['loss'], abs=1e-6)
    assert all(a != b for a, b in zip(losses[1.0], losses[0.5]))


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
    rows = read_rows(tmp_path)
    assert len(seen) == 4 and all(need.shape == (3, ) and need.nansum() > 0 for need in seen)
    assert [row['to'] for row in rows[:4]] == [int(need.nan_to_num(0).argmax()) for need in seen]
    assert any(row['to'] != row['from'] for row in rows)
