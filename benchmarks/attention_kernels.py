"""Attention in bfloat16 on a CPU: PyTorch's fused kernel against the same written out, time and error.

    OMP_NUM_THREADS=1 python benchmarks/attention_kernels.py

Forward and backward, in turn, five rounds; the ratio of CPU times with its spread. Errors are relative (Euclidean norm)
to float64 on the same bfloat16 inputs: of the output, and the largest of the three gradients.
"""
import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from mmprovpt.attention.base import _weights

# Batch (of windows), heads, tokens, prompts, width of a head.
SHAPES = {'ViT-S/14, 42 px': (64, 6, 10, 5, 64), 'Swin-T, stage 1': (256, 3, 49, 10, 32),
          'ViT-B/16, 224 px': (8, 12, 197, 10, 64), 'ViT-B/16, 384 px': (2, 12, 577, 10, 64)}
ROUNDS = 5


def fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """PyTorch's."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def written_out(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """What prompted attention does in its place."""
    return _weights(q, k, scale, None) @ v


def seconds(attention, inputs: list[Tensor], seed: Tensor) -> float:
    """CPU time of a forward and backward."""
    start = time.process_time()
    attention(*inputs, 0.125).backward(seed)
    return time.process_time() - start


def error(attention, inputs: list[Tensor], seed: Tensor) -> tuple[float, float]:
    """Of the output, and the largest of the gradients."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    ours, truth = attention(*inputs, 0.125), fused(*exact, 0.125)
    pairs = [(ours, truth), *zip(torch.autograd.grad(ours, inputs, seed),
                                 torch.autograd.grad(truth, exact, seed.double()))]
    errors = [float((mine.detach().double() - other.detach()).norm() / other.detach().norm()) for mine, other in pairs]
    return errors[0], max(errors[1:])


def main() -> None:
    torch.manual_seed(0)
    print('| | fused / written out, time | error, fused | error, written out |\n|---|---|---|---|')
    for name, (batch, heads, tokens, prompts, width) in tqdm(SHAPES.items(), unit='shape'):
        inputs = [(1.7 * torch.randn(batch, heads, n, width)).bfloat16().requires_grad_()
                  for n in (tokens, tokens + prompts, tokens + prompts)]
        seed = torch.randn(batch, heads, tokens, width).bfloat16()
        ratios = []
        for turn in range(ROUNDS + 1):
            times = [seconds(attention, inputs, seed) for attention in (fused, written_out)]
            if turn:  # the first warms up
                ratios.append(times[0] / times[1])
        cells = [' '.join(f'{value:.4f}' for value in error(attention, inputs, seed))
                 for attention in (fused, written_out)]
        print(f'| {name} | {median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f}) | {" | ".join(cells)} |')


if __name__ == '__main__':
    main()
