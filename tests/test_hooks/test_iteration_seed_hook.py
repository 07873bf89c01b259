"""What a run draws follows from where it stands: resumed, with other workers, with and without relocation."""
import random
import shutil
import signal

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner.loops import _InfiniteDataloaderIterator
from test_hooks.survival_run import VALIDATION
from test_hooks.test_survival import Crash, assert_same, finish, moved, start
from test_hooks.toy_run import ToyModel, make_runner, read_rows
from torch.utils.data import DataLoader, IterableDataset

CASES = {  # options, and the iteration at which the run is killed
    'persistent workers': (dict(hook=dict(), epochs=5, noisy=True, workers=2, persistent=True), 17),
    'infinite sampler': (dict(case='iteration', workers=2), 13),
}
SEEDLESS = dict(hook=dict(), epochs=5, noisy=True, workers=1, randomness=dict(seed=None))
UNIFORM = dict(pruner=dict(type='RandomPruner'), allocator=dict(type='UniformAllocator'))


@pytest.fixture(autouse=True)
def awake(monkeypatch):
    """MMEngine's infinite iterator sleeps two seconds before every pass over the data."""
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda seconds: None)


class Drawn(Hook):
    """Notes every batch, and what could be drawn where its iteration starts."""

    def __init__(self):
        self.batches, self.states = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches.append(data_batch['inputs'])
        self.states.append((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()))


def drawn(folder, **options):
    note = Drawn()
    runner = make_runner(folder, hooks=[note], **options)
    runner.train()
    return note, runner


def log_of(folder):
    return '\n'.join(path.read_text() for path in folder.glob('*/*.log'))


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """Of runs in processes of their own: uninterrupted, resumed."""
    folder = tmp_path_factory.mktemp('runs')
    jobs = {name: [dict(options, folder=str(folder / f'{kind} {name}')) for kind in ('whole', 'part')]
            for name, (options, _) in {**CASES, 'no seed': (SEEDLESS, None)}.items()}
    killed = [start([dict(jobs[name][1], kill=kill)]) for name, (_, kill) in CASES.items()]
    finish(start([whole for whole, _ in jobs.values()]))
    for processes in killed:
        finish(processes, -signal.SIGKILL)
    shutil.copytree(folder / 'whole no seed', folder / 'part no seed')
    jobs['no seed'][1]['load_from'] = str(folder / 'part no seed' / 'epoch_2.pth')
    finish(start([dict(part, resume=True) for _, part in jobs.values()]))
    return {name: [torch.load(folder / f'{kind} {name}' / 'result0.pth', weights_only=True)
                   for kind in ('whole', 'part')] for name in jobs}


@pytest.mark.parametrize('name', [*CASES, 'no seed'])
def test_resumed_equals_uninterrupted(results, name):
    whole, part = results[name]
    assert_same(whole, part)
    assert part[2] == whole[2][-len(part[2]):] and len(part[2]) < len(whole[2])
    assert moved(whole[1]) >= 2


def test_the_best_checkpoint_of_two_processes_within_a_period(tmp_path):
    """It knows what both have measured, and how many iterations there were, as an ordinary one does."""
    finish(start([dict(case=case, folder=str(tmp_path / case)) for case in ('best', 'last')], 2))
    best, last = (torch.load(tmp_path / name, weights_only=False)
                  for name in ('best/best_count_iter_4.pth', 'last/iter_4.pth'))
    assert best['meta']['iter'] == last['meta']['iter'] == 4
    one, other = (each['prompt_relocation']['session'] for each in (best, last))
    assert torch.equal(one['criterion']['sums'], other['criterion']['sums']) and one['criterion']['sums'].any()
    assert torch.equal(one['loss']['sums'], other['loss']['sums']) and one['loss']['sums'].any()
    assert 'only the best checkpoint is written' in log_of(tmp_path / 'best')


def test_the_best_checkpoint_of_two_processes_is_resumed_within_a_period(tmp_path):
    """Bit for bit where an optimizer has no state, which MMEngine leaves out of this file; and that is said."""
    options = dict(case='best', iters=12, optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.02)))
    finish(start([dict(options, folder=str(tmp_path / 'whole'))], 2))
    best = tmp_path / 'whole/best_count_iter_4.pth'
    finish(start([dict(options, folder=str(tmp_path / 'part'), resume=True, load_from=str(best))], 2))
    whole, part = ([torch.load(tmp_path / name / f'result{rank}.pth', weights_only=True) for rank in range(2)]
                   for name in ('whole', 'part'))
    assert_same(whole[0], part[0])
    assert moved(whole[0][1]) >= 2
    for one, other in zip(whole, part):
        assert all(torch.equal(one[0][name], other[0][name]) for name in one[0]) and other[2] == one[2][4:]
    assert 'will not be bit for bit' in log_of(tmp_path / 'part')


@pytest.mark.parametrize('length', [dict(epochs=3), dict(iters=15), dict(iters=15, sampler='DefaultSampler')],
                         ids=['epochs', 'infinite', 'iterations'])
