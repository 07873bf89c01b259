"""compile in a config, with the hook on: the same relocations and weights as without, but for rounding.

MMPretrain's ViT breaks the graph in every block by itself, so it is compiled in pieces here.
"""
import json

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from tiny_task import write_task


def train(folder, more, **options):
    """Lines of the log, and the trained weights."""
    folder.mkdir()
    cfg = Config.fromfile(write_task(folder, f'randomness = dict(seed=1)\n{more}'))
    cfg.merge_from_dict(options)
    cfg.work_dir = str(folder / 'work')
    torch._dynamo.reset()
    runner = Runner.from_cfg(cfg)
    runner.train()
    DefaultScope._instance_dict.clear()
    log, = (folder / 'work').glob('*/relocations.jsonl')
    saved = torch.load(folder / 'work/epoch_4.pth', weights_only=False)['state_dict']
    return [json.loads(line) for line in log.read_text().splitlines()], saved


@pytest.mark.parametrize('criterion', ['taylor', 'gate_fisher'])
def test_a_compiled_run_is_the_run(tmp_path, unformatted, criterion):
    hook = dict(type='mmprovpt.PromptRelocationHook', allocator=dict(type='UniformAllocator'),
                pruner=dict(type='RandomPruner', criterion=criterion))
    plain, compiled = (train(tmp_path / name, more, custom_hooks=[hook]) for name, more in (
        ('plain', ''), ('compiled', "compile = dict(backend='eager')\n")))
    assert len(plain[0]) == 4 and plain[0][0]['prompt'] is not None and plain[0][0]['idleness']
    for ours, theirs in zip(compiled[0], plain[0], strict=True):
        for key in ('period', 'iter', 'prompt', 'from', 'to', 'distribution'):
            assert ours[key] == theirs[key]
        assert ours['loss'] == pytest.approx(theirs['loss'], rel=1e-5)
        # taylor's terms cancel down to their rounding.
        tolerance = dict(abs=1e-6) if criterion == 'taylor' else dict(rel=1e-3)
        if ours['idleness'] is not None:
            assert ours['idleness'] == pytest.approx(theirs['idleness'], **tolerance)
    assert plain[1].keys() == compiled[1].keys()
    for name, value in plain[1].items():
        torch.testing.assert_close(value, compiled[1][name], rtol=1e-4, atol=1e-5)
