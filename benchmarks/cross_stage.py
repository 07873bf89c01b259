"""What a prompt does on arrival in another Swin stage, projected or drawn anew.

    python benchmarks/cross_stage.py CONFIG CHECKPOINT [--moves 24]

Moves single trained prompts to random blocks of other widths, before any tuning there, and prints the change of the
training loss on a few held batches: beyond that of taking the prompt away, since that part is the same for both.
"""
import argparse
import copy

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from tqdm import tqdm

from mmprovpt.cli.user_errors import user_errors
from mmprovpt.hooks.find import find_prompts
from mmprovpt.hooks.verification import HeldBatches


@user_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--moves', type=int, default=24)
    parser.add_argument('--batches', type=int, default=3)
    parser.add_argument('--work-dir', default='work_dirs/cross_stage')
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    cfg.work_dir, cfg.load_from = args.work_dir, args.checkpoint
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(cfg.train_cfg)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.load_checkpoint(args.checkpoint)
    prompts = find_prompts(runner.model)
    held = HeldBatches(runner, runner.optim_wrapper, args.batches, seed=0)
    generator, state = torch.Generator().manual_seed(0), copy.deepcopy(prompts.state_dict())
    changes = dict(project=[], reinit=[])
    for _ in tqdm(range(args.moves)):
        prompt = int(torch.randint(len(prompts.tokens), (), generator=generator))
        width = prompts.widths[int(prompts.block_index[prompt])]
        others = [block for block in range(prompts.num_blocks) if prompts.widths[block] != width]
        block = others[int(torch.randint(len(others), (), generator=generator))]
        with prompts.without(prompt):
            removed = float(held.loss())
        for kind, found in changes.items():
            prompts.cross_stage = kind
            prompts.relocate(prompt, block)
            found.append(float(held.loss()) - removed)
            prompts.load_state_dict(state)
    values = {kind: torch.tensor(found) for kind, found in changes.items()}
    for kind, found in values.items():
        print(f'{kind}: {found.mean():+.5f} ± {found.std() / len(found)**0.5:.5f} (standard error), '
              f'worst {found.max():+.5f}')
    better = values['reinit'] - values['project']
    print(f'reinit - project: {better.mean():+.5f} ± {better.std() / len(better)**0.5:.5f}; project lower in '
          f'{int((better > 0).sum())} of {len(better)}')


if __name__ == '__main__':
    main()
