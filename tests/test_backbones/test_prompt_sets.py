"""Several sets of prompts on one backbone: each forward, and each sample, reads its own; and they leave no trace."""
import copy
import pickle
import threading

import pytest
import torch
from matrix import CASES, KINDS, build, fill_rows, images, loss, outputs
from torch import nn
from torch.utils.checkpoint import checkpoint

import mmprovpt
from mmprovpt.attention import PromptedBlock, running
from mmprovpt.errors import ConfigError
from mmprovpt.relocation import CRITERIA, RelocationSession

FEW = ('timm-vit', 'mmdet-swin')
# What the samples of a batch read.
MIXTURES = {
    'static': ('deep', None, 'other', 'deep'),
    'adaptive': ('vapt', 'deep', None, 'vapt'),
    'shallow': ('shallow', None, 'deep', 'shallow'),
    'all': ('vapt', 'shallow', 'deep', None, 'other', 'shallow', 'nothing'),
    'without': (None, None, 'deep'),
}


def several(case, names=('deep', 'other', 'vapt', 'shallow', 'nothing'), **overrides):
    """A backbone with sets of every form; of ``other`` and the first one, counts differ from block to block."""
    configs = dict(
        deep=dict(KINDS['static'], num_tokens=2),
        other=dict(KINDS['static'], num_tokens=[0] * (case.depth - 1) + [5]),
        vapt=dict(KINDS['adaptive'], num_tokens=3),
        shallow=dict(KINDS['shallow'], num_tokens=4),
        nothing=dict(KINDS['static'], num_tokens=0))
    torch.manual_seed(0)
    backbone = build(case, **overrides)
    for name in names:
        prompts = mmprovpt.add_prompts(backbone, name, configs[name])
        if name == 'vapt':
            fill_rows(prompts)
    return backbone


def answers(backbone, x, names):
    with mmprovpt.using_prompts(backbone, names):
        return outputs(backbone, x)


def one_by_one(backbone, x, names):
    """The slow way: each sample is a batch."""
    return [torch.cat(each) for each in zip(*(answers(backbone, x[i:i + 1], name) for i, name in enumerate(names)))]


