"""Small checkpoints in real runs: what is in them, what becomes of a run that is killed, what is refused."""
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import METRICS
from test_hooks import tuned_run
from test_hooks.survival_run import train
from test_hooks.test_survival import VALIDATION, Crash, assert_same, moved
from test_hooks.toy_run import ToyModel, make_runner
from test_hooks.tuned_run import SMALL, TunedModel

from mmprovpt.errors import DivergedError
from mmprovpt.files import write_atomically

KEY = 'backbone.prompts.frozen_sha256'
TUNED = {KEY, 'backbone.prompts.tokens', 'backbone.prompts.block_index', 'backbone.prompts.form',
         'neck.weight', 'neck.bias', 'neck.running_mean',
         'neck.running_var', 'neck.num_batches_tracked', 'head.weight', 'head.bias'}


def load(path):
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
    return torch.load(path, weights_only=False)


def tuned(folder, seed=0, hook=dict(), prompts=dict(), **options):  # noqa: B006
    """Train with small checkpoints; None for ``hook``: nothing relocates."""
    model = TunedModel(seed, dropout=0. if hook is None else 0.1, **prompts)
    options = {**dict(checkpoint=SMALL, epochs=4, model=model), **options}
    if hook is not None:
        return train(folder, hook=hook, **options)
    runner = make_runner(folder, **options)
    runner.train()
    return runner.model.state_dict(), []


@pytest.mark.parametrize('hook, prompts, more', [
    (dict(), dict(), ()),
    (None, dict(), ()),
    (dict(), dict(kind='AdaptivePrompts', grid_size=2), ('kernels', 'norms', 'down', 'up')),
    (None, dict(kind='ShallowPrompts'), ()),
], ids=['PRO-VPT', 'VPT-Deep', 'PRO-VAPT', 'VPT-Shallow'])
def test_interrupted_and_resumed_equals_uninterrupted_with_full_checkpoints(tmp_path, hook, prompts, more):
    options = dict(hook=hook, prompts=prompts)
    whole = tuned(tmp_path / 'whole', checkpoint=dict(type='CheckpointHook', interval=1), **options)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / 'part', hooks=[Crash(14)], **options)
    part = tuned(tmp_path / 'part', seed=1, resume=True, **options)
    assert_same(whole, part)
    full, small = (load(tmp_path / name / 'epoch_4.pth') for name in ('whole', 'part'))
    keys = TUNED | {f'backbone.prompts.{name}' for name in more}
    assert small['state_dict'].keys() == keys
    assert all(torch.equal(small['state_dict'][key], full['state_dict'][key]) for key in keys - {KEY})
    assert len(full['state_dict']) > 40 and KEY not in full['state_dict']
    assert small.keys() == full.keys() >= {'optimizer', 'message_hub', 'meta'}
    assert set(small['optimizer']['state']) == set(full['optimizer']['state'])
    if hook is not None:
        assert moved(part[1]) and 'prompt_relocation' in small


def test_averaged_weights(tmp_path):
    options = dict(hooks=[dict(type='EMAHook', momentum=0.1)])
    tuned(tmp_path / 'whole', checkpoint=dict(type='CheckpointHook', interval=1), **options)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / 'part', hooks=[*options['hooks'], Crash(14)])
    tuned(tmp_path / 'part', seed=1, resume=True, **options)
    full, small = (load(tmp_path / name / 'epoch_4.pth') for name in ('whole', 'part'))
    assert small['state_dict'].keys() == TUNED
    assert small['ema_state_dict'].keys() == {'steps'} | {f'module.{key}' for key in TUNED}
    for name in ('state_dict', 'ema_state_dict'):
        for key in small[name]:
            assert key.endswith(KEY) or torch.equal(small[name][key], full[name][key]), key
    tokens = 'backbone.prompts.tokens'
    assert not torch.equal(small['state_dict'][tokens], small['ema_state_dict'][f'module.{tokens}'])


