"""Prompts that do not fit are an error wherever they are loaded; a checkpoint without any is an initialisation."""
import copy

import pytest
import torch
from matrix import CASES, KINDS, build, images, loss, outputs
from mmengine.runner import load_checkpoint

from mmprovpt import tuned_state_dict
from mmprovpt.errors import CheckpointError, ConfigError

FORMS = list(KINDS)
# What loads does not know which attention there is: one backbone of each way to load, and of each layout.
LOADING = ('mmpretrain-vit', 'mmseg-vit', 'timm-vit', 'mmdet-swin', 'mmpretrain-swin', 'timm-swin')


@pytest.fixture(params=LOADING)
def case(request):
    """Fewer backbones than elsewhere."""
    return CASES[request.param]


@pytest.fixture(params=['pytorch', 'not strictly', 'mmengine', 'small'])
def load(request, tmp_path):
    """Ways in which a state dict of one backbone gets into another."""

    def load(target, source):
        state = tuned_state_dict(source) if request.param == 'small' else source.state_dict()
        if request.param == 'mmengine':
            torch.save(dict(state_dict=state), tmp_path / 'x.pth')
            load_checkpoint(target, str(tmp_path / 'x.pth'))
        else:
            target.load_state_dict(state, strict=request.param != 'not strictly')

    return load


def prompted(case, form, num_tokens=2, **options):
    return build(case, dict(KINDS[form], num_tokens=num_tokens, **options))


@pytest.mark.parametrize('form', FORMS)
def test_another_number_is_refused_with_both_shapes(case, form, load):
    source, target = prompted(case, form, 3), prompted(case, form, 2)
    before = copy.deepcopy(target.prompts.state_dict())
    shapes = [str(tuple(each.prompts.tokens.shape)) for each in (source, target)]
    with pytest.raises(CheckpointError, match='(?s)tokens is .* set prompts.num_tokens') as caught:
        load(target, source)
    assert f'tokens is {shapes[0]}, but {shapes[1]} in the model' in str(caught.value)
    assert isinstance(caught.value, ConfigError) and isinstance(caught.value, RuntimeError)
    for name, value in target.prompts.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize('given, mine', [(a, b) for a in FORMS for b in FORMS if a != b])
def test_another_form_is_refused_whatever_its_shape(case, given, mine, load):
    count = {'shallow': 2 * case.depth}
    source = prompted(case, given, count.get(given, 2))
    target = prompted(case, mine, count.get(mine, 2))
    assert len(source.prompts.tokens) == len(target.prompts.tokens)
    names = [type(each.prompts).__name__ for each in (source, target)]
    with pytest.raises(CheckpointError, match=f'are {names[0]}, but the model has {names[1]}: set prompts=dict'):
        load(target, source)


@pytest.mark.parametrize('given, mine', [('static', 'shallow'), ('static', 'adaptive'), ('adaptive', 'static')])
def test_old_checkpoints_do_not_name_their_form_but_it_shows(case, given, mine):
    count = {'shallow': 2 * case.depth}
    state = prompted(case, given, count.get(given, 2)).state_dict()
    del state['prompts.form']
    with pytest.raises(CheckpointError, match='another form of prompts|prompts in other blocks than the first'):
        prompted(case, mine, count.get(mine, 2)).load_state_dict(state)


@pytest.mark.parametrize('form', FORMS)
def test_old_checkpoints_load(case, form):
    source, target = prompted(case, form), prompted(case, form)
    state = source.state_dict()
    del state['prompts.form']
    target.load_state_dict(state, strict=True)
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)


@pytest.mark.parametrize('left', ['tokens', 'block_index', 'form'])
def test_only_some_of_the_keys_are_refused(case, left):
    state = prompted(case, 'static').state_dict()
    state = {key: value for key, value in state.items() if not key.startswith('prompts.') or key == f'prompts.{left}'}
    with pytest.raises(CheckpointError, match='has only some of the prompts'):
        prompted(case, 'static').load_state_dict(state, strict=False)


@pytest.mark.parametrize('form', FORMS)
def test_a_checkpoint_without_prompts_is_an_initialisation(case, form):
    upstream, backbone, x = build(case).state_dict(), prompted(case, form), images(case)
    rows = backbone.prompts.tokens.detach().clone()
    backbone.eval()
    with torch.no_grad():
        outputs(backbone, x)  # nothing was loaded
        backbone.load_state_dict(upstream, strict=True)
        assert torch.equal(backbone.prompts.tokens, rows)
        with pytest.raises(CheckpointError, match='prompts of this backbone are as they were drawn'):
            backbone(x)
    loss(backbone.train(), x).backward()
    with torch.no_grad():
        outputs(backbone.eval(), x)
        backbone.load_state_dict(upstream)
        with pytest.raises(CheckpointError):
            backbone(x)
        backbone.load_state_dict(prompted(case, form).state_dict())
        outputs(backbone, x)
        backbone.load_state_dict(upstream)
        backbone.prompts.reset_parameters()
        outputs(backbone, x)


def test_without_prompts_at_all_nothing_is_missed(case):
    backbone = prompted(case, 'static', 0).eval()
    backbone.load_state_dict(build(case).state_dict(), strict=True)
    outputs(backbone, images(case))
