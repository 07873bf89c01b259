"""Sets of prompts are saved and loaded one by one, beside one file of frozen weights, or refused."""
import copy
import logging

import pytest
import torch
from matrix import CASES, KINDS, build, fill_rows, images, outputs, randomise
from mmengine.config import ConfigDict
from mmengine.runner import load_checkpoint, save_checkpoint
from torch import nn

import mmprovpt
from mmprovpt.errors import CheckpointError, ConfigError

FEW = ('timm-vit', 'mmdet-swin')
OPTIONS = dict(
    static=dict(num_tokens=3),
    adaptive=dict(num_tokens=3, grid_size=5, kernel_size=2, static_blocks=[0, 2], shared_projector=False),
    shallow=dict(num_tokens=3))


class Model(nn.Module):

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(2, 2)


def trained(case, form, seed=0):
    """A model with one set without a name, as a config builds it, and not as it was drawn."""
    torch.manual_seed(seed)
    backbone = build(case, dict(KINDS[form], **OPTIONS[form]))
    fill_rows(backbone.prompts)
    if form != 'shallow':
        backbone.prompts.relocate(0, 1)
        backbone.prompts.relocate(1, -1)
    return Model(backbone.eval())


def answers(backbone, x, names):
    with torch.no_grad(), mmprovpt.using_prompts(backbone, names):
        return outputs(backbone, x)


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.fixture
def files(tmp_path):
    """Writes a small checkpoint per form, as MMEngine does, and gives the outputs that go with it."""

    def write(case, form, x, state=mmprovpt.tuned_state_dict):
        model, path = trained(case, form), tmp_path / f'{form}.pth'
        save_checkpoint(dict(state_dict=state(model), meta=dict(epoch=1)), str(path))
        with torch.no_grad():
            return path, outputs(model.backbone, x)

    return write