def gradients(backbone, outs):
    """Of every parameter of every set; None where there is none."""
    backbone.prompts.zero_grad()
    sum((out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum() for out in outs).backward()
    return {name: parameter.grad for name, parameter in backbone.prompts.named_parameters()}


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# Mixed batches


@pytest.mark.parametrize('mixture', MIXTURES)
@pytest.mark.parametrize('checkpointing', [False, True])
def test_mixed_batch_equals_its_samples(case, mixture, checkpointing):
    """Values, and gradients of every set; also where the choice is over before the backward runs blocks again."""
    backbone, names = several(case).train(), MIXTURES[mixture]
    x = images(case, case.sizes[-1], batch=len(names))
    with torch.no_grad():
        close(answers(backbone, x, names), one_by_one(backbone, x, names))
    backbone, x = backbone.double(), x.double()  # behind post-norms, gradients are too small for float32
    right = gradients(backbone, one_by_one(backbone, x, names))
    backbone.set_grad_checkpointing(checkpointing)
    mixed = answers(backbone, x, names)
    mmprovpt.set_prompts(backbone, 'other')
    for name, grad in gradients(backbone, mixed).items():
        used = name.partition('.')[0] in names
        assert (grad is not None) == (right[name] is not None) <= used, name
        if grad is not None:
            scale = float(right[name].abs().max())
            torch.testing.assert_close(grad, right[name], rtol=1e-8, atol=1e-9 * scale, msg=name)
            assert scale > 0 or name.endswith(('kernels', 'norms'))


@pytest.mark.parametrize('name', CASES)
def test_dropout_of_a_mixed_batch_is_drawn_per_sample(name):
    case = CASES[name]
    backbone = build(case)
    for each in 'ab':
        mmprovpt.add_prompts(backbone, each, dict(type='StaticPrompts', num_tokens=3, dropout=0.5))
    x = images(case, batch=1).expand(4, -1, -1, -1)
    out = answers(backbone.train(), x, ['a', 'a', 'b', None])[0]
    assert not torch.allclose(out[0], out[1])
    out = answers(backbone.eval(), x, ['a', 'a', 'b', None])[0]
    torch.testing.assert_close(out[0], out[1])
    assert not torch.allclose(out[1], out[2]) and not torch.allclose(out[2], out[3])


def test_hidden_prompts_of_a_mixed_batch():
    case = CASES['timm-vit']
    backbone = several(case, ('deep', 'shallow')).eval()
    x, names = images(case, batch=3), ('deep', 'shallow', 'deep')
    with torch.no_grad(), backbone.prompts['deep'].without(0, 3), backbone.prompts['shallow'].without(1):
        close(answers(backbone, x, names), one_by_one(backbone, x, names))


@pytest.mark.parametrize('name', FEW)
def test_owners_move_between_mixed_batches(name):
    case = CASES[name]
    backbone = several(case, ('deep', 'other')).eval()
    x, names = images(case, batch=3), ('deep', 'other', None)
    before = answers(backbone, x, names)
    backbone.prompts['deep'].relocate(0, 2)
    after = answers(backbone, x, names)
    close(after, one_by_one(backbone, x, names))
    assert not torch.allclose(before[-1][0], after[-1][0]) and torch.equal(before[-1][1:], after[-1][1:])


# One of several


def test_a_chosen_set_is_as_injected(case, kind):
    """Bit for bit, values and gradients, with another set beside it."""
    alone = build(case, dict(kind, num_tokens=2)).train()
    backbone = build(case)
    mmprovpt.add_prompts(backbone, 'other', dict(KINDS['static'], num_tokens=1))
    prompts = mmprovpt.add_prompts(backbone, 'mine', dict(kind, num_tokens=2))
    prompts.load_state_dict(alone.prompts.state_dict())
    mmprovpt.set_prompts(backbone, 'mine')
    x = images(case)
    for each in (alone, backbone.train()):
        loss(each, x).backward()
    assert same(outputs(backbone, x), outputs(alone, x))
    for mine, theirs in zip(prompts.parameters(), alone.prompts.parameters(), strict=True):
        assert mine.grad is theirs.grad or torch.equal(mine.grad, theirs.grad)
    assert backbone.prompts['other'].tokens.grad is None


def test_the_first_is_chosen_and_the_choice_nests():
    case = CASES['timm-vit']
    backbone, x = several(case, ('deep', 'other')).eval(), images(case)
    deep, other, none = (answers(backbone, x, name)[0] for name in ('deep', 'other', None))
    assert torch.equal(outputs(backbone, x)[0], deep) and not torch.allclose(deep, other)
    mmprovpt.set_prompts(backbone, 'other')
    assert torch.equal(outputs(backbone, x)[0], other)
    with mmprovpt.using_prompts(backbone, None):
        with mmprovpt.using_prompts(backbone, ['deep', 'deep']):
            assert torch.equal(outputs(backbone, x)[0], deep)
        assert torch.equal(outputs(backbone, x)[0], none)
        copied = copy.deepcopy(backbone)  # a choice is of one backbone
        assert torch.equal(outputs(copied, x)[0], other)
    assert torch.equal(outputs(backbone, x)[0], other)


@pytest.mark.parametrize('name', FEW)
def test_threads_read_their_own(name):
    """Names per thread and per sample, while yet another thread changes what is read otherwise."""
    case = CASES[name]
    backbone = several(case).eval()
    choices = ['deep', None, 'vapt', ['shallow', 'deep', None], ['vapt', 'other', 'other']]
    xs = [images(case, batch=3, seed=seed) for seed in range(len(choices))]
    with torch.no_grad():
        expected = [answers(backbone, x, names) for x, names in zip(xs, choices)]
    wrong, over = [], threading.Event()

    @torch.no_grad()
    def serve(x, names, right):
        with mmprovpt.using_prompts(backbone, names):
            for _ in range(20):
                if not all(torch.allclose(a, b, atol=1e-5) for a, b in zip(outputs(backbone, x), right)):
                    wrong.append(names)

    def disturb():
        while not over.is_set():
            for each in ('other', None, 'deep'):
                mmprovpt.set_prompts(backbone, each)

    threads = [threading.Thread(target=serve, args=args) for args in zip(xs, choices, expected)]
    disturber = threading.Thread(target=disturb)
    for thread in (disturber, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    disturber.join()
    assert wrong == [] and not getattr(running._here, 'choices', ())


@pytest.mark.parametrize('name', ['mmpretrain-vit', 'timm-vit', 'mmseg-swin'])
@pytest.mark.parametrize('form', ['deep', 'vapt', 'shallow'])
def test_a_backward_runs_what_its_forward_read(name, form):
    """Checkpointing, and two forwards of other sets before one backward."""
    case = CASES[name]
    backbone, x = several(case).train(), images(case)
    right = gradients(backbone, [*answers(backbone, x, form), *answers(backbone, x, 'other')])
    backbone.set_grad_checkpointing()
    outs = [*answers(backbone, x, form), *answers(backbone, x, 'other')]
    mmprovpt.set_prompts(backbone, None)
    for key, grad in gradients(backbone, outs).items():
        assert grad is right[key] or torch.equal(grad, right[key]), key


@pytest.mark.parametrize('whole', [True, False])
def test_checkpointing_that_is_not_ours_is_refused(whole):
    case = CASES['timm-vit']
    backbone, x = several(case, ('deep', 'other')).train(), images(case)
    if whole:
        out = checkpoint(backbone, x, use_reentrant=False)
    else:
        for block in [module for module in backbone.modules() if isinstance(module, PromptedBlock)]:
            block.forward = lambda x, forward=block.forward, **kw: checkpoint(forward, x, use_reentrant=False, **kw)
        out = backbone(x)
    with pytest.raises(RuntimeError, match='set_grad_checkpointing'):
        out[0].sum().backward()


# Training one


@pytest.mark.parametrize('name', FEW)
@pytest.mark.parametrize('criterion', CRITERIA)
def test_one_is_trained_and_relocated_while_others_are_frozen(name, criterion):
    """As alone, bit for bit: values, owners and scores."""
    case, x = CASES[name], images(CASES[name])
    alone = build(case, dict(num_tokens=2)).train()
    backbone = several(case, ('vapt', 'other'))
    prompts = mmprovpt.add_prompts(backbone, 'mine', dict(KINDS['static'], num_tokens=2))
    prompts.load_state_dict(alone.prompts.state_dict())
    for each in ('vapt', 'other'):
        backbone.prompts[each].requires_grad_(False)
    frozen = copy.deepcopy({key: value for key, value in backbone.state_dict().items() if '.mine.' not in key})
    mmprovpt.set_prompts(backbone, 'mine')
    periods = []
    for model, own in ((alone, alone.prompts), (backbone.train(), prompts)):
        optimizer = torch.optim.SGD([own.tokens], lr=0.1, momentum=0.9)
        session = RelocationSession(own, optimizer, pruner=dict(type='IdlenessPruner', criterion=criterion),
                                    allocator=dict(type='UniformAllocator'), relocate_per_period=2)
        for _ in range(3):
            session.begin_iteration()
            value = loss(model, x)
            optimizer.zero_grad()
            value.backward()
            session.end_iteration(value)
            optimizer.step()
            periods.append(session.close_period())
        session.finish()
    assert [each.moves for each in periods[:3]] == [each.moves for each in periods[3:]]
    assert torch.equal(prompts.tokens, alone.prompts.tokens)
    assert torch.equal(prompts.block_index, alone.prompts.block_index)
    for key, value in frozen.items():
        assert torch.equal(backbone.state_dict()[key], value)
    assert not backbone.prompts['vapt'].training and prompts.training


def test_scores_of_a_mixed_batch_are_refused():
    case = CASES['timm-vit']
    backbone, x = several(case, ('deep', 'other')).train(), images(case)
    criterion = CRITERIA['gate_fisher'](backbone.prompts['deep'])
    with pytest.raises(RuntimeError, match='not defined where they read different sets'):
        answers(backbone, x, ['deep', None])
    answers(backbone, x, ['deep', 'deep'])
    with torch.no_grad():
        answers(backbone, x, ['deep', None])
    criterion.close()
    answers(backbone, x, ['deep', None])


def test_a_frozen_set_is_not_trained_by_accident():
    case = CASES['timm-vit']
    backbone, x = several(case, ('deep', 'other')).train(), images(case)
    backbone.prompts['deep'].requires_grad_(False)
    with pytest.raises(RuntimeError, match='frozen, while others of this backbone train'):
        backbone(x)
    answers(backbone, x, ['deep', 'other'])  # one of them is trained
    backbone.eval()(x)


# Adding and removing


def traces(backbone):
    """What there is to see of a module tree but its values."""
    return {name: (type(module), module.training, sorted(vars(module)), sorted(module._modules),
                   list(module._forward_hooks.values()), getattr(module, 'with_cp', None),
                   getattr(module, 'grad_checkpointing', None),
                   [(key, id(value), value is not None and value.requires_grad)
                    for key, value in module._parameters.items()])
            for name, module in backbone.named_modules()}


@pytest.mark.parametrize('mode', ['train', 'eval', 'some'])
def test_removing_the_last_leaves_no_trace(case, mode):
    backbone = build(case, **(dict(with_cp=True) if case.with_cp else {}))
    for module in backbone.modules():  # as in the middle of somebody's fine-tuning
        if getattr(module, 'grad_checkpointing', None) is False:
            module.grad_checkpointing = True
    for number, parameter in enumerate(backbone.parameters()):
        parameter.requires_grad_(number % 3 == 0)
    for number, module in enumerate(backbone.modules()):
        module.training = mode == 'train' or mode == 'some' and number % 2 == 0
    before, x = traces(backbone), images(case)
    state = copy.deepcopy(backbone.state_dict())
    with torch.no_grad():
        torch.manual_seed(0)
        expected = outputs(backbone, x)
    for name, kind in KINDS.items():
        mmprovpt.add_prompts(backbone, name, dict(kind, num_tokens=2))
    loss(backbone, x).backward()
    answers(backbone, x, ['static', 'shallow'])
    for name in KINDS:
        mmprovpt.remove_prompts(backbone, name)
    assert traces(backbone) == before
    assert backbone.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    with torch.no_grad():
        torch.manual_seed(0)
        assert same(outputs(backbone, x), expected)


@pytest.mark.parametrize('name', FEW)
@pytest.mark.parametrize('mode', [True, False])
def test_modes_that_were_set_meanwhile_count(name, mode):
    backbone = build(CASES[name])
    nn.Module.train(backbone, not mode)
    mmprovpt.add_prompts(backbone, 'a', dict(KINDS['static'], num_tokens=1))
    backbone.train(mode)
    mmprovpt.remove_prompts(backbone, 'a')
    assert {module.training for module in backbone.modules()} == {mode}


def test_none_chosen_is_upstream_bit_for_bit(case):
    upstream, backbone = build(case), several(case)
    mmprovpt.set_prompts(backbone, None)
    for size in case.sizes:
        x = images(case, size)
        for training in (False, True):
            assert same(outputs(backbone.train(training), x), outputs(upstream, x))
        assert same(answers(backbone, x, 'nothing'), outputs(upstream, x))
        assert same(answers(backbone, x, ['nothing', None]), outputs(upstream, x))


@pytest.mark.parametrize('name', FEW)
@pytest.mark.parametrize('form', KINDS)
def test_prompts_without_a_name_become_the_default(name, form):
    """Of a config or inject_prompts; whoever holds them goes on holding them."""
    case = CASES[name]
    backbone, x = build(case, dict(KINDS[form], num_tokens=2)), images(case)
    backbone.set_grad_checkpointing()
    prompts, expected = backbone.prompts, outputs(backbone.eval(), x)
    mmprovpt.add_prompts(backbone, 'new', dict(KINDS['static'], num_tokens=1))
    assert list(backbone.prompts) == ['default', 'new'] and backbone.prompts['default'] is prompts
    assert same(outputs(backbone, x), expected) and not same(answers(backbone, x, 'new'), expected)
    assert all(module.checkpointed for module in backbone.modules() if isinstance(module, PromptedBlock))
    loss(backbone.train(), x).backward()
    assert prompts.tokens.grad is not None
    mmprovpt.remove_prompts(backbone, 'new')
    mmprovpt.remove_prompts(backbone, 'default')
    backbone.eval()
    assert type(backbone) is type(build(case)) and same(outputs(backbone, x), outputs(build(case), x))


def test_one_set_without_a_name_can_be_removed():
    case = CASES['mmseg-vit']
    backbone = build(case)
    before = traces(backbone)
    mmprovpt.inject_prompts(backbone, dict(KINDS['adaptive'], num_tokens=2))
    mmprovpt.remove_prompts(backbone, 'default')
    assert traces(backbone) == before


def test_removing_the_chosen_one_chooses_none():
    case = CASES['timm-vit']
    backbone, x = several(case, ('deep', 'other')).eval(), images(case)
    none = answers(backbone, x, None)
    mmprovpt.remove_prompts(backbone, 'deep')
    assert list(backbone.prompts) == ['other'] and same(outputs(backbone, x), none)


@pytest.mark.parametrize('name', FEW)
@pytest.mark.parametrize('way', [copy.deepcopy, lambda backbone: pickle.loads(pickle.dumps(backbone))])
def test_copies_are_whole_and_can_be_taken_apart(name, way):
    case, mixture = CASES[name], MIXTURES['all']
    backbone, x = several(case).eval(), images(CASES[name], batch=7)
    copied = way(backbone)
    assert same(answers(copied, x, mixture), answers(backbone, x, mixture))
    with torch.no_grad():
        backbone.prompts['deep'].tokens.zero_()
    assert not same(answers(copied, x, 'deep'), answers(backbone, x, 'deep'))
    for each in list(copied.prompts):
        mmprovpt.remove_prompts(copied, each)
    assert same(outputs(copied, x), outputs(build(case), x))


# Errors

WRONG = {
    'unknown': (lambda b: mmprovpt.set_prompts(b, 'bird'), "no set of prompts called 'bird'; there are deep, other"),
    'unknown to remove': (lambda b: mmprovpt.remove_prompts(b, 'bird'), "called 'bird'"),
    'none to remove': (lambda b: mmprovpt.remove_prompts(b, None), "called ''"),
    'unknown of a sample': (lambda b: mmprovpt.using_prompts(b, ['deep', 'bird']), "called 'bird'"),
    'unknown to a thread': (lambda b: mmprovpt.using_prompts(b, 'bird'), "called 'bird'"),
    'no name': (lambda b: mmprovpt.using_prompts(b, 3), 'takes a name, None, or a list'),
    'no names': (lambda b: mmprovpt.using_prompts(b, [3]), 'called 3'),
    'taken': (lambda b: mmprovpt.add_prompts(b, 'deep', KINDS['static']), 'a set of prompts called deep already'),
    'dots': (lambda b: mmprovpt.add_prompts(b, 'a.b', KINDS['static']), 'letters, digits'),
    'empty': (lambda b: mmprovpt.add_prompts(b, '', KINDS['static']), 'letters, digits'),
    'of PyTorch': (lambda b: mmprovpt.add_prompts(b, 'train', KINDS['static']), 'means something else'),
    'of a state dict': (lambda b: mmprovpt.add_prompts(b, 'frozen_sha256', KINDS['static']), 'means something else'),
    'no count': (lambda b: mmprovpt.add_prompts(b, 'new', KINDS['static']), 'num_tokens is missing'),
    'counts': (lambda b: mmprovpt.add_prompts(b, 'new', dict(KINDS['static'], num_tokens=[1])), 'has 3 blocks'),
    'form': (lambda b: mmprovpt.add_prompts(b, 'new', dict(type='Prompts', num_tokens=1)), "type='Prompts' is unknown"),
    'again': (lambda b: mmprovpt.inject_prompts(b, dict(KINDS['static'], num_tokens=1)), 'has prompts already'),
    'several': (lambda b: mmprovpt.find_prompts(b), 'must have one set of prompts, but has 2'),
}


@pytest.mark.parametrize('what', WRONG)
def test_what_is_wrong_is_said_and_changes_nothing(what):
    call, message = WRONG[what]
    backbone = several(CASES['timm-vit'], ('deep', 'other'))
    before = traces(backbone)
    with pytest.raises(ConfigError, match=message):
        call(backbone)
    assert traces(backbone) == before and backbone.prompts.chosen == 'deep'


@pytest.mark.parametrize('names', [['deep'], ['deep', None, 'other'], [None] * 3, []])
def test_as_many_names_as_samples(names):
    case = CASES['timm-vit']
    backbone = several(case, ('deep', 'other'))
    with pytest.raises(ConfigError, match=f'{len(names)} names, but the batch has 2 samples'):
        answers(backbone, images(case), names)
    assert outputs(backbone, images(case))


@pytest.mark.parametrize('prompts', [None, dict(KINDS['static'], num_tokens=1)])
def test_nothing_to_choose_from(prompts):
    backbone = build(CASES['timm-vit'], prompts)
    for call in (mmprovpt.set_prompts, mmprovpt.using_prompts, mmprovpt.remove_prompts):
        with pytest.raises(ConfigError, match='without a name' if prompts else 'has no prompts'):
            call(backbone, 'deep')
    if prompts:
        with pytest.raises(ConfigError, match='called default'):
            mmprovpt.add_prompts(backbone, 'default', dict(prompts))


def test_the_right_module_is_asked_for():
    """A model around the backbone, and a backbone that has something else called prompts."""
    model = nn.Sequential(several(CASES['timm-vit'], ('deep', )))
    with pytest.raises(ConfigError, match='a backbone in this Sequential has prompts already'):
        mmprovpt.add_prompts(model, 'a', dict(KINDS['static'], num_tokens=1))
    model.prompts = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match='Sequential has no prompts'):
        mmprovpt.set_prompts(model, None)


def test_wrapped_blocks_are_named():
    backbone = several(CASES['timm-vit'], ('deep', 'other'))
    backbone.timm_model.blocks[1] = nn.Sequential(backbone.timm_model.blocks[1])
    with pytest.raises(ConfigError, match='no timm_model.blocks.1.attn any more'):
        mmprovpt.add_prompts(backbone, 'a', dict(KINDS['static'], num_tokens=1))
    mmprovpt.remove_prompts(backbone, 'deep')
    with pytest.raises(ConfigError, match='no timm_model.blocks.1.attn any more'):
        mmprovpt.remove_prompts(backbone, 'other')


@pytest.mark.parametrize('name', ['timm-vit', 'mmpretrain-swin'])
def test_mixed_batch_in_lower_precision(name):
    """As far from float32 as one by one."""
    case, names = CASES[name], MIXTURES['all']
    backbone, x = several(case).eval(), images(CASES[name], batch=7)
    with torch.no_grad():
        exact = answers(backbone, x, names)
        with torch.autocast('cpu', torch.bfloat16):
            mixed, single = answers(backbone, x, names), one_by_one(backbone, x, names)
    for a, b, right in zip(mixed, single, exact, strict=True):
        assert (a.float() - right).abs().mean() < 1.5 * (b.float() - right).abs().mean()


@pytest.mark.parametrize('name', FEW)
def test_pictures_of_a_mixed_batch(name):
    """Attention by explicit weights, for pictures, is the same; what a sample has not gets none."""
    case, names, seen = CASES[name], ('deep', 'other', None), []
    backbone, x = several(case).eval(), images(CASES[name], batch=3)
    with torch.no_grad():
        expected = answers(backbone, x, names)
        with running.watching(lambda attention, weights, values: seen.append(weights.unflatten(0, (3, -1)))):
            close(answers(backbone, x, names), expected)
    assert len(seen) == case.depth
    for block, weights in enumerate(seen[:-1]):
        assert weights[0, ..., -2:].min() > 0 and weights[1:, ..., -2:].max() == 0, block
    assert seen[-1][0, ..., -3:].max() == 0 and seen[-1][1, ..., -5:].min() > 0


def test_sets_come_and_go_while_threads_read():
    case = CASES['timm-vit']
    backbone, x = several(case, ('deep', 'vapt')).eval(), images(case)
    with torch.no_grad():
        expected, wrong, over = answers(backbone, x, ['vapt', None]), [], threading.Event()

    @torch.no_grad()
    def serve():
        while not over.is_set():
            if not same(answers(backbone, x, ['vapt', None]), expected):
                wrong.append('another answer')

    threads = [threading.Thread(target=serve) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(15):
        mmprovpt.add_prompts(backbone, f'new{number}', dict(KINDS['static'], num_tokens=1))
        mmprovpt.set_prompts(backbone, f'new{number}')
    for number in range(15):
        mmprovpt.remove_prompts(backbone, f'new{number}')
    over.set()
    for thread in threads:
        thread.join()
    assert wrong == [] and list(backbone.prompts) == ['deep', 'vapt']


def test_unsupported_backbone_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ConfigError, match='no attention at all'):
        mmprovpt.add_prompts(model, 'a', dict(KINDS['static'], num_tokens=1))
    assert type(model) is nn.Sequential
