"""Models and Runners of configs that name classes, or have no default scope; benchmarks that read checkpoints."""
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tiny_task import write_task

from mmprovpt.cli.runner import adapt_to_cpu, build_model

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('scope', [None, 'mmpretrain'])
def test_scope_of_a_config_without_one(tmp_path, scope):
    cfg = Config.fromfile(write_task(tmp_path))
    cfg.default_scope = scope
    cfg.model.type = 'mmpretrain.models.ImageClassifier'
    assert build_model(cfg).head.num_classes == 2
    assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'


@pytest.mark.parametrize('named', [True, False])
def test_strategies_on_cpu(tmp_path, named):
    from mmengine._strategy import DDPStrategy, FSDPStrategy
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/rendezvous', rank=0, world_size=1)
    try:
        found = []
        for strategy in (DDPStrategy, FSDPStrategy):
            cfg = Config(dict(launcher='pytorch', runner_type='FlexibleRunner', model=dict(),
                              strategy=dict(type=strategy.__name__ if named else strategy)))
            adapt_to_cpu(cfg)
            found.append(cfg.strategy.get('model_wrapper'))
    finally:
        dist.destroy_process_group()
    assert found[0] == dict(type='mmprovpt.CPUDistributedDataParallel', broadcast_buffers=False)
    assert found[1] is None  # it wraps by other means


class Hostile:
    """Pickled, it writes a file when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return exec, (f'open({str(self.marker)!r}, "w")', )


def test_benchmarks_run_no_code_of_checkpoints(tmp_path):
    task, bad = write_task(tmp_path), tmp_path / 'bad.pth'
    torch.save(dict(state_dict={}, meta=Hostile(tmp_path / 'marker')), bad, pickle_module=pickle)
    done = subprocess.run(
        [sys.executable, ROOT / 'benchmarks/feature_stability.py', task, bad, bad, '--work-dir', tmp_path / 'w'],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 1 and 'bad.pth holds more than weights' in done.stderr.splitlines()[-1]
    assert not (tmp_path / 'marker').exists()
