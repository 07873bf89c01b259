"""On an accelerator the host waits wherever it reads a value; so nothing between two relocations reads one.

benchmarks/accelerator.py asks a GPU itself.
"""
import pytest
import torch
from matrix import CASES, build, images, loss
from torch.utils._python_dispatch import TorchDispatchMode

from mmprovpt.relocation import CRITERIA, RelocationSession

READS = ('_local_scalar_dense', 'nonzero', 'masked_select', 'equal', 'is_nonzero', 'unique', '_unique2', 'bincount')


class HostReads(TorchDispatchMode):
    """Notes operators whose result, or its shape, the host must know."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ('index', 'index_put', 'index_put_') and any(
            index is not None and index.dtype == torch.bool for index in args[1])
        if name in READS or by_mask:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('call', [
    lambda x: x.sum().item(), lambda x: bool(x[0] > 0), torch.nonzero, lambda x: x[x > 0], lambda x: x.equal(x),
    lambda x: x.index_put_((x > 0,), torch.zeros(()))])
def test_reads_are_seen(call):
    with HostReads() as reads:
        call(torch.ones(3))
    assert reads.found


def reads_of(step, *args):
    with HostReads() as reads:
        step(*args)
    return reads.found


def backward(backbone, x):
    loss(backbone, x).backward()


def reads_of_upstream(case):
    """In a forward, and a backward to the image."""
    return reads_of(backward, build(case), images(case).requires_grad_())


def test_forward_and_backward_read_nothing_that_upstream_does_not(case, kind):
    prompted = build(case, dict(kind, num_tokens=2)).train()
    backward(prompted, images(case))  # what is read once is not counted
    assert reads_of(backward, prompted, images(case)) == reads_of_upstream(case)


@pytest.mark.parametrize('criterion', CRITERIA)
@pytest.mark.parametrize('case', [CASES['mmpretrain-vit'], CASES['mmdet-swin']], ids=['vit', 'swin'])
def test_an_iteration_of_relocation_reads_nothing(case, criterion):
    """Neither scores nor losses; a period reads them when it is closed."""
    prompted = build(case, dict(type='StaticPrompts', num_tokens=2)).train()
    optimizer = torch.optim.SGD(prompted.prompts.parameters(), lr=0.1)
    session = RelocationSession(prompted.prompts, optimizer, pruner=dict(type='IdlenessPruner', criterion=criterion))

    def step():
        session.step(lambda: loss(prompted, images(case)))

    step()
    theirs = reads_of_upstream(case)
    for _ in range(session.criterion.score_interval):  # one of them scores
        assert reads_of(step) == theirs
    session.close_period()
