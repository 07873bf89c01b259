"""The guard in mixed precision, and where it takes over from MMEngine's wrappers."""
from functools import partial

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper
from test_hooks.bad_steps import NAN, BadGradient, assert_equal_runs
from test_hooks.toy_run import OVERFLOW, make_runner, read_rows
from tiny_task import write_task

import mmprovpt.cli.runner  # noqa: F401  before anything is replaced
from mmprovpt.errors import DivergedError

FINITE, AMP = 'mmprovpt.FiniteAmpOptimWrapper', 'AmpOptimWrapper'
MODULE = 'mmengine.optim.optimizer.amp_optimizer_wrapper'


@pytest.fixture(autouse=True)
def bf16_on_cpu(monkeypatch):
    """MMEngine refuses mixed precision without a GPU. Let do so, it takes bfloat16, and its scaler does nothing."""
    monkeypatch.setattr(f'{MODULE}.is_cuda_available', lambda: True)


@pytest.fixture
def scaling(monkeypatch):
    """A loss scaler that works."""
    monkeypatch.setattr(f'{MODULE}.GradScaler', partial(torch.amp.GradScaler, device='cpu'))


def trained(folder, wrapper, poison=None, epochs=4, resume=False, **options):
    runner = make_runner(folder, dict(), poison=poison, epochs=epochs, resume=resume,
                         optim_wrapper=dict(type=wrapper, **options))
    runner.train()
    return runner


def finite(runner):
    return all(value.isfinite().all() for value in runner.model.state_dict().values())


def log_of(folder):
    log, = folder.glob('*/*.log')
    return log.read_text()


@pytest.mark.parametrize('value', [NAN, float('inf')])
def test_a_loss_that_is_not_finite_in_a_relocating_run(value, tmp_path):
    """One bad image, met once in each epoch. MMEngine's wrapper ruins all weights."""
    runner = trained(tmp_path / 'ours', FINITE, value)
    assert isinstance(runner.optim_wrapper, AmpOptimWrapper) and finite(runner) and runner.optim_wrapper.skipped == 4
    assert log_of(tmp_path / 'ours').count('is left out: its loss or gradient is not finite (1 in a row') == 4
    assert len(read_rows(tmp_path / 'ours')) == 4
    with torch.no_grad():
        assert runner.model(runner.train_dataloader.dataset.inputs[:4]).isfinite().all()
    assert not finite(trained(tmp_path / 'theirs', AMP, value))


def test_a_sound_run_is_bit_for_bit_mmengines(tmp_path):
    one, other = (trained(tmp_path / name, name) for name in (FINITE, AMP))
    assert_equal_runs(one, other)
    assert read_rows(tmp_path / FINITE) == read_rows(tmp_path / AMP)
    assert any(row['prompt'] is not None for row in read_rows(tmp_path / AMP))
    plain, guarded = (trained(tmp_path / name, name) for name in ('OptimWrapper', 'mmprovpt.FiniteOptimWrapper'))
    assert_equal_runs(plain, guarded)
    assert not torch.equal(plain.model.head.weight, one.model.head.weight), 'bfloat16 was meant'


@pytest.mark.parametrize('options', [dict(), dict(clip_grad=dict(max_norm=1.)), dict(loss_scale=2.**30)],
                         ids=['dynamic', 'clipped', 'fixed'])
def test_a_scale_that_is_too_large(options, scaling, tmp_path):
    """Gradients overflow by it, which the scaler knows best: same steps, same scale."""
    options = {'loss_scale': dict(init_scale=2.**30, growth_interval=3), **options}
    one, other = (trained(tmp_path / name, name, OVERFLOW, **options) for name in (FINITE, AMP))
    assert_equal_runs(one, other)
    scales = [runner.optim_wrapper.loss_scaler.state_dict() for runner in (one, other)]
    assert scales[0] == scales[1] and finite(one) and one.optim_wrapper.skipped > 0


@pytest.mark.parametrize('scale, last', [(dict(init_scale=2.**4), 5), (512., 2), (dict(init_scale=1.), 2)])
def test_stops_once_the_scale_is_not_the_reason(scale, last, scaling, tmp_path):
    """Not while halving it may help; MMEngine's wrapper would go on for ever."""
    class Bad(BadGradient):
        bad = range(1, 99)

    runner = make_runner(tmp_path, model=Bad(), optim_wrapper=dict(type=FINITE, loss_scale=scale, max_skipped=2))
    before = runner.model.head.weight.clone()
    with pytest.raises(DivergedError, match=f'{last} steps in a row was not finite, .* that of iteration {last}[.]'):
        runner.train()
    assert torch.equal(runner.model.head.weight, before)


@pytest.mark.parametrize('old, new', [('OptimWrapper', 'mmprovpt.FiniteOptimWrapper'), (AMP, FINITE)])
def test_checkpoints_without_the_guard_are_resumed(old, new, scaling, tmp_path):
    options = dict(loss_scale=dict(init_scale=2.**10, growth_interval=3)) if old == AMP else {}
    whole = trained(tmp_path / 'whole', old, **options)
    trained(tmp_path / 'part', old, epochs=2, **options)
    part = trained(tmp_path / 'part', new, resume=True, **options)
    assert_equal_runs(whole, part)
    assert read_rows(tmp_path / 'whole') == read_rows(tmp_path / 'part') and part.iter == 24
    if old == AMP:
        assert part.optim_wrapper.loss_scaler.get_scale() == whole.optim_wrapper.loss_scaler.get_scale() > 2**10


@pytest.fixture
def amp(call, tmp_path, monkeypatch):
    """tools/train.py --amp on a task of a second, for which there seems to be a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('mmengine.device.get_device', lambda: 'cuda')  # the tool's own; the rest has it already

    def run(more, *options):
        write_task(tmp_path, more)
        call('train', 'task.py', '--amp', '--cfg-options', f'experiment_name={tmp_path.name}', *options)
        return Config.fromfile('work_dirs/task/task.py').optim_wrapper

    return run


@pytest.mark.parametrize('given, expected', [
    (None, AMP), ('OptimWrapper', AMP), (AMP, AMP), ('mmprovpt.FiniteOptimWrapper', FINITE), (FINITE, FINITE)])
def test_amp_keeps_the_guard(given, expected, amp):
    more = '' if given is None else f"optim_wrapper['type'] = {given!r}\n"
    assert (wrapper := amp(more + 'train_cfg = dict(by_epoch=True, max_epochs=1)\n')).type == expected
    assert wrapper.loss_scale == 'dynamic' and wrapper.optimizer == dict(type='SGD', lr=0.1)


def test_amp_of_a_type_of_the_users(amp):
    with pytest.raises(SystemExit, match='^error: --amp would replace optim_wrapper.type=MyWrapper'):
        amp("optim_wrapper['type'] = 'MyWrapper'\n")


def test_amp_ends_where_no_loss_is_finite(amp, tmp_path):
    """With a line that says so, and with no checkpoint that is ruined."""
    more = "optim_wrapper.update(type='mmprovpt.FiniteOptimWrapper', max_skipped=3)\n" \
        "model['data_preprocessor'].update(mean=[0., 0., 0.], std=[float('nan')] * 3)\n"
    with pytest.raises(SystemExit, match='^error: the loss or gradient of 3 steps in a row was not finite'):
        amp(more)
    assert 'skipped_steps: 2  loss: nan' in log_of(tmp_path / 'work_dirs/task')
    weights = torch.load(tmp_path / 'work_dirs/task/epoch_1.pth', weights_only=False)['state_dict']
    assert all(value.isfinite().all() for value in weights.values())
