"""docs/how-to/quantization.md: the hook as printed trains, saves and resumes; int4 where it runs."""
import re
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS, MODELS, DefaultScope
from tiny_task import write_task
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup

from mmprovpt import inject_prompts
from mmprovpt.cli.runner import build_runner

PAGE = (Path(__file__).parents[1] / 'docs/how-to/quantization.md').read_text(encoding='utf-8')
HOOK, _ = re.findall('```python\n(.*?)```', PAGE, re.S)


@pytest.fixture
def task(tmp_path, monkeypatch, unformatted):
    """A config whose frozen weights come from a file, with the page's hook and small checkpoints."""
    monkeypatch.setattr('mmprovpt.visualization.plot_relocation', lambda runs, path: None)
    cfg = Config.fromfile(write_task(tmp_path))
    plain = dict(cfg.model.backbone, type='mmpretrain.VisionTransformer')
    plain.pop('prompts')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        state = MODELS.build(plain).state_dict()
    generator = torch.Generator().manual_seed(0)
    torch.save({f'backbone.{key}': torch.randn(value.shape, generator=generator) * 0.3 for key, value in state.items()},
               tmp_path / 'weights.pth')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'), prefix='backbone.')
    cfg.custom_hooks = [dict(type='QuantizeBackboneHook'), *cfg.custom_hooks]
    cfg.default_hooks.checkpoint = dict(type='mmprovpt.PromptCheckpointHook', interval=1)
    cfg.randomness = dict(seed=0)
    exec(HOOK, {'__name__': 'quantize'})
    yield cfg
    HOOKS.module_dict.pop('QuantizeBackboneHook')


def train(cfg, folder, **changes):
    cfg = Config(dict(cfg.to_dict(), **changes))
    cfg.work_dir, cfg.experiment_name = str(folder), f'quantized_{folder.name}_{cfg.get("resume")}'
    runner = build_runner(cfg)
    runner.train()
    return runner


def test_hook_as_printed(task, tmp_path):
    whole = train(task, tmp_path / 'whole')
    backbone = whole.model.backbone
    kinds = {type(module.weight).__name__ for module in backbone.modules() if isinstance(module, torch.nn.Linear)}
    assert len(kinds) == 1 and kinds.pop() not in ('Parameter', 'Tensor')
    assert backbone.prompts.tokens.dtype == torch.float32 and backbone.prompts.tokens.requires_grad
    # What the optimizer has are prompts, the head, and no numbers of what was packed.
    held = sum(value.numel() for group in whole.optim_wrapper.param_groups for value in group['params'])
    packed = sum(module.weight.numel() for module in backbone.modules() if isinstance(module, torch.nn.Linear))
    assert held == sum(value.numel() for value in whole.model.parameters()) - packed

    stopped = dict(task.train_cfg, max_epochs=2)
    train(task, tmp_path / 'part', train_cfg=stopped)
    part = train(task, tmp_path / 'resumed', resume=True, load_from=str(tmp_path / 'part/epoch_2.pth'))
    assert part.epoch == 4
    files = [tmp_path / 'whole/epoch_4.pth', tmp_path / 'resumed/epoch_4.pth', tmp_path / 'whole/epoch_1.pth']
    *states, first = (torch.load(path, weights_only=False)['state_dict'] for path in files)
    ours = 'tokens', 'block_index', 'form', 'frozen_sha256', 'frozen_file_sha256'
    assert states[0].keys() == states[1].keys() \
        == {*(f'backbone.prompts.{key}' for key in ours), 'head.fc.weight', 'head.fc.bias'}
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert (first['backbone.prompts.tokens'] != states[0]['backbone.prompts.tokens']).any(1).sum() >= 7
    logs = [path.read_text().splitlines()[-1] for path in sorted(tmp_path.glob('*/*/relocations.jsonl'))]
    assert len(logs) == 3 and logs[1] == logs[2] != logs[0]  # part, resumed, whole

    task.custom_hooks = task.custom_hooks[1:]
    plain = build_runner(Config(dict(task.to_dict(), work_dir=str(tmp_path / 'plain'), experiment_name='plain')))
    plain.model.init_weights()
    plain.model.load_state_dict(states[0])
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        ours, theirs = (model.eval().backbone(x)[0] for model in (plain.model, whole.model))
    assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.99 and not torch.equal(ours, theirs)


def test_int4_in_a_form_that_runs():
    net = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2)
    inject_prompts(net, dict(type='StaticPrompts', num_tokens=2, dropout=0.))
    quantize_(net, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))
    net.train()(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert net.prompts.tokens.grad.abs().sum(1).all()
    assert [name for name, value in net.named_parameters() if value.grad is not None] == ['prompts.tokens']
