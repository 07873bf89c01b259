"""One of two processes that relocate without MMEngine: ``python session_ranks.py FOLDER RANK``."""
import copy
import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_hooks.toy_run import ToyModel  # noqa: E402

from mmprovpt.relocation import Allocator, RelocationSession  # noqa: E402


class Failing(Allocator):
    """Breaks where it decides, on rank 0."""

    def act(self, state, signals=None):
        raise ZeroDivisionError('no block, für keinen')


def session_of(model, optimizer, allocator, **options):
    return RelocationSession(model.prompts, optimizer, allocator=allocator, **options)


def iterate(model, optimizer, session, generator):
    """One iteration, each rank on its own data; returns the own loss."""
    inputs = torch.randn(4, 6, generator=generator)
    session.begin_iteration()
    loss = model(inputs, inputs.square().sum(1) / 6, mode='loss')['loss']
    optimizer.zero_grad()
    loss.backward()
    session.end_iteration(loss)
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    optimizer.step()
    return float(loss.detach())


def main(folder, rank):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    model = ToyModel((4, 6, 8))
    average = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    pruner = dict(type='RandomPruner', criterion='taylor')
    session = session_of(model, optimizer, dict(type='UniformAllocator'), pruner=pruner, averages=[average])
    torch.manual_seed(rank)  # rows are drawn anew in another width
    generator, periods = torch.Generator().manual_seed(rank), []
    for _ in range(6):
        for _ in range(2):
            iterate(model, optimizer, session, generator)
        period = session.close_period()
        periods.append(None if period is None else [list(move) for move in period.moves])
    own_loss = iterate(model, optimizer, session, generator)
    last = session.finish()
    result = dict(
        owners=model.prompts.block_index.tolist(), average=average.prompts.block_index.tolist(),
        tokens=model.prompts.tokens.tolist(), periods=periods, own_loss=own_loss, loss=last and last.loss)
    session.close()
    pruner = dict(type='IdlenessPruner', criterion='taylor', verify_top=2)
    session = session_of(model, optimizer, dict(type=Failing), pruner=pruner)
    iterate(model, optimizer, session, generator)
    result['candidates'] = session.candidates()
    try:
        session.close_period({prompt: 1.0 for prompt in result['candidates']})
    except Exception as error:
        result['error'] = f'{type(error).__name__}: {error}'
    Path(folder, f'{rank}.json').write_text(json.dumps(result))
    os._exit(0)  # at the interpreter's end gloo's threads now and then abort it, when all has been written


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]))