def test_average_shares_the_frozen_weights(tmp_path):
    runner = make_runner(tmp_path, model=TunedModel(), checkpoint=SMALL, epochs=2, hooks=[dict(type='EMAHook')])
    runner.train()
    average = next(hook.ema_model.module for hook in runner.hooks if hasattr(hook, 'ema_model'))
    frozen = runner.model.backbone.frozen_tensors()
    for name, value in average.backbone.state_dict().items():
        assert (name in frozen and value.data_ptr() == frozen[name].data_ptr()) == (not name.startswith('prompts.'))
    assert not torch.equal(average.head.weight, runner.model.head.weight)


@pytest.mark.parametrize('resume', [True, False])
def test_another_backbone_is_refused(tmp_path, resume):
    tuned(tmp_path, epochs=1)
    runner = make_runner(tmp_path, dict(), model=TunedModel(), checkpoint=SMALL, randomness=dict(seed=4), resume=resume,
                         load_from=str(tmp_path / 'epoch_1.pth'))
    with pytest.raises(RuntimeError, match='sha256 in the checkpoint: [0-9a-f]{64}\n.*sha256 here: +[0-9a-f]{64} '):
        runner.train()


def test_load_from_takes_what_was_tuned(tmp_path):
    tuned(tmp_path / 'first', epochs=1)
    first = load(tmp_path / 'first/epoch_1.pth')['state_dict']
    runner = make_runner(
        tmp_path / 'second', model=TunedModel(seed=1), epochs=1, load_from=str(tmp_path / 'first/epoch_1.pth'),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.)))
    runner.train()
    second = load(tmp_path / 'second/epoch_1.pth')['state_dict']
    assert all(torch.equal(second[key], first[key]) for key in TUNED if key != KEY and 'neck' not in key)
    assert len(second) > 40


def test_full_checkpoints_by_option(tmp_path):
    tuned(tmp_path, epochs=1, checkpoint=dict(SMALL, save_only_tuned=False))
    state = load(tmp_path / 'epoch_1.pth')['state_dict']
    assert state.keys() == TunedModel().state_dict().keys()


def test_nothing_frozen_is_said_before_training(tmp_path):
    with pytest.raises(ValueError, match='ToyModel has no backbone with prompts.*save_only_tuned=False'):
        make_runner(tmp_path, model=ToyModel(), checkpoint=SMALL).train()


def test_killed_while_writing(tmp_path):
    """Fifth write: the third epoch's checkpoint, of which there is half. One is kept, and it must be the second."""
    environment = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    environment['PYTHONPATH'] = f'{Path(__file__).parents[2]}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
    job = json.dumps(dict(folder=str(tmp_path / 'part'), at=5))
    process = subprocess.Popen([sys.executable, tuned_run.__file__, job], env=environment, stdout=subprocess.DEVNULL)
    options = dict(checkpoint=dict(SMALL, max_keep_ckpts=1))
    whole = tuned(tmp_path / 'whole', **options)
    assert process.wait(timeout=120) == -signal.SIGKILL
    last = Path((tmp_path / 'part/last_checkpoint').read_text())
    assert last.name == 'epoch_2.pth' and load(last)['meta']['epoch'] == 2
    half, = last.parent.glob('epoch_3.pth.*.tmp')
    assert not zipfile.is_zipfile(half) and [path.name for path in last.parent.glob('epoch*.pth')] == ['epoch_2.pth']
    assert_same(whole, tuned(tmp_path / 'part', seed=1, resume=True, **options))
    assert [path.name for path in last.parent.glob('epoch*.pth')] == ['epoch_4.pth']


def test_stopped_before_the_last_checkpoint_is_noted(tmp_path, monkeypatch):
    """Sixth write: the third epoch's checkpoint is there, but nothing says so yet."""
    calls, fsync = [], os.fsync

    def interrupted(number):
        calls.extend([number] * tuned_run.is_of_checkpoint(number))
        if tuned_run.is_of_checkpoint(number) and len(calls) == 6:
            raise KeyboardInterrupt
        fsync(number)

    monkeypatch.setattr(os, 'fsync', interrupted)
    options = dict(checkpoint=dict(SMALL, max_keep_ckpts=1))
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / 'part', **options)
    assert (tmp_path / 'part/last_checkpoint').read_text().endswith('epoch_2.pth')
    assert sorted(path.name for path in (tmp_path / 'part').glob('*.pth*')) == ['epoch_2.pth', 'epoch_3.pth']
    part = tuned(tmp_path / 'part', seed=1, resume=True, **options)
    assert_same(tuned(tmp_path / 'whole'), part)
    assert [path.name for path in (tmp_path / 'part').glob('epoch*')] == ['epoch_4.pth']


