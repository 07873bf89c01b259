"""Steps whose loss or gradient is not finite: left out as if they were none, on all ranks alike, and not for ever."""
import json
import re

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from test_hooks.bad_steps import NAN, BadGradient, assert_equal_runs
from test_hooks.test_survival import finish, start
from test_hooks.toy_run import make_runner
from torch import nn

from mmprovpt.errors import ConfigError, DivergedError
from mmprovpt.hooks import FiniteOptimWrapper
from mmprovpt.hooks.finite import fused_twin

FINITE = 'mmprovpt.FiniteOptimWrapper'


@OPTIM_WRAPPERS.register_module(force=True)
class Reference(OptimWrapper):
    """Looks at each loss before anything else is done, and is told which gradients are bad."""
    bad = ()

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if torch.cuda.is_available():  # where the other one has it, too
            self.optimizer = fused_twin(self.optimizer)

    def update_params(self, loss, step_kwargs=None, zero_kwargs=None):
        self.count = getattr(self, 'count', 0) + 1
        if loss.isfinite() and self.count not in self.bad:
            super().update_params(loss)
        else:
            self._inner_count += 1


def trained(folder, wrapper, optimizer, model=None, **options):
    runner = make_runner(folder, model=model, optim_wrapper=dict(type=wrapper, optimizer=optimizer), **options)
    runner.train()
    return runner


@pytest.mark.parametrize('optimizer', [
    dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.1), dict(type='AdamW', lr=0.02, weight_decay=0.1),
    dict(type='AdamW', lr=0.02, weight_decay=0.1, fused=True)], ids=['SGD', 'AdamW', 'fused'])
def test_as_if_the_step_had_not_been(tmp_path, optimizer):
    """Neither momentum nor weight decay nor the count of steps go on; without anything amiss it changes no bit."""
    for name, poison, model, skipped in [('loss', NAN, None, 4), ('inf', float('inf'), None, 4),
                                         ('gradient', None, BadGradient, 3), ('sound', None, None, 0)]:
        Reference.bad = BadGradient.bad if model else ()
        runs = [trained(tmp_path / name / kind, kind, optimizer, model=model and model(), poison=poison)
                for kind in (FINITE, 'Reference')]
        assert_equal_runs(*runs)
        assert all(value.isfinite().all() for value in runs[0].model.state_dict().values())
        assert runs[0].optim_wrapper.skipped == skipped
        log, = (tmp_path / name / FINITE).glob('*/*.log')
        found = re.findall(r'WARNING - The step of iteration (\d+) is left out: .*, (\d) in all', log.read_text())
        assert [int(number) for _, number in found] == list(range(1, skipped + 1))
        if model:
            assert [int(iteration) for iteration, _ in found] == list(model.bad)
        scalars = runs[0].message_hub.log_scalars
        assert ('train/skipped_steps' in scalars) == bool(skipped)
        assert not skipped or scalars['train/skipped_steps'].current() == skipped


def test_accumulated_steps_are_left_out_whole():
    model = nn.Linear(1, 1, bias=False)
    wrapper = FiniteOptimWrapper(torch.optim.SGD(model.parameters(), lr=1.), accumulative_counts=2)
    before = model.weight.item()
    for factor in (1., NAN, 1., 1.):  # the first two are one step
        wrapper.update_params(model.weight.sum() * 1. + factor - factor)
    assert model.weight.item() == pytest.approx(before - 1) and wrapper.skipped == 1


def test_clipping_does_not_hide_it():
    """clip_grad by value would make an infinite gradient a finite one."""
    model = nn.Linear(1, 1, bias=False)
    wrapper = FiniteOptimWrapper(
        torch.optim.SGD(model.parameters(), lr=1.), clip_grad=dict(type='value', clip_value=1.))
    before = model.weight.item()
    wrapper.update_params((model.weight - model.weight.detach()).sum().pow(1 / 3))  # 0; its slope is infinite
    assert model.weight.item() == before and wrapper.skipped == 1


@pytest.mark.parametrize('most', [1, 3])
def test_stops_after_so_many_in_a_row(tmp_path, most):
    class Bad(BadGradient):
        bad = 2, 3, 5, 6, 7, 8, 9

    runner = make_runner(tmp_path, model=Bad(), epochs=4,
                         optim_wrapper=dict(type=FINITE, max_skipped=most, optimizer=dict(type='SGD', lr=0.02)))
    last = {1: 2, 3: 7}[most]
    with pytest.raises(DivergedError, match=f'{most} steps in a row was not finite, .* that of iteration {last}[.]'):
        runner.train()
    assert runner.model.count == last and all(value.isfinite().all() for value in runner.model.state_dict().values())


