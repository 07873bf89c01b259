"""A MultiTaskModel against one model per task with the same weights: the same results, and memory, files and time.

    python benchmarks/multi_task.py CONFIG [CHECKPOINT] [--rounds 9] [--images 8]
    python benchmarks/multi_task.py                                   # memory of many tasks on large backbones

Memory is that of all parameters and buffers, which is what the models hold; files are small checkpoints, one of all
tasks against one of each (the backbone's own file, which all need, is not in them). Times are of the first images of
the test data, one at a time and of each task, from pixels to predictions; both take turns in one process and the
process's own time on a CPU counts, which neighbours disturb less. Without a checkpoint heads and prompts are random.
Without a config, each task is a set of 10 prompts in each of 12 blocks and a linear head of 100 classes.
"""
import argparse
import copy
import io
import statistics
import time

import timm
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmprovpt import add_prompts, tuned_state_dict
from mmprovpt.cli.options import read_config
from mmprovpt.cli.runner import build_model, load_weights
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.tasks import take_task


def build(cfg, checkpoint):
    """The model of several tasks, and those of single ones with its weights."""
    model = build_model(copy.deepcopy(cfg))
    model.init_weights()
    if checkpoint:
        load_weights(model, checkpoint)
    return model.eval(), {task: take_task(model, cfg, task) for task in model.tasks}


def first_batches(cfg, task, count):
    loader = dict(cfg.test_dataloader[task], batch_size=1, num_workers=0, persistent_workers=False)
    with DefaultScope.overwrite_default_scope(loader.pop('_scope_')):
        return [batch for batch, _ in zip(Runner.build_dataloader(loader, seed=0), range(count))]


def held(*models):
    """(parameters, bytes of parameters and buffers)."""
    tensors = {id(tensor): tensor for model in models for tensor in (*model.parameters(), *model.buffers())}.values()
    return (sum(each.numel() for each in tensors if isinstance(each, torch.nn.Parameter)),
            sum(each.numel() * each.element_size() for each in tensors))


def file_size(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.tell()


@torch.no_grad()
def seconds(model, batches, **task):
    start = time.process_time()
    results = [model.test_step(dict(copy.deepcopy(batch), **task)) for batch in batches]
    return time.process_time() - start, results


def plain(result):
    """All tensors of a prediction."""
    if isinstance(result, torch.Tensor):
        return [result]
    inner = result if isinstance(result, list) else result.values() if hasattr(result, 'values') else []
    return [tensor for value in inner for tensor in plain(value)]


def compare(model, alone, batches, rounds):
    """For each task the median milliseconds an image, alone and of the several; raises unless results are equal."""
    times = {}
    for task, mine in batches.items():
        pairs = []
        for number in range(rounds + 1):
            one, expected = seconds(alone[task], mine)
            several, got = seconds(model, mine, task=task)
            pairs.append((one, several))
            if not number:
                same = [torch.equal(a, b) for a, b in zip(plain(expected), plain(got), strict=True)]
                assert same and all(same), f'{task}: other predictions than those of a model of its own'
        times[task] = [statistics.median(column) * 1000 / len(mine) for column in zip(*pairs[1:])]
    return times


def memory_of_many(counts=(1, 3, 10, 100)):
    """Print what so many tasks hold on one backbone, and in models of their own."""
    print(f'| | {" | ".join(f"{count} tasks" for count in counts)} |\n|---|{"---|" * len(counts)}')
    for title, name in (('ViT-B/16', 'vit_base_patch16_224'), ('Swin-T', 'swin_tiny_patch4_window7_224')):
        backbone = timm.create_model(name, num_classes=0)
        heads, rows = torch.nn.ModuleList(), ([], [])
        for number in range(1, max(counts) + 1):
            add_prompts(backbone, f'task{number}', dict(type='StaticPrompts', num_tokens=10))
            heads.append(torch.nn.Linear(backbone.num_features, 100))
            if number == 1:
                alone = held(backbone, heads)[1]
            if number in counts:
                rows[0].append(number * alone)
                rows[1].append(held(backbone, heads)[1])
        for kind, sizes in zip(('a model each', 'one backbone'), rows):
            print(f'| {title}, {kind} | {" | ".join(f"{size / 1e6:,.0f} MB" for size in sizes)} |')


@user_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?')
    parser.add_argument('checkpoint', nargs='?')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--images', type=int, default=8)
    args = parser.parse_args()
    if not args.config:
        return memory_of_many()
    cfg = read_config(args.config)
    model, alone = build(cfg, args.checkpoint)
    times = compare(model, alone, {task: first_batches(cfg, task, args.images) for task in alone}, args.rounds)
    rows = [(f'{len(alone)} models', held(*alone.values()), sum(
        file_size(tuned_state_dict(each)) for each in alone.values()), [pair[0] for pair in times.values()]),
            (f'one model, {len(alone)} tasks', held(model), file_size(tuned_state_dict(model)),
             [pair[1] for pair in times.values()])]
    print('predictions are equal, bit for bit\n')
    print(f'| | parameters | memory, MB | files, MB | {" | ".join(f"{task}, ms" for task in times)} |')
    print(f'|---|---|---|---|{"---|" * len(times)}')
    for name, (count, size), file, each in rows:
        print(f'| {name} | {count:,} | {size / 1e6:.1f} | {file / 1e6:.1f} | '
              f'{" | ".join(f"{value:.0f}" for value in each)} |')
    shared = sum(each.numel() for name, each in model.backbone.named_parameters() if not name.startswith('prompts.'))
    print(f'\nshared: {shared:,} parameters of the backbone; beside them '
          + ', '.join(f'{task} has {held(each)[0] - shared:,}' for task, each in alone.items()))


if __name__ == '__main__':
    main()