@pytest.mark.parametrize('keep,by_epoch', [(-1, True), (2, True), (2, False)])
def test_keeps_as_many_as_upstream(tmp_path, keep, by_epoch):
    left, noted = [], []
    for kind in ('CheckpointHook', 'mmprovpt.PromptCheckpointHook'):
        folder = tmp_path / 'out' / kind
        length = dict(epochs=4) if by_epoch else dict(iters=5)
        runner = make_runner(tmp_path / kind, model=TunedModel(), checkpoint=dict(
            type=kind, interval=1, by_epoch=by_epoch, max_keep_ckpts=keep, out_dir=str(tmp_path / 'out')), **length)
        runner.train()
        left.append(sorted(path.name for path in folder.iterdir()))
        noted.append((Path((tmp_path / kind / 'last_checkpoint').read_text()).name,
                      runner.message_hub.get_info('keep_ckpt_ids') if keep > 0 else None))
    assert left[0] == left[1] and len(left[0]) == (4 if keep < 0 else keep)
    assert noted[0] == noted[1]


@pytest.mark.parametrize('template', ['latest.pth', 'step_{}.pth'])
@pytest.mark.parametrize('keep, best', [(1, True), (2, True), (1, False), (2, False), (-1, False)])
def test_names_with_and_without_a_number(tmp_path, template, keep, best):
    """As upstream's; the best one, too, whose name without a number is always the same."""
    left = []
    for kind in ('CheckpointHook', 'mmprovpt.PromptCheckpointHook'):
        hook = dict(BEST_HOOK if best else SMALL, type=kind, filename_tmpl=template, max_keep_ckpts=keep)
        tuned(tmp_path / kind, epochs=4, checkpoint=hook, hook=None, **BEST if best else {})
        last = Path((tmp_path / kind / 'last_checkpoint').read_text())
        left.append([last.name, *sorted(path.name for path in (tmp_path / kind).glob('*.pth*'))])
        assert load(last)['meta']['epoch'] == 4
    assert left[0] == left[1]
    assert left[1][:2] == [template.format(4), f'best_falling_{template.format(4)}' if best else left[1][1]]


def test_name_without_a_number_is_resumed_with_fewer_to_keep(tmp_path):
    """Of the steps that are no longer kept, nothing must be removed: it is the only file."""
    hook = dict(SMALL, filename_tmpl='latest.pth')
    whole = tuned(tmp_path / 'whole')
    tuned(tmp_path / 'part', epochs=3, checkpoint=dict(hook, max_keep_ckpts=3))
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / 'part', seed=1, resume=True, checkpoint=dict(hook, max_keep_ckpts=1), hooks=[Crash(19)])
    assert_same(whole, tuned(tmp_path / 'part', seed=1, resume=True, checkpoint=dict(hook, max_keep_ckpts=1)))
    assert load(tmp_path / 'part/latest.pth')['meta']['epoch'] == 4


class MinusZeros(TunedModel):
    """Frozen weights as they are published: some numbers are -0.0."""

    def init_weights(self):
        super().init_weights()
        with torch.no_grad():
            self.backbone.blocks[1].mlp.fc1.bias.fill_(-0.)


@pytest.mark.parametrize('average', ['ExponentialMovingAverage', 'StochasticWeightAverage'])
def test_averages_leave_the_sign_of_zero(tmp_path, average):
    """Fingerprints are over bits."""
    options = dict(hook=dict(), checkpoint=SMALL, epochs=3)
    average = [dict(type='EMAHook', ema_type=average)]
    whole = train(tmp_path / 'whole', model=MinusZeros(), hooks=average, **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / 'part', model=MinusZeros(), hooks=[*average, Crash(14)], **options)
    part = train(tmp_path / 'part', model=MinusZeros(seed=1), hooks=average, resume=True, **options)
    assert_same(whole, part)
    bias = part[0]['backbone.blocks.1.mlp.fc1.bias']
    assert bias.eq(0).all() and bias.signbit().all()
    kept = [load(tmp_path / name / 'epoch_3.pth')['ema_state_dict'] for name in ('whole', 'part')]
    assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0])
    tokens = 'module.backbone.prompts.tokens'
    assert not torch.equal(kept[0][tokens], load(tmp_path / 'part/epoch_3.pth')['state_dict'][tokens[7:]])


