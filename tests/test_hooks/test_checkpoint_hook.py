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
from mmengine.registry import METRICS
from test_hooks import tuned_run
from test_hooks.survival_run import train
from test_hooks.test_survival import VALIDATION, Crash, assert_same, moved
from test_hooks.toy_run import ToyModel, make_runner
from test_hooks.tuned_run import SMALL, TunedModel

from mmprovpt.files import write_atomically

KEY = 'backbone.prompts.frozen_sha256'
TUNED = {KEY, 'backbone.prompts.tokens', 'backbone.prompts.block_index', 'neck.weight', 'neck.bias',
         'neck.running_mean', 'neck.running_var', 'neck.num_batches_tracked', 'head.weight', 'head.bias'}


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
