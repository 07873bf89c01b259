"""A MultiTaskModel: each task computes and learns what it does in a model of its own, whatever the others do."""
import copy
import json

import pytest
import torch
from mmengine.runner import Runner
from tasks_toy import SWIN, VIT, batch_of, build, joined, single_configs, write_data

import mmprovpt
from mmprovpt.errors import CheckpointError, ConfigError
from mmprovpt.hooks.find import find_relocating_prompts
from mmprovpt.tasks import join_tasks, single_task

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
TASKS = ('detect', 'segment', 'classify')


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp('tasks') / 'data')


@pytest.fixture(scope='module')
def batches(root):
    return {task: batch_of(joined(str(root)), task) for task in TASKS}


def single(cfg, task, model):
    """A model of its own with one task's weights."""
    alone = build(single_task(cfg, task), seed=1)
    alone.backbone.load_state_dict({key: value for key, value in model.backbone.state_dict().items()
                                    if not key.startswith('prompts.')})
    alone.load_state_dict(model.task_state_dict(task))
    return alone


def losses(model, batch, **task):
    data = model.data_preprocessor(dict(copy.deepcopy(batch), **task), True)
    return model(**data, mode='loss')


def step(model, batch, **task):
    """Loss, and gradients of all that is trained."""
    model.zero_grad()
    loss, _ = model.parse_losses(losses(model, batch, **task))
    loss.backward()
    return loss, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def in_task(name, task):
    """The name in the single-task model of a parameter of the several; None if it is another task's."""
    for start, other in ((f'tasks.{task}.', ''), (f'backbone.prompts.{task}.', 'backbone.prompts.')):
        if name.startswith(start):
            return other + name.removeprefix(start)
    return None


def plain(prediction):
    """All tensors of a prediction."""
    if isinstance(prediction, torch.Tensor):
        return [prediction]
    inner = prediction.values() if hasattr(prediction, 'values') else []
    return [tensor for value in inner for tensor in plain(value)]


def predictions(model, batch, **task):
    with torch.no_grad():
        return [tensor for sample in model.eval().val_step(dict(copy.deepcopy(batch), **task)) for tensor in
                plain(sample)]


both_backbones = pytest.mark.parametrize('backbone', [SWIN, VIT], ids=['swin', 'vit'])


@both_backbones
@pytest.mark.parametrize('task', TASKS)
def test_is_the_single_task_model(task, backbone, batches):
    cfg = joined(backbone=backbone)
    model = build(cfg).train()
    alone = single(cfg, task, model).train()
    loss, grads = step(model, batches[task], task=task)
    expected, theirs = step(alone, batches[task])
    assert torch.equal(loss, expected) and loss > 0
    assert {in_task(name, task) for name in grads} == theirs.keys()
    for name, grad in grads.items():
        assert torch.equal(grad, theirs[in_task(name, task)]), name
    assert any(name.startswith('backbone.prompts.') for name in grads)
    got, expected = predictions(model, batches[task], task=task), predictions(alone, batches[task])
    assert len(got) == len(expected) > 0 and all(map(torch.equal, got, expected))
    # By itself, as those do who know upstream's class alone.
    assert isinstance(model.tasks[task], type(alone))
    assert all(map(torch.equal, predictions(model.tasks[task], batches[task]), expected))


def test_losses_say_of_which_task_they_are(batches):
    model = build(joined()).train()
    assert {name.partition('/')[0] for name in losses(model, batches['detect'], task='detect')} == {'detect'}


def test_the_backbone_is_there_once():
    model = build(joined())
    assert not any('.backbone.' in key for key in model.state_dict())
    assert {key.split('.')[2] for key in model.state_dict() if key.startswith('backbone.prompts.')} == set(TASKS)
    copied = copy.deepcopy(model)
    assert copied.tasks['detect'].backbone.shared is copied.backbone is copied.tasks['classify'].backbone.shared
    assert copied.tasks['detect'].backbone.embed_dims == 8


@pytest.mark.parametrize('task', TASKS)
def test_others_are_frozen_and_stay(task, batches):
    """One after another leaves the others' results bit for bit, the statistics of their norms included."""
    cfg = joined(train=[task])
    model = build(cfg).train()
    others = [other for other in TASKS if other != task]
    before = {other: predictions(model, batches[other], task=other) for other in others}
    own = predictions(model, batches[task], task=task)
    model.train()
    assert {other: model.tasks[other].training for other in TASKS} == {other: other == task for other in TASKS}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        step(model, batches[task], task=task)
        optimizer.step()
    for other in others:
        assert all(map(torch.equal, predictions(model, batches[other], task=other), before[other]))
    assert not all(map(torch.equal, predictions(model, batches[task], task=task), own))