def test_it_does_not_matter_who_loads(tmp_path, length):
    runs = [drawn(tmp_path / str(number), noisy=True, **length, **more)[0].batches for number, more in enumerate((
        dict(), dict(workers=1), dict(workers=3, persistent=True)))]
    for batches in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], batches))
    # 24 images in 6 batches: each pass over them draws anew.
    noises = torch.stack([image for batch in runs[0] for image in batch])
    assert len(noises) == 4 * len(runs[0]) >= 60 and len(noises.unique(dim=0)) == len(noises)
    if 'epochs' in length:
        clean = make_runner(tmp_path / 'clean', epochs=1).train_loop.dataloader.dataset.inputs
        nearest = torch.cdist(noises, clean).argmin(1).view(3, 24)
        residuals = (noises - clean[nearest.flatten()]).view(3, 24, 6)
        first, second = (residuals[epoch][nearest[epoch].argsort()] for epoch in (0, 1))
        assert not torch.isclose(first, second).all(1).any()
        assert not torch.isclose(residuals[0], residuals[1]).all(1).any()


def test_workers_that_started_too_early_start_anew(tmp_path, monkeypatch):
    """MMEngine 0.10.7 starts them when the loop is built."""
    options = dict(iters=8, noisy=True, workers=1, persistent=True)
    expected = drawn(tmp_path / 'late', **options)[0].batches
    build = _InfiniteDataloaderIterator.__init__

    def eager(self, dataloader):
        build(self, dataloader)
        self._ensure_iterator()

    monkeypatch.setattr(_InfiniteDataloaderIterator, '__init__', eager)
    batches = drawn(tmp_path / 'early', **options)[0].batches
    assert all(torch.equal(one, other) for one, other in zip(batches, expected))


@pytest.mark.parametrize('by_epoch', [True, False])
def test_a_pair_of_one_seed_is_a_pair(tmp_path, by_epoch):
    """With the same batches, and the same numbers to be drawn in each iteration."""
    length = dict(epochs=4) if by_epoch else dict(iters=24)
    hook = dict(UNIFORM, interval=1 if by_epoch else 6, by_epoch=by_epoch)
    pair = [drawn(tmp_path / str(number), hook=hook, noisy=True, **length)[0]
            for number, hook in enumerate((None, hook))]
    assert moved(read_rows(tmp_path / '1')) >= 2
    assert all(torch.equal(one, other) for one, other in zip(*(each.batches for each in pair)))
    assert pair[0].states == pair[1].states and len(pair[0].states) == 24


def test_without_the_hook_no_global_generator_is_touched(tmp_path):
    """Relocation, too, leaves them alone, where rows are drawn anew for blocks of another width."""
    runs = []
    for name, hook in (('without', None), ('with', UNIFORM)):
        torch.manual_seed(0)
        model = ToyModel((4, 6, 8), noisy=True)
        runs.append(drawn(tmp_path / name, hook=hook, model=model, noisy=True, seeding=False, val_interval=2,
                          **VALIDATION)[0])
    assert moved(read_rows(tmp_path / 'with')) >= 2
    assert runs[0].states == runs[1].states and runs[0].states[0] != runs[0].states[1]
    assert 'IterationSeedHook' in log_of(tmp_path / 'with')


ITERATIONS = dict(interval=4, by_epoch=False)


@pytest.mark.parametrize('options, message', [
    (dict(epochs=1, checkpoint=ITERATIONS), 'Set default_hooks.checkpoint.by_epoch=True'),
    (dict(epochs=1, optim_wrapper=dict(accumulative_counts=4)), 'each 6 iterations, but 4 are accumulated'),
    (dict(iters=1, checkpoint=ITERATIONS, optim_wrapper=dict(accumulative_counts=3)), 'each 4 iterations, but 3'),
    (dict(epochs=1, optim_wrapper=dict(accumulative_counts=3)), None),
    (dict(epochs=1, checkpoint=dict(interval=2), optim_wrapper=dict(accumulative_counts=4)), None),
    (dict(iters=1, checkpoint=ITERATIONS), None),
])
def test_what_cannot_be_resumed_is_said_at_the_first_start(tmp_path, options, message):
    make_runner(tmp_path, **options).train()
    text = log_of(tmp_path)
    assert ('will not be bit for bit' in text) == (message is not None)
    assert message is None or message in text


class Stream(IterableDataset):
    """Images without numbers."""

    def __iter__(self):
        return iter([])


@pytest.mark.parametrize('dataset, message', [(Stream(), 'Stream gives none'), ([0, 1], 'written in Python')])
def test_data_without_numbers_is_refused(tmp_path, dataset, message):
    runner = make_runner(tmp_path, iters=1)
    runner._train_dataloader = DataLoader(dataset, batch_size=1)
    with pytest.raises(ValueError, match=message):
        runner.train()


def test_a_checkpoint_of_a_run_without_the_hook_warns(tmp_path):
    make_runner(tmp_path, epochs=1, seeding=False).train()
    make_runner(tmp_path, epochs=2, resume=True).train()
    assert 'of a run without IterationSeedHook' in log_of(tmp_path)


def test_other_options_of_relocation_are_named_on_resuming(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make_runner(tmp_path, dict(pruner=dict(type='IdlenessPruner', verify_batches=3)), hooks=[Crash(7)]).train()
    make_runner(tmp_path, dict(interval=2), resume=True).train()
    text = log_of(tmp_path)
    assert 'PromptRelocationHook has interval=1. From here on it is 2' in text and "'verify_batches': 3" in text
    assert 'relocate_per_period=' not in text