@pytest.mark.parametrize('state', [mmprovpt.tuned_state_dict, Model.state_dict])
def test_small_and_full_checkpoints_of_every_form_beside_each_other(case, files, state):
    """Trained one by one by a config, read by one backbone; options are those of training."""
    x, backbone = images(case), build(case)
    expected = {}
    for form in KINDS:
        path, expected[form] = files(case, form, x, state)
        prompts = mmprovpt.load_prompts(backbone, form, path)
        assert not any(parameter.requires_grad for parameter in prompts.parameters())
    for form, right in expected.items():
        assert same(answers(backbone, x, form), right)
    mixed = answers(backbone, x, ['adaptive', 'shallow'])
    for number, form in enumerate(['adaptive', 'shallow']):
        for a, b in zip(mixed, expected[form], strict=True):
            torch.testing.assert_close(a[number], b[number], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', FEW)
@pytest.mark.parametrize('form', KINDS)
def test_one_of_several_is_saved_as_if_it_were_alone(name, form, files, tmp_path):
    """Key by key; and goes back into a model with one set, and into one with others."""
    case, x = CASES[name], images(CASES[name])
    path, expected = files(case, form, x)
    model = Model(build(case))
    mmprovpt.add_prompts(model.backbone, 'other', dict(KINDS['static'], num_tokens=1))
    mmprovpt.load_prompts(model.backbone, 'mine', path)
    small = mmprovpt.tuned_state_dict(model, prompts='mine')
    alone = mmprovpt.tuned_state_dict(trained(case, form))
    assert small.keys() == alone.keys()
    assert all(torch.equal(small[key], alone[key]) for key in alone if not key.startswith('head.'))
    assert small._metadata['backbone.prompts'] == alone._metadata['backbone.prompts']
    torch.save(small, tmp_path / 'again.pth')
    one = Model(build(case, dict(KINDS[form], **OPTIONS[form])).eval())
    one.load_state_dict(torch.load(tmp_path / 'again.pth'))
    with torch.no_grad():
        assert same(outputs(one.backbone, x), expected)
    another = build(case)
    mmprovpt.load_prompts(another, 'mine', tmp_path / 'again.pth', trainable=True)
    assert same(answers(another, x, 'mine'), expected) and another.prompts['mine'].tokens.requires_grad


def test_all_sets_in_one_state_dict(tmp_path):
    case, x = CASES['timm-vit'], images(CASES['timm-vit'])
    models = [Model(build(case)) for _ in range(2)]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        for name, form in (('a', 'static'), ('b', 'adaptive')):
            fill_rows(mmprovpt.add_prompts(model.backbone.eval() or model.backbone, name,
                                           dict(KINDS[form], **OPTIONS[form])))
    one, other = models
    small = mmprovpt.tuned_state_dict(one)
    torch.save(dict(state_dict=small), tmp_path / 'all.pth')
    assert not same(answers(one.backbone, x, 'b'), answers(other.backbone, x, 'b'))
    load_checkpoint(other, str(tmp_path / 'all.pth'), strict=True)
    third = build(case)
    mmprovpt.load_prompts(third, 'b', tmp_path / 'all.pth')  # the one of this name
    for name in ('a', 'b'):
        assert same(answers(one.backbone, x, name), answers(other.backbone, x, name))
    assert same(answers(one.backbone, x, 'b'), answers(third, x, 'b'))
    with pytest.raises(CheckpointError, match='0 sets of prompts that could be c; it has .*a.tokens'):
        mmprovpt.load_prompts(third, 'c', tmp_path / 'all.pth')


def test_what_would_be_lost_is_named():
    case = CASES['timm-vit']
    one, two = Model(build(case, dict(num_tokens=2))), Model(build(case))
    mmprovpt.add_prompts(two.backbone, 'a', dict(KINDS['static'], num_tokens=2))
    with pytest.raises(CheckpointError, match='one set of prompts without a name, but the backbone has a'):
        two.load_state_dict(one.state_dict(), strict=False)
    with pytest.raises(CheckpointError, match=r'several sets of prompts \(a\), but the model has one'):
        one.load_state_dict(two.state_dict(), strict=False)
    mmprovpt.add_prompts(two.backbone, 'b', dict(KINDS['static'], num_tokens=2))
    state = two.state_dict()
    mmprovpt.remove_prompts(two.backbone, 'b')
    with pytest.raises(CheckpointError, match='the sets b, but the backbone has a'):
        two.load_state_dict(state, strict=False)


def other_weights(state, backbone):
    randomise(backbone, seed=9)


def cut(state, backbone):
    del state['backbone.prompts.block_index']


def no_fingerprint(state, backbone):
    del state['backbone.prompts.frozen_sha256']


def no_prompts(state, backbone):
    for key in [key for key in state if '.prompts.' in key]:
        del state[key]


def unknown_form(state, backbone):
    state['backbone.prompts.form'] = torch.tensor(list(b'os.system'), dtype=torch.uint8)


def hostile_options(state, backbone):
    state._metadata['backbone.prompts']['config'] = dict(type='os.system', num_tokens=2, command='true')


def more_rows(state, backbone):
    state['backbone.prompts.tokens'] = torch.cat([state['backbone.prompts.tokens']] * 2)


def free_weights(state, backbone):
    """Something of the backbone was trained beside the prompts."""
    name = next(name for name, _ in backbone.named_parameters())
    state[f'backbone.{name}'] = backbone.state_dict()[name] + 1


UNFIT = {
    other_weights: (CheckpointError, 'on other frozen weights'),
    cut: (CheckpointError, 'does not say of which form'),
    no_fingerprint: (CheckpointError, 'does not say on which frozen weights'),
    no_prompts: (CheckpointError, 'it has no prompts'),
    unknown_form: (CheckpointError, 'are os.system, which is not known'),
    hostile_options: (ConfigError, 'has no argument command'),
    more_rows: (CheckpointError, 'tokens is '),
    free_weights: (CheckpointError, 'beside other weights than'),
}


@pytest.mark.parametrize('change', UNFIT)
@pytest.mark.parametrize('has', [None, 'unnamed', 'named'])
def test_what_does_not_fit_is_refused_and_leaves_all_as_it_was(change, has):
    case = CASES['timm-vit']
    state = copy.deepcopy(mmprovpt.tuned_state_dict(trained(case, 'static')))
    backbone = build(case, dict(num_tokens=1) if has == 'unnamed' else None)
    backbone.eval()
    if has == 'named':
        mmprovpt.add_prompts(backbone, 'old', dict(KINDS['static'], num_tokens=1))
    change(state, backbone)
    before, x = {name: type(module) for name, module in backbone.named_modules()}, images(case)
    with torch.no_grad():
        expected = outputs(backbone, x)
    error, message = UNFIT[change]
    with pytest.raises(error, match=message):
        mmprovpt.load_prompts(backbone, 'new', state)
    assert {name: type(module) for name, module in backbone.named_modules()} == before
    with torch.no_grad():
        assert same(outputs(backbone, x), expected)


def test_another_backbone_is_refused():
    state = mmprovpt.tuned_state_dict(trained(CASES['mmdet-swin'], 'static'))
    del state._metadata
    with pytest.raises(CheckpointError, match='belong to 6 blocks or more, but this backbone has 3'):
        mmprovpt.load_prompts(build(CASES['timm-vit']), 'a', state)


@pytest.mark.parametrize('form', KINDS)
def test_checkpoints_that_do_not_note_their_options(form):
    """Those of earlier releases. Shapes say enough, or the caller does."""
    case, x = CASES['timm-vit'], images(CASES['timm-vit'])
    model = trained(case, form)
    state, backbone = mmprovpt.tuned_state_dict(model), build(case)
    del state._metadata
    if form == 'adaptive':
        with pytest.raises(CheckpointError, match='does not say with which options its AdaptivePrompts were built'):
            mmprovpt.load_prompts(backbone, 'a', state)
        mmprovpt.load_prompts(backbone, 'a', state, dict(KINDS[form], **OPTIONS[form]))
    else:
        mmprovpt.load_prompts(backbone, 'a', state)
    with torch.no_grad():
        assert same(answers(backbone, x, 'a'), outputs(model.backbone, x))


def test_frozen_weights_are_fetched_from_where_the_first_checkpoint_says(tmp_path, caplog):
    """A backbone that nobody has initialised, and two sets on one file."""
    case, x = CASES['mmpretrain-vit'], images(CASES['mmpretrain-vit'])
    file = tmp_path / 'frozen.pth'
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in build(case).state_dict().items()}), file)
    small = []
    for seed in range(2):
        model = trained(case, 'static', seed)
        model.backbone.init_cfg = ConfigDict(type='Pretrained', checkpoint=str(file), prefix='backbone.')
        with torch.no_grad():
            small.append((mmprovpt.tuned_state_dict(model), outputs(model.backbone, x)))
    backbone = randomise(build(case), seed=5)
    with caplog.at_level(logging.WARNING):
        for name, (state, _) in zip('ab', small):
            mmprovpt.load_prompts(backbone, name, state)
    for name, (_, expected) in zip('ab', small):
        assert same(answers(backbone, x, name), expected)


