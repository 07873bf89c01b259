"""Trainings that must come out alike on one process and on several; a script, one of the processes of torchrun."""
import os
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from mmengine import dist
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, MODELS, OPTIM_WRAPPERS
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).parents[1]))

from matrix import CASES, randomise  # noqa: E402
from test_hooks.toy_run import read_rows  # noqa: E402

from mmprovpt import inject_prompts  # noqa: E402
from mmprovpt.cli.runner import build_runner  # noqa: E402
from mmprovpt.errors import ConfigError  # noqa: E402
from mmprovpt.hooks import PromptRelocationHook  # noqa: E402
from mmprovpt.hooks.find import unwrapped  # noqa: E402
from mmprovpt.relocation import ranks  # noqa: E402

GLOBAL_BATCH, ITERS, PERIOD, LR = 8, 8, 2, 0.01
# What each run is: options of `config`.
RUNS = dict(
    vit=dict(),
    swin=dict(backbone='timm-swin', criterion='taylor', accumulate=2),
    accumulated=dict(accumulate=2),
    flexible=dict(runner_type='FlexibleRunner', optim_wrapper=dict(optimizer=dict(lr=LR / 2)),
                  auto_scale_lr=dict(enable=True, base_batch_size=GLOBAL_BATCH // 2)),
    bfloat16=dict(optim_wrapper=dict(type='BFloat16OptimWrapper')),
    verified=dict(verify_top=2),
    sharded=dict(custom_hooks=[], runner_type='FlexibleRunner', strategy=dict(
        type='FSDPStrategy', model_wrapper=dict(device_id='cpu'))),
)
# What how many processes do.
PROCESSES = {4: ['vit', 'bfloat16', 'verified'], 2: ['swin', 'accumulated', 'flexible', 'sharded']}
AGREEING = 'tokens', 'blocks', 'momentum', 'head'


@MODELS.register_module(force=True)
class PromptedClassifier(BaseModel):
    """A backbone of the matrix, by timm alone (importing the codebases takes longer than all of this), and a head."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = timm.create_model(**CASES[backbone].cfg, num_classes=0)
        inject_prompts(self.backbone, dict(type='StaticPrompts', num_tokens=3, dropout=0.))
        randomise(self.backbone)
        generator = torch.Generator().manual_seed(1)
        tokens = self.backbone.prompts.tokens
        tokens.data = torch.randn(tokens.shape, generator=generator) / 10 * (tokens.data != 0)
        self.head = nn.Linear(self.backbone.num_features, 4)
        self.head.weight.data = torch.randn(self.head.weight.shape, generator=generator) / 10
        self.head.bias.data.zero_()

    def forward(self, inputs, targets=None, mode='tensor'):
        logits = self.head(self.backbone(inputs))
        if mode != 'loss':
            return logits
        count = torch.tensor(float(len(targets)))
        if torch.distributed.is_initialized():  # the mean over processes, as dense heads divide by numbers of objects
            torch.distributed.all_reduce(count)
            count /= torch.distributed.get_world_size()
        return dict(loss=F.cross_entropy(logits.float(), targets, reduction='sum') / count)


@DATASETS.register_module(force=True)
class NoiseImages(Dataset):
    """Twenty-four images of four classes."""

    def __init__(self, size):
        generator = torch.Generator().manual_seed(7)
        self.targets = torch.arange(24) % 4
        means = torch.randn(4, 3, 1, 1, generator=generator)
        self.inputs = means[self.targets] + torch.randn(24, 3, size, size, generator=generator)

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return dict(inputs=self.inputs[index], targets=self.targets[index])


@OPTIM_WRAPPERS.register_module(force=True)
class BFloat16OptimWrapper(OptimWrapper):
    """The context of AmpOptimWrapper(dtype='bfloat16'), which refuses CPUs."""

    def optim_context(self, model):
        return torch.autocast('cpu', torch.bfloat16)


def config(work_dir, world_size, backbone='timm-vit', criterion='gate_fisher', allocator='PPOAllocator', accumulate=1,
           verify_top=0, optim_wrapper=None, **more):
    """Whatever the number of processes and of accumulated iterations, each update sees the same images."""
    cfg = Config(dict(
        model=dict(type='PromptedClassifier', backbone=backbone),
        train_dataloader=dict(
            batch_size=GLOBAL_BATCH // accumulate // world_size, num_workers=0, collate_fn=dict(type='default_collate'),
            sampler=dict(type='InfiniteSampler', shuffle=True),
            dataset=dict(type='NoiseImages', size=CASES[backbone].sizes[0][0])),
        train_cfg=dict(by_epoch=False, max_iters=ITERS * accumulate),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=LR, momentum=0.9), accumulative_counts=accumulate),
        custom_hooks=[dict(
            type='mmprovpt.PromptRelocationHook', interval=PERIOD * accumulate, by_epoch=False,
            pruner=dict(type='IdlenessPruner', criterion=criterion, score_interval=1, verify_top=verify_top),
            allocator=dict(type=allocator))],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3, save_last=False),
                           timer=None, logger=None),
        launcher='none' if world_size == 1 else 'pytorch', default_scope='mmengine', randomness=dict(seed=3),
        log_level='WARNING', work_dir=str(work_dir),
        experiment_name=str(work_dir)))
    cfg.merge_from_dict(dict(optim_wrapper=optim_wrapper or {}))
    for key, value in more.items():
        cfg[key] = value
    return cfg


@contextmanager
def noting(sent):
    """List what mmprovpt, but not DDP, sends to other processes: name and bytes."""
    places = [(dist, 'all_reduce'), (ranks, 'add_up'), (ranks, 'broadcast')]
    originals = [getattr(module, name) for module, name in places]

    def noted(original):
        def send(data, *args, **kwargs):
            sent.append((original.__name__, data.numel() * data.element_size()))
            return original(data, *args, **kwargs)
        return send

    for (module, name), original in zip(places, originals):
        setattr(module, name, noted(original))
    try:
        yield
    finally:
        for (module, name), original in zip(places, originals):
            setattr(module, name, original)


def train(name, folder, world_size=1, **more):
    """What came out of a run."""
    torch.set_num_threads(1)
    runner, sent = build_runner(config(Path(folder) / name, world_size, **dict(RUNS[name], **more))), []
    with noting(sent):
        runner.train()
    sharded = isinstance(runner.model, FullyShardedDataParallel)
    model = unwrapped(runner.model)
    local = model.backbone.prompts.tokens.numel()
    with FullyShardedDataParallel.summon_full_params(runner.model) if sharded else nullcontext():
        result = dict(tokens=model.backbone.prompts.tokens.detach().clone(), head=model.head.weight.detach().clone())
    result.update(local=local, sent=sent, runner=type(runner).__name__,
                  lr=runner.optim_wrapper.optimizer.param_groups[0]['lr'])
    for hook in runner.hooks:
        if isinstance(hook, PromptRelocationHook):
            prompts = hook.session.prompts
            momentum = runner.optim_wrapper.optimizer.state[prompts.tokens]['momentum_buffer']
            rows = read_rows(Path(folder) / name) if dist.is_main_process() else []
            result.update(rows=rows, momentum=momentum, blocks=prompts.block_index)
    return result


def refused(folder, world_size):
    """What the hooks say to shards, and how far training has come then."""
    save = dict(checkpoint=dict(type='mmprovpt.PromptCheckpointHook', by_epoch=False, interval=3))
    said = []
    for more in dict(custom_hooks=config('', 1).custom_hooks), dict(default_hooks=save):
        runner = build_runner(config(Path(folder) / 'refused', world_size, **dict(RUNS['sharded'], **more)))
        try:
            runner.train()
        except ConfigError as error:
            said.append((str(error), runner.iter))
    return said


def main(folder):
    """First all processes that torchrun has started, then some of them, which saves starting others."""
    rank, results = int(os.environ['RANK']), {}
    for world_size, names in PROCESSES.items():
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
            if rank >= world_size:
                break
            torch.distributed.init_process_group(
                'gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=world_size)
        results[world_size] = {name: train(name, f'{folder}/{world_size}', world_size) for name in names}
    if rank < world_size:
        results[world_size]['refused'] = refused(folder, world_size)
    torch.save(results, f'{folder}/{rank}.pth')
    os._exit(0)  # at the interpreter's end gloo's threads now and then abort it, when all has been written


if __name__ == '__main__':
    main(sys.argv[1])