class Spoil(Hook):
    """Makes something NaN after the last step of the third epoch."""

    def __init__(self, what):
        self.what = what

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter != 17:
            return
        model, state = runner.model, runner.optim_wrapper.optimizer.state
        found = dict(weight=model.head.weight.data, statistics=model.neck.running_mean,
                     momentum=state[model.head.weight]['momentum_buffer'],
                     average=next(hook for hook in runner.hooks if hasattr(hook, 'ema_model')).ema_model.module
                     .head.weight.data)
        found[self.what].view(-1)[1] = float('nan')


@pytest.mark.parametrize('what, named', [
    ('weight', 'head.weight'), ('statistics', 'neck.running_mean'), ('average', 'average: module.head.weight'),
    ('momentum', 'optimizer: momentum_buffer of parameter ')])
def test_finite_checkpoint_is_not_replaced_by_one_that_is_not(tmp_path, what, named):
    """Neither the last, nor the best one, nor what last_checkpoint names."""
    hooks = [dict(type='EMAHook', momentum=0.1, priority='HIGH'), Spoil(what)]
    with pytest.raises(DivergedError, match=f'not finite in iteration .*epoch_2.pth is the last: .*{named}'):
        tuned(tmp_path, epochs=4, hook=None, checkpoint=BEST_HOOK, hooks=hooks, **BEST)
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == ['best_falling_epoch_2.pth', 'epoch_2.pth']
    assert (tmp_path / 'last_checkpoint').read_text().endswith('epoch_2.pth')
    for name in ('best_falling_epoch_2.pth', 'epoch_2.pth'):
        assert all(value.isfinite().all() for value in load(tmp_path / name)['state_dict'].values())


@METRICS.register_module(force=True)
class Falling(BaseMetric):
    """Better each time."""
    value = 0

    def process(self, data_batch, data_samples):
        self.results += list(data_samples)

    def compute_metrics(self, results):
        Falling.value -= 1
        return dict(falling=Falling.value)


BEST = dict(VALIDATION, val_evaluator=dict(type='Falling'), val_interval=1)
BEST_HOOK = dict(SMALL, save_best='falling', rule='less', max_keep_ckpts=1)


def test_best_checkpoint_is_small_and_replaces_the_former(tmp_path):
    tuned(tmp_path, epochs=3, checkpoint=BEST_HOOK, **BEST)
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == ['best_falling_epoch_3.pth', 'epoch_3.pth']
    best = load(tmp_path / 'best_falling_epoch_3.pth')
    assert best['state_dict'].keys() == TUNED and 'optimizer' not in best
    noted = load(tmp_path / 'epoch_3.pth')['message_hub']['runtime_info']['best_ckpt']
    assert noted == str(tmp_path / 'best_falling_epoch_3.pth')


def test_former_best_outlives_a_failed_saving(tmp_path, monkeypatch):
    import mmprovpt.hooks.checkpoint_hook as module

    def full_disk(content, path):
        if 'best_falling_epoch_2' in str(path):
            raise OSError('No space left on device')
        write_atomically(content, path)

    monkeypatch.setattr(module, 'write_atomically', full_disk)
    with pytest.raises(OSError, match='No space'):
        tuned(tmp_path, epochs=3, checkpoint=BEST_HOOK, **BEST)
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == ['best_falling_epoch_1.pth', 'epoch_2.pth']


def test_writing_that_fails_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'x'
    write_atomically(b'former', path)
    monkeypatch.setattr('mmprovpt.files.os.replace', lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_atomically(b'latter', path)
    assert path.read_bytes() == b'former' and len(list(path.parent.iterdir())) == 1
