"""A small checkpoint of one CPU on another, where resized positions differ in their last bits."""
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, DefaultScope

from mmprovpt import tuned_state_dict

FILE_KEY, KEY = 'prompts.frozen_file_sha256', 'prompts.frozen_sha256'


def build(size, **more):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(dict(
            type='mmprovpt.PromptedVisionTransformer', img_size=size, patch_size=16,
            arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=16),
            prompts=dict(type='StaticPrompts', num_tokens=1), **more))


def loaded(path, size=96):
    model = build(size, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model.init_weights()
    return model


@pytest.fixture
def weights(tmp_path):
    state = {name: torch.randn_like(value) for name, value in build(64).state_dict().items() if 'prompts' not in name}
    torch.save(state, tmp_path / 'w.pth')
    torch.save(dict(state, cls_token=state['cls_token'] + 1e-6), tmp_path / 'other.pth')
    return tmp_path / 'w.pth'


@pytest.fixture
def small(weights):
    """Of a model on this CPU."""
    return tuned_state_dict(loaded(weights))


@pytest.fixture
def another_cpu(small, monkeypatch):
    """Whose interpolation rounds otherwise."""
    interpolate = F.interpolate
    monkeypatch.setattr(F, 'interpolate', lambda *args, **kwargs: interpolate(*args, **kwargs) * (1 + 2e-7))


@pytest.mark.parametrize('initialised', [True, False])
def test_another_cpu(weights, small, another_cpu, initialised):
    """Whether the weights are there already, or are read when the checkpoint asks for them."""
    model = loaded(weights)
    here = tuned_state_dict(model)
    assert not torch.equal(here[KEY], small[KEY]) and torch.equal(here[FILE_KEY], small[FILE_KEY])
    if not initialised:
        model = build(96, init_cfg=dict(type='Pretrained', checkpoint=str(weights)))
    small['prompts.tokens'] = small['prompts.tokens'] + 1
    model.load_state_dict(small)
    assert torch.equal(model.prompts.tokens, small['prompts.tokens'])
    del small[FILE_KEY]  # as files were before
    with pytest.raises(RuntimeError, match='other frozen weights'):
        model.load_state_dict(small)


def test_old_files_load(weights, small):
    del small[FILE_KEY]
    loaded(weights).load_state_dict(small)


def test_other_weights_are_refused(weights, small, another_cpu):
    small[KEY] = torch.zeros_like(small[KEY])
    with pytest.raises(RuntimeError, match='other frozen weights'):
        loaded(weights.with_name('other.pth')).load_state_dict(small)
    changed = loaded(weights)
    changed.cls_token.data += 1e-6
    with pytest.raises(RuntimeError, match='other frozen weights'):
        changed.load_state_dict(small)
    size = {name: value for name, value in small.items()}
    with pytest.raises(RuntimeError, match='other frozen weights'):
        loaded(weights, size=128).load_state_dict(size)


def test_of_no_file():
    """Weights that were never read, or were changed since, have no fingerprint of a file."""
    assert FILE_KEY not in tuned_state_dict(build(64))


def test_changed_since(weights):
    model = loaded(weights)
    model.cls_token.data += 1
    assert FILE_KEY not in tuned_state_dict(model)