@pytest.mark.parametrize('value', [0, -1, True, 2.5, None, '3'])
def test_wrong_argument(value):
    with pytest.raises(ConfigError, match=f'max_skipped must be an int >= 1, but is {value!r}'):
        FiniteOptimWrapper(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.), max_skipped=value)


def test_ranks_leave_out_the_same_steps(tmp_path):
    """Of two real processes one meets a bad image in each epoch; both end alike, and finite."""
    options = dict(hook=dict(), epochs=4, optim_wrapper=dict(type=FINITE))
    finish(start([dict(folder=str(tmp_path / 'bad'), poison=NAN, **options),
                  dict(folder=str(tmp_path / 'sound'), **options),
                  dict(folder=str(tmp_path / 'upstream'), **dict(options, optim_wrapper={}))], 2))
    results = {name: [torch.load(tmp_path / name / f'result{rank}.pth', weights_only=True) for rank in range(2)]
               for name in ('bad', 'sound', 'upstream')}
    for first, second in results.values():
        for name in first[0].keys() - {'momentum'}:
            assert torch.equal(first[0][name], second[0][name]) and first[0][name].isfinite().all()
    log, = (tmp_path / 'bad').glob('*/*.log')
    assert log.read_text().count('is left out: its loss or gradient is not finite (1 in a row') == 4
    bad, good = (results[name][0][0]['head.weight'] for name in ('bad', 'sound'))
    assert not torch.equal(bad, good)
    assert all(torch.equal(results['sound'][0][0][name], value) for name, value in results['upstream'][0][0].items())
    losses = [json.dumps(result[2]) for result in results['bad']]
    assert sorted('NaN' in text for text in losses) in ([False, True], [True, True])


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('kind, options', [(torch.optim.SGD, dict(momentum=0.9)), (torch.optim.AdamW, dict())])
def test_nobody_waits_for_the_gpu(kind, options):
    """The same as with a wrapper that waits, and after as many bad steps it stops."""
    ends = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(8, 8).cuda()
        optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1, fused=True, **options)
        wrapper = FiniteOptimWrapper(optimizer, max_skipped=3)
        if not fused:  # the kernel is the same, but the host decides
            optimizer._step_supports_amp_scaling = False
        inputs = torch.randn(40, 8, device='cuda')
        inputs[[5, 6, 20]] = NAN
        for number, x in enumerate(inputs):
            loss = model(x).square().mean()
            torch.cuda.set_sync_debug_mode('error' if fused and 0 < number < 9 else 'default')
            wrapper.update_params(loss)
        torch.cuda.set_sync_debug_mode('default')
        ends.append([value.cpu() for value in (model.weight, *optimizer.state[model.weight].values())])
        assert wrapper.skipped == 3
    assert all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(*ends))
    with pytest.raises(DivergedError, match='3 steps in a row'):
        for _ in range(20):
            wrapper.update_params(model(inputs[5]).sum())


@pytest.mark.parametrize('make', [
    lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    lambda groups: torch.optim.Adam(groups, lr=0.1, betas=(0.8, 0.9), amsgrad=True),
    lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.3)], ids=['SGD', 'Adam', 'AdamW'])
def test_a_fused_twin_takes_the_same_steps(make):
    """Options of optimizer and groups go with it; what had decided, or has begun, stays."""
    ends = []
    for twin in (False, True):
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(3, 4)) for _ in range(2)]
        optimizer = make([dict(params=parameters[:1], lr=0.02), dict(params=parameters[1:])])
        if twin:
            plain, optimizer = optimizer, fused_twin(optimizer)
            assert type(optimizer) is type(plain) and optimizer is not plain
            assert [group['fused'] for group in optimizer.param_groups] == [True, True]
            assert [group['lr'] for group in optimizer.param_groups] == [0.02, 0.1]
            assert optimizer.param_groups[0]['params'][0] is parameters[0]
        for _ in range(4):
            for parameter in parameters:
                parameter.grad = parameter.detach().sin() + 0.3
            optimizer.step()
        ends.append(torch.stack([parameter.detach() for parameter in parameters]))
        assert fused_twin(optimizer) is optimizer
    torch.testing.assert_close(ends[1], ends[0])


def test_what_cannot_be_fused_stays():
    parameters = [torch.nn.Parameter(torch.zeros(2))]

    class Mine(torch.optim.SGD):
        pass

    for optimizer in (torch.optim.SGD(parameters, lr=0.1, foreach=True), torch.optim.RMSprop(parameters),
                      torch.optim.LBFGS(parameters), Mine(parameters, lr=0.1)):
        assert fused_twin(optimizer) is optimizer
