"""One rank of runs that may be killed, one after the other: ``python survival_run.py JOB...``, each a JSON dict."""
import json
import os
import signal
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from mmengine.evaluator import BaseMetric  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.registry import METRICS  # noqa: E402
from test_hooks.toy_run import DISTRIBUTED, Images, make_runner, read_rows, relocation_hook  # noqa: E402


@METRICS.register_module(force=True)
class Count(BaseMetric):
    """Counts images: never improves."""

    def process(self, data_batch, data_samples):
        self.results += list(data_samples)

    def compute_metrics(self, results):
        return dict(count=len(results))


VALIDATION = dict(
    val_dataloader=dict(batch_size=8, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                        collate_fn=dict(type='default_collate'), dataset=Images()),
    val_cfg=dict(), val_evaluator=dict(type='Count'))
CASES = dict(
    # The first validation is the best, and lies within a period.
    best=dict(hook=dict(interval=3, by_epoch=False), iters=6, noisy=True, val_interval=4, **VALIDATION,
              checkpoint=dict(interval=-1, by_epoch=False, save_best='count', rule='greater')),
    last=dict(hook=dict(interval=3, by_epoch=False), iters=6, noisy=True, checkpoint=dict(interval=4, by_epoch=False)),
    epoch=dict(hook=dict(), epochs=5, noisy=True),
    iteration=dict(hook=dict(interval=3, by_epoch=False), iters=20, noisy=True,
                   checkpoint=dict(interval=4, by_epoch=False)))


class KillMinus9(Hook):
    """Ends the process between backward pass and bookkeeping, without a word."""
    priority = 'VERY_HIGH'

    def __init__(self, at):
        self.at = at

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


class Losses(Hook):
    """Keeps every iteration's loss."""

    def __init__(self):
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(float(outputs['loss']))


def train(folder, case=None, kill=None, hooks=(), **options):
    """Train in ``folder`` and return what came out of it: tensors, rows, losses."""
    losses = Losses()
    options = {**CASES.get(case, {}), **options}
    if torch.distributed.is_initialized():
        options.update(DISTRIBUTED, batch_size=2)
    runner = make_runner(folder, hooks=[losses, *hooks, *([] if kill is None else [KillMinus9(kill)])], **options)
    runner.train()
    hook = relocation_hook(runner)
    tensors = {name.removeprefix('module.'): value for name, value in runner.model.state_dict().items()}
    momentum = runner.optim_wrapper.optimizer.state[hook.session.prompts.tokens].get('momentum_buffer')
    if momentum is not None:
        tensors['momentum'] = momentum
    return tensors, read_rows(folder), losses.losses


def main(jobs):
    rank, world_size = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    jobs = [json.loads(job) for job in jobs]
    if world_size > 1:  # mmengine's own start needs a GPU per process
        torch.distributed.init_process_group(
            'gloo', init_method=f'file://{os.environ["RENDEZVOUS"]}', rank=rank, world_size=world_size)
    for job in jobs:
        try:
            result = train(**job)
        except ValueError as error:
            result = str(error)
        torch.save(result, f'{job["folder"]}/result{rank}.pth')
    if world_size > 1:  # at the interpreter's end gloo's threads now and then abort it, when all has been written
        os._exit(0)


if __name__ == '__main__':
    main(sys.argv[1:])
