"""How much pruning, allocation and tuning change what blocks compute (PRO-VPT Fig. 6).

    python benchmarks/feature_stability.py CONFIG CHECKPOINT CHECKPOINT ...

The checkpoints are of one run in their order, best of successive periods (with ``max_keep_ckpts=-1``). Printed for each
pair is the cosine similarity of features to those of the first of the two: when the prompts that move until the second
are taken away (pruning), when they are in their new blocks (allocation), and of the second itself (tuning); the mean
over blocks, and the smallest. A block's feature of an image is the class token of its output, or without one (Swin) the
mean over its tokens.
"""
import argparse

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn
from tqdm import tqdm

from mmprovpt.cli.user_errors import user_errors
from mmprovpt.hooks.find import find_prompts
from mmprovpt.hooks.verification import HeldBatches


@torch.no_grad()
def block_features(backbone: nn.Module, images: Tensor) -> list[Tensor]:
    """(B, C_i) float32 of every block, in eval mode; images (B, 3, H, W) are preprocessed."""
    has_class_token = any(getattr(module, 'cls_token', None) is not None for module in backbone.modules())
    features: list[Tensor] = []

    def record(module: nn.Module, args: tuple, output: Tensor) -> None:
        tokens = output.flatten(1, -2)  # timm's Swin has height and width
        features.append((tokens[:, 0] if has_class_token else tokens.mean(1)).float())

    # A block has the norm behind which its attention reads prompts.
    names = 'norm1', 'ln1'
    blocks = [module for module in list(backbone.modules())[1:]
              if any(isinstance(getattr(module, name, None), nn.LayerNorm) for name in names)]
    handles = [block.register_forward_hook(record) for block in blocks]
    training = backbone.training
    backbone.eval()(images)
    backbone.train(training)
    for handle in handles:
        handle.remove()
    return features


def similarity(before: list[Tensor], now: list[Tensor]) -> str:
    """Mean and smallest over blocks of the mean over images."""
    values = [float(torch.cosine_similarity(a, b, dim=-1).mean()) for a, b in zip(before, now)]
    return f'{sum(values) / len(values):.4f} ({min(values):.4f})'


@user_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoints', nargs='+')
    parser.add_argument('--work-dir', default='work_dirs/feature_stability')
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    cfg.work_dir = args.work_dir
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(cfg.train_cfg)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    prompts = find_prompts(runner.model)
    backbone = next(module for module in runner.model.modules() if prompts in module.children())
    batch = HeldBatches(runner, runner.optim_wrapper, 1, seed=0).batches[0]
    images = runner.model.data_preprocessor(batch, False)['inputs']
    print('| checkpoints | moved | pruning | allocation | tuning |\n|---|---|---|---|---|')
    for first, second in tqdm(list(zip(args.checkpoints, args.checkpoints[1:])), unit='pair'):
        runner.load_checkpoint(second)
        owners, tuned = prompts.block_index.clone(), block_features(backbone, images)
        runner.load_checkpoint(first)
        before = block_features(backbone, images)
        moved = (owners != prompts.block_index).nonzero().flatten().tolist()
        with prompts.without(*moved):
            pruned = block_features(backbone, images)
        for prompt in moved:
            prompts.relocate(prompt, int(owners[prompt]))
        allocated = block_features(backbone, images)
        print(f'| {first}, {second} | {len(moved)} | {similarity(before, pruned)} | {similarity(before, allocated)} | '
              f'{similarity(before, tuned)} |')


if __name__ == '__main__':
    main()
