"""A tiny prompted model and its Runner; as a script, one process of a distributed run."""
import json
import os
import random
import sys
import uuid
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mmprovpt.prompts import StaticPrompts

LR = 0.02
POISON = 13  # number of the image of which all numbers are `poison`, where that is set
OVERFLOW = 1e3  # a poison whose loss is finite, but not its gradient once it is scaled


class ToyModel(BaseModel):
    """Residual blocks that read their prompts, and a trained head; with dropout where it is ``noisy``."""

    def __init__(self, widths=(4, 4, 4), num_tokens=2, seed=0, noisy=False):
        super().__init__()
        self.noisy = noisy
        generator = torch.Generator().manual_seed(seed)
        self.prompts = StaticPrompts(num_tokens, patch_fan_in=12, dropout=0., widths=widths,
                                     cross_stage='reinit')
        for width, rows in zip(self.prompts.widths, range(len(widths))):
            self.register_buffer(f'read_{rows}', torch.randn(width, 6, generator=generator))
        with torch.no_grad():
            for prompt, block in enumerate(self.prompts.block_index.tolist()):
                row = torch.randn(widths[block], generator=generator)
                self.prompts.tokens[prompt, :widths[block]] = row
        self.head = nn.Linear(6, 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(1, 6, generator=generator))
            self.head.bias.zero_()

    def forward(self, inputs, targets=None, mode='tensor'):
        x = inputs
        for block in range(self.prompts.num_blocks):
            rows = self.prompts.rows(block)
            if rows is not None:
                x = x + (rows @ getattr(self, f'read_{block}') * x[:, None]).tanh().sum(1) / 4
        x = self.head(F.dropout(x, 0.2, self.training and self.noisy)).squeeze(1)
        if mode != 'loss':
            return x
        tokens = self.prompts.tokens
        steep = 1e30 * (inputs == OVERFLOW).any() * (tokens - tokens.detach()).sum()  # 0
        return dict(loss=F.mse_loss(x, targets) + steep)


class Images(Dataset):
    """Twenty-four random vectors, of which ``length`` are used; a ``noisy`` one is another whenever it is loaded."""

    def __init__(self, poison=None, noisy=False, length=24):
        self.noisy = noisy
        self.length = length
        generator = torch.Generator().manual_seed(7)
        self.inputs = torch.randn(24, 6, generator=generator)
        self.targets = self.inputs.square().sum(1) / 6
        if poison is not None:
            self.inputs[POISON] = poison

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        inputs = self.inputs[index]
        if self.noisy:
            inputs = inputs + 0.1 * torch.randn(6) + 0.1 * np.random.randn() + 0.1 * random.random()
        return dict(inputs=inputs, targets=self.targets[index])


class EndWorkers(Hook):
    """Tells the processes that load to end.

    The garbage collector needs five seconds for each: of a Runner, a cycle of objects, it may close the pipes to them
    first.
    """

    priority = 'LOWEST'

    def after_train(self, runner):
        loader = runner.train_loop.dataloader
        endless = getattr(getattr(runner.train_loop, 'dataloader_iterator', None), '_iterator', None)
        for iterator in (loader._iterator, endless):
            if hasattr(iterator, '_shutdown_workers'):
                iterator._shutdown_workers()
        loader._iterator = None


@OPTIM_WRAPPERS.register_module(force=True)
class ScaledOptimWrapper(OptimWrapper):
    """What AmpOptimWrapper does with its loss scaler, but on the CPU."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.**30, growth_interval=3)

    def backward(self, loss, **kwargs):
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs):
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


def make_runner(work_dir, hook=None, model=None, epochs=4, iters=None, batch_size=4, poison=None,
                optim_wrapper=None, checkpoint=None, hooks=(), val_interval=None, noisy=False, workers=0,
                sampler='InfiniteSampler', length=24, seeding=True,
                persistent=False, **kwargs):
    """A Runner over ``epochs``, or ``iters`` where given; ``hook`` None trains without relocation."""
    torch.set_num_threads(1)
    toy = model is None or isinstance(model, ToyModel)
    loop = dict(by_epoch=True, max_epochs=epochs)
    if iters is not None:
        loop = dict(by_epoch=False, max_iters=iters)
    if val_interval is not None:
        loop['val_interval'] = val_interval
    sampler = dict(type='DefaultSampler' if iters is None else sampler, shuffle=True)
    if length % 2:
        sampler['round_up'] = False
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=LR, momentum=0.9))
    wrapper.update(optim_wrapper or {})
    hooks = [*hooks, *([EndWorkers()] if workers else [])]
    if hook is not None:
        pruner = dict(hook.get('pruner', dict(type='IdlenessPruner')))
        if toy:  # whose blocks have no attention, and so no gates
            pruner.setdefault('criterion', 'taylor')
        hooks.append(dict(type='mmprovpt.PromptRelocationHook', **dict(hook, pruner=pruner)))
    kwargs = {**dict(randomness=dict(seed=3)), **kwargs}
    return Runner(
        ToyModel(noisy=noisy) if model is None else model,
        work_dir=str(work_dir),
        train_dataloader=dict(batch_size=batch_size, num_workers=workers, sampler=sampler,
                              persistent_workers=persistent,
                              collate_fn=dict(type='default_collate'), dataset=Images(poison, noisy, length)),
        train_cfg=loop,
        optim_wrapper=wrapper,
        default_hooks=dict(checkpoint={'type': 'CheckpointHook', **(checkpoint or dict(interval=1))},
                           runtime_info=dict(type='RuntimeInfoHook'),
                           **(dict(seed=dict(type='mmprovpt.IterationSeedHook')) if seeding else {}),
                           sampler_seed=dict(type='DistSamplerSeedHook')),
        custom_hooks=hooks,
        default_scope='mmengine',
        experiment_name=uuid.uuid4().hex,
        log_level='INFO',
        **kwargs)


def relocation_hook(runner):
    """The PromptRelocationHook of a Runner."""
    return next(h for h in runner.hooks if type(h).__name__ == 'PromptRelocationHook')


def read_rows(work_dir):
    """Rows of the newest relocations.jsonl below a work directory; none without one."""
    paths = sorted(Path(work_dir).glob('*/relocations.jsonl'), key=os.path.getmtime)
    return [json.loads(line) for line in paths[-1].read_text().splitlines()] if paths else []


DISTRIBUTED = dict(
    launcher='pytorch',
    cfg=dict(model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None)))


def main(folder):
    """Train twice in this process of several and save what came out of it."""
    torch.distributed.init_process_group('gloo')  # mmengine's own needs a GPU per process
    results = []
    scaled = dict(type='ScaledOptimWrapper')
    for name, widths, extra in (
        ('equal', (4, 4, 4), dict()),
        ('unequal', (4, 6, 8), dict(poison=OVERFLOW, optim_wrapper=scaled,
                                    randomness=dict(seed=3, diff_rank_seed=True)))):
        runner = make_runner(f'{folder}/{name}', hook=dict(), model=ToyModel(widths), batch_size=2,
                             epochs=5, **DISTRIBUTED, **extra)
        runner.train()
        hook = relocation_hook(runner)
        prompts = hook.session.prompts
        momentum = runner.optim_wrapper.optimizer.state[prompts.tokens]['momentum_buffer']
        results.append(dict(tokens=prompts.tokens.data, blocks=prompts.block_index, momentum=momentum))
    torch.save(results, f'{folder}/{torch.distributed.get_rank()}.pth')
    os._exit(0)  # at the interpreter's end gloo's threads now and then abort it, when all has been written


if __name__ == '__main__':
    main(sys.argv[1])
