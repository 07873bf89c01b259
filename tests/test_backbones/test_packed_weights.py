"""Small checkpoints of models whose frozen weights are quantized or sharded: they name the weights that were loaded."""
import copy
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from mmprovpt import inject_prompts, tuned_state_dict
from mmprovpt.backbones import loading
from mmprovpt.errors import CheckpointError

SHARDED = Path(__file__).with_name('sharded_run.py')
KEYS = 'prompts.frozen_sha256', 'prompts.frozen_file_sha256'


def vit(seed=None):
    """With frozen weights that were loaded, if there is a seed."""
    net = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2,
                            num_classes=3)
    generator = torch.Generator().manual_seed(seed or 0)
    weights = {name: torch.randn(value.shape, generator=generator) for name, value in net.state_dict().items()}
    inject_prompts(net, dict(type='StaticPrompts', num_tokens=3))
    if seed is not None:
        net.load_state_dict(weights, strict=False)
    return net.eval()


def dynamic(net):
    return torch.ao.quantization.quantize_dynamic(copy.deepcopy(net), {nn.Linear}, dtype=torch.qint8)


def int8(net):
    net = copy.deepcopy(net)
    quantize_(net, Int8WeightOnlyConfig())
    return net


packing = pytest.mark.parametrize('pack', [dynamic, int8])
pytestmark = pytest.mark.filterwarnings('ignore')


@packing
def test_quantized(pack):
    net = vit(1)
    plain, packed = tuned_state_dict(net), pack(net)
    packed.prompts.tokens.data += 1
    small = tuned_state_dict(packed)
    assert small.keys() == plain.keys()
    for key in KEYS:
        assert torch.equal(small[key], plain[key])
    other = vit(1)
    other.load_state_dict(small)
    assert torch.equal(other.prompts.tokens, packed.prompts.tokens)
    with pytest.raises(CheckpointError, match='other frozen weights'):
        vit(2).load_state_dict(small)


@packing
def test_of_weights_that_nothing_knows(pack):
    with pytest.raises(CheckpointError, match='qkv.* is quantized or sharded, .*none were loaded'):
        tuned_state_dict(pack(vit()))
    net = vit(1)
    net.norm.bias.requires_grad_(True)
    with pytest.raises(CheckpointError, match='quantized or sharded, .*norm.bias was set free'):
        tuned_state_dict(pack(net))


def test_small_ones_into_quantized_models():
    net = vit(1)
    small = tuned_state_dict(net)
    int8(net).load_state_dict(small)
    with pytest.raises(CheckpointError, match='load the checkpoint first, then quantize'):
        dynamic(net).load_state_dict(small)


@pytest.mark.parametrize('way', ['fully_shard', 'FullyShardedDataParallel'])
def test_sharded(tmp_path, way):
    """Two processes, of which each has a piece of every weight."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2', SHARDED,
               tmp_path, way]
    path = os.pathsep.join([str(SHARDED.parent), *sys.path])
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=path))
    assert done.returncode == 0, done.stderr
    small, net = torch.load(tmp_path / 'small.pth'), vit(1)
    for key in KEYS:
        assert torch.equal(small[key], tuned_state_dict(net)[key])
    net.load_state_dict(small)
    assert torch.equal(net.prompts.tokens, small['prompts.tokens'])


def test_a_load_hashes_once_what_is_kept_as_it_was(monkeypatch):
    hashed = []
    sha256 = hashlib.sha256

    class Counting:
        def __init__(self, data=b''):
            self.inner = sha256(data)
            self.digest = self.inner.digest

        def update(self, data):
            hashed.append(memoryview(data).nbytes)
            self.inner.update(data)

    monkeypatch.setattr(loading.hashlib, 'sha256', Counting)
    net = vit()
    weights = {key: value.clone() for key, value in net.state_dict().items() if not key.startswith('prompts.')}
    net.load_state_dict(weights)
    size = sum(value.nbytes for value in weights.values())
    assert size <= sum(hashed) < 1.1 * size
    hashed.clear()
    net.load_state_dict({key: value.double() for key, value in weights.items()})  # cast: other bytes
    assert 3 * size <= sum(hashed) < 3.2 * size
    # What is known without hashing is what hashing finds.
    assert torch.equal(net._loaded.held, loading.fingerprint(net.frozen_tensors()))