def test_no_weights_are_exchanged_below_other_sets(tmp_path):
    case, x = CASES['mmpretrain-vit'], images(CASES['mmpretrain-vit'])
    file = tmp_path / 'frozen.pth'
    torch.save(dict(state_dict={f'backbone.{key}': value for key, value in build(case).state_dict().items()}), file)
    model = trained(case, 'static')
    model.backbone.init_cfg = ConfigDict(type='Pretrained', checkpoint=str(file), prefix='backbone.')
    backbone = randomise(build(case), seed=5)
    mmprovpt.add_prompts(backbone, 'old', dict(KINDS['static'], num_tokens=2))
    backbone.eval()
    expected = answers(backbone, x, 'old')
    with pytest.raises(CheckpointError, match='on other frozen weights'):
        mmprovpt.load_prompts(backbone, 'new', mmprovpt.tuned_state_dict(model))
    assert list(backbone.prompts) == ['old'] and same(answers(backbone, x, 'old'), expected)


def test_a_file_that_runs_code_is_refused(tmp_path):
    marker = tmp_path / 'ran'

    class Evil:

        def __reduce__(self):
            return marker.touch, ()

    torch.save(dict(state_dict=mmprovpt.tuned_state_dict(trained(CASES['timm-vit'], 'static')), meta=Evil()),
               tmp_path / 'evil.pth')
    with pytest.raises(ConfigError, match='holds more than weights'):
        mmprovpt.load_prompts(build(CASES['timm-vit']), 'a', tmp_path / 'evil.pth')
    assert not marker.exists()


@pytest.mark.parametrize('model, message', [
    (lambda: build(CASES['timm-vit'], dict(num_tokens=1)), 'one set of prompts, which has no name'),
    (lambda: Model(build(CASES['timm-vit'])).backbone, None)])
def test_saving_a_set_that_is_not_there(model, message):
    backbone = model()
    if message is None:
        mmprovpt.add_prompts(backbone, 'a', dict(KINDS['static'], num_tokens=1))
        message = "called 'mine'; there are a"
    with pytest.raises(ConfigError, match=message):
        mmprovpt.tuned_state_dict(backbone, prompts='mine')
