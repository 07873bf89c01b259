"""Frozen blocks in pieces (FSDP2), prompts and head by DDP: real processes train as one does."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import mmprovpt

WORKER = Path(__file__).with_name('frozen_shards_run.py')
EXAMPLE = Path(__file__).parents[2] / 'examples/sharded_backbone.py'
PERIODS, BATCHES, BATCH = 4, 3, 8
MODELS = dict(
    vit=dict(model_name='vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2),
    swin=dict(model_name='swin_tiny_patch4_window7_224', img_size=56, embed_dim=12, depths=(2, 2, 2),
              num_heads=(2, 3, 4)))


def example():
    spec = importlib.util.spec_from_file_location('sharded_backbone', EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(name):
    """A model with prompts and a head that is trained, and weights that were loaded."""
    torch.manual_seed(0)
    net = timm.create_model(**MODELS[name], num_classes=4)
    weights = {key: torch.randn(value.shape) * 0.2 + ('norm' in key and 'weight' in key)
               if value.is_floating_point() else value for key, value in net.state_dict().items()}
    mmprovpt.inject_prompts(net, dict(type='StaticPrompts', num_tokens=2, dropout=0.))
    net.head.requires_grad_(True)
    net.load_state_dict(weights, strict=False)
    return net


def data(name, rank=0, world=1):
    """One process's share of each batch."""
    generator, size = torch.Generator().manual_seed(1), MODELS[name]['img_size']
    batches = [(torch.randn(BATCH, 3, size, size, generator=generator),
                torch.randint(4, (BATCH, ), generator=generator)) for _ in range(BATCHES)]
    return [(images[rank::world], labels[rank::world]) for images, labels in batches]


def run(net, model, batches):
    """Train; then what came of it: moves, gradients of the last iteration, and a small checkpoint."""
    closed = example().train(model, net.prompts, batches, PERIODS)
    grads = {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.requires_grad}
    moves = [[tuple(move[:3]) for move in period.moves] for period in closed if period is not None]
    return dict(moves=moves, grads=grads, small=mmprovpt.tuned_state_dict(net))


@pytest.mark.parametrize('name, world', [('vit', 4), ('swin', 2)])
def test_equals_one_process(tmp_path, name, world):
    """Also where a prompt crosses stages: the patch merging, which maps it, is whole."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={world}', WORKER,
               tmp_path, name]
    path = os.pathsep.join([str(WORKER.parent), *sys.path])
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=path))
    assert done.returncode == 0, done.stderr
    net = build(name)
    alone = run(net, net, data(name))
    moves = [move for period in alone['moves'] for move in period]
    assert len(alone['moves']) == PERIODS and any(source != target for _, source, target in moves)
    if name == 'swin':
        assert any(source // 2 != target // 2 for _, source, target in moves)
    ranks = [torch.load(tmp_path / f'{rank}.pth') for rank in range(world)]
    assert ranks[0]['moves'] == alone['moves']
    for each in ranks:
        assert 'the weights of block 0 are sharded (fully_shard)' in each['folded']
        assert each['share'] == pytest.approx(1 / world, rel=0.1)
        for kind, tolerance in dict(small=1e-4, grads=1e-3).items():
            assert each[kind].keys() == alone[kind].keys()
            for key, value in alone[kind].items():
                assert torch.equal(each[kind][key], ranks[0][kind][key]), key
                torch.testing.assert_close(each[kind][key], value, rtol=tolerance, atol=1e-5, msg=key)
    assert all(value.any() for value in alone['grads'].values())
    other = build(name)
    other.load_state_dict(ranks[0]['small'])
    assert torch.equal(other.prompts.block_index, net.prompts.block_index)