def run(cfg, folder, weights=None, resume=False):
    """Train by a Runner; returns the model, in which everything is."""
    cfg = copy.deepcopy(cfg)
    cfg.update(work_dir=str(folder), experiment_name=str(folder), load_from=weights and str(weights), resume=resume,
               randomness=dict(seed=3))
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner.model, runner.message_hub


HOOKS = dict(seed=dict(type='mmprovpt.IterationSeedHook'),
             checkpoint=dict(type='mmprovpt.PromptCheckpointHook', interval=1),
             classes=dict(type='mmprovpt.ClassCheckHook', heads_only=True))


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Of all tasks, and what the backbone begins with."""
    folder = tmp_path_factory.mktemp('weights')
    state = build(joined()).state_dict()
    torch.save(state, folder / 'all.pth')
    torch.save({key: value for key, value in state.items() if '.prompts.' not in key and 'tasks.' not in key},
               folder / 'frozen.pth')
    return folder


def config(root, weights, **more):
    cfg = joined(str(root), default_hooks=HOOKS, **more)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(weights / 'frozen.pth'), prefix='backbone.')
    return cfg


@pytest.fixture(scope='module')
def together(root, weights, tmp_path_factory):
    """Two epochs of all tasks, with a checkpoint after each."""
    cfg = config(root, weights)
    cfg.train_cfg.max_epochs = 2
    folder = tmp_path_factory.mktemp('together')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **kwargs: (text, True))
        model, hub = run(cfg, folder, weights / 'all.pth')
    return cfg, folder, model.state_dict(), {key: hub.get_scalar(f'val/{key}').current() for key in (
        'detect/coco/bbox_mAP', 'segment/mIoU', 'classify/accuracy/top1')}


@pytest.mark.usefixtures('unformatted')
@pytest.mark.parametrize('task', TASKS)
def test_together_each_learns_what_it_learns_alone(task, together, root, weights, tmp_path):
    cfg, _, state, metrics = together
    alone = single_task(cfg, task)
    whole = torch.load(weights / 'all.pth')
    start = {in_task(key, task) or key: value for key, value in whole.items()
             if in_task(key, task) or key.startswith('backbone.') and not key.startswith('backbone.prompts.')}
    torch.save(start, tmp_path / 'start.pth')
    model, hub = run(alone, tmp_path, tmp_path / 'start.pth')
    learned = {in_task(key, task): value for key, value in state.items() if in_task(key, task)}
    for key, value in learned.items():
        assert torch.equal(value, model.state_dict()[key]), key
    assert not torch.equal(learned['backbone.prompts.tokens'], start['backbone.prompts.tokens'])
    key = next(key for key in metrics if key.startswith(task))
    assert hub.get_scalar('val/' + key.removeprefix(f'{task}/')).current() == metrics[key]


@pytest.mark.usefixtures('unformatted')
def test_small_checkpoints_resume(together, root, tmp_path):
    cfg, folder, state, _ = together
    saved = torch.load(folder / 'epoch_1.pth', weights_only=False)['state_dict']
    assert {f'backbone.prompts.{task}.tokens' for task in TASKS} <= saved.keys()
    assert not any(key.startswith('backbone.stages') for key in saved) and 'backbone.prompts.frozen_sha256' in saved
    model, _ = run(cfg, tmp_path, folder / 'epoch_1.pth', resume=True)
    for key, value in state.items():
        assert torch.equal(value, model.state_dict()[key]), key


@pytest.mark.usefixtures('unformatted')
def test_one_after_another_with_relocation(root, weights, tmp_path):
    """The second run, of one task, goes on from the checkpoint of the first, and moves this task's prompts alone.

    It alone is validated: the first run begins with prompts of the others that nobody has trained.
    """
    start = weights / 'all.pth'
    for task in ('detect', 'classify'):
        cfg = config(root, weights, custom_hooks=[dict(type='mmprovpt.PromptRelocationHook', interval=1)])
        cfg.model.train, cfg.train_cfg.max_epochs = [task], 2
        before = torch.load(start, weights_only=False)
        before = before.get('state_dict', before)
        model, hub = run(cfg, tmp_path / task, start)
        state = model.state_dict()
        validated = {key.split('/')[1] for key in hub.log_scalars if key.startswith('val/')}
        assert validated - {'time', 'data_time'} == {task}
        for key, value in before.items():
            if in_task(key, task) is None and 'frozen_' not in key and not key.endswith('.form'):
                assert torch.equal(value, state[key]), key
        log, = (tmp_path / task).glob('*/relocations.jsonl')
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        assert [sum(row['distribution']) for row in rows] == [dict(detect=4, classify=3)[task]] * 2
        start = tmp_path / task / 'epoch_2.pth'


@pytest.mark.usefixtures('unformatted')
def test_the_tools_test_each_task(together, root, tmp_path, call, capfd):
    cfg, folder, _, metrics = together
    cfg.dump(tmp_path / 'several.py')
    single_task(cfg, 'segment').dump(tmp_path / 'one.py')
    model = build(cfg)
    model.init_weights()
    model.load_state_dict(torch.load(folder / 'epoch_2.pth', weights_only=False)['state_dict'])
    torch.save(model.task_state_dict('segment'), tmp_path / 'segment.pth')
    said = {}
    for config_file, checkpoint, *more in (
            ('several.py', folder / 'epoch_2.pth', '--cfg-options', 'test_cfg.tasks=[segment,classify]', '--out',
             tmp_path / 'out.pkl'),
            ('one.py', tmp_path / 'segment.pth')):
        call('test', tmp_path / config_file, checkpoint, '--work-dir', tmp_path / 'test', *more)
        said[config_file] = ''.join(capfd.readouterr())
    value = f'{metrics["segment/mIoU"]:.4f}'
    assert f'segment/mIoU: {value}' in said['several.py'] and 'classify/accuracy/top1: ' in said['several.py']
    assert 'detect/coco' not in said['several.py']
    assert f'  mIoU: {value}' in said['one.py']
    assert {path.name for path in tmp_path.glob('out*')} == {'out.segment.pkl', 'out.classify.pkl'}


def test_a_task_is_loaded_from_its_own_checkpoint(batches):
    cfg = joined()
    model, other = build(cfg), build(cfg, seed=5)
    other.backbone.load_state_dict({**other.backbone.state_dict(), **{
        key: value for key, value in model.backbone.state_dict().items() if not key.startswith('prompts.')}})
    before = {task: predictions(other, batches[task], task=task) for task in TASKS}
    for state in (model.task_state_dict('segment'), single(cfg, 'segment', model).state_dict()):
        other.load_task('segment', state)
        for task in TASKS:
            expected = predictions(model, batches[task], task=task) if task == 'segment' else before[task]
            assert all(map(torch.equal, predictions(other, batches[task], task=task), expected))
    state = model.task_state_dict('segment')
    with pytest.raises(CheckpointError, match='of another model than task classify, which would lack or lose: '):
        other.load_task('classify', state)
    with pytest.raises(ConfigError, match="there is no task 'count'; there are detect, segment, classify"):
        other.load_task('count', state)
    other.backbone.patch_embed.projection.bias.data.add_(1)
    with pytest.raises(CheckpointError, match='on other frozen weights'):
        other.load_task('segment', state)


@pytest.mark.parametrize('change, message', [
    (dict(train=[]), r'train=\[\], but the tasks are detect, segment, classify: name one or more of them'),
    (dict(train=['count']), r"train=\['count'\], but the tasks are "),
    (dict(tasks=dict(a=dict(type='X', backbone=dict(type='Y', prompts={})))), 'a task has of it only'),
    (dict(tasks=dict(lossy=dict(backbone=dict(prompts={})))), 'MMEngine sums whatever has "loss" in its name'),
])
def test_what_is_refused(change, message):
    cfg = joined()
    with pytest.raises(ConfigError, match=message):
        mmprovpt.MultiTaskModel(**{**dict(backbone=cfg.model.backbone, tasks=cfg.model.tasks), **change})


@both_backbones
def test_batches_of_several_tasks_at_once(backbone, batches):
    """Of one size, so that one forward of the backbone serves all."""
    model = build(joined(backbone=backbone)).eval()
    calls = []
    model.backbone.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    given = [dict(copy.deepcopy(batches[task]), task=task) for task in ('detect', 'classify', 'segment', 'classify')]
    results = model.predict_mixed(copy.deepcopy(given))
    assert calls == [8] and [len(each) for each in results] == [2] * 4
    for batch, result in zip(given, results):
        expected, got = predictions(model, batch), [tensor for sample in result for tensor in plain(sample)]
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_batch_without_its_task(batches):
    model = build(joined())
    with pytest.raises(ConfigError, match='a batch of task=None, but the tasks are detect, segment, classify'):
        model.val_step(batches['detect'])


def test_whose_prompts_relocate():
    with pytest.raises(ConfigError, match='those that are trained are detect, segment, classify: train one task after'):
        find_relocating_prompts(build(joined()))
    model = build(joined(train='classify'))
    assert find_relocating_prompts(model) is model.backbone.prompts['classify']


def test_configs_there_and_back():
    configs = single_configs()
    cfg = joined()
    for task, given in configs.items():
        back = single_task(cfg, task)
        for key, value in given.items():
            assert back[key] == value, key
    configs['detect']['model']['backbone'] = dict(type='ResNet')
    with pytest.raises(ConfigError, match='detect: model.backbone is ResNet, but must be of mmprovpt'):
        join_tasks(configs)
    with pytest.raises(ConfigError, match="there is no task 'count'"):
        single_task(cfg, 'count')
