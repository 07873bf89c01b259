"""Inference with prompts, folded (mmprovpt.folded) and not, against the plain backbone.

    OMP_NUM_THREADS=1 python benchmarks/folding.py [--batches 1 32] [--prompts 10 100] [--rounds 9] [--models vit_b ...]

All variants of a row take turns (A B C, A B C, ...); ratios of CPU times are medians of the rounds' ratios, with the
smallest and the largest. Weights are random: they do not change the work. Folded outputs must equal the others.
"""
import argparse
import statistics
import time
from contextlib import nullcontext

import timm
import torch
from tqdm import tqdm

import mmprovpt

MODELS = dict(vit_b='vit_base_patch16_224', vit_s='vit_small_patch16_224', swin_t='swin_tiny_patch4_window7_224',
              swin_b='swin_base_patch4_window7_224')


def build(model, num_tokens=0):
    """A plain backbone, or a prompted one."""
    torch.manual_seed(0)
    net = timm.create_model(MODELS[model], num_classes=0).eval()
    if num_tokens:
        mmprovpt.inject_prompts(net, dict(type='StaticPrompts', num_tokens=num_tokens))
        net.eval()
    return net


def seconds(net, x, fold):
    """CPU time of one forward; folding itself does not count."""
    with mmprovpt.folded(net) if fold else nullcontext():
        start = time.process_time()
        out = net(x)
        return time.process_time() - start, out


def ratios(model, batch, prompts, rounds):
    """Per variant (number of prompts, folded) the rounds' ratios to the plain backbone; and its median time."""
    x = torch.randn(batch, 3, 224, 224)
    variants = {(0, False): build(model)}
    for num_tokens in prompts:
        net = build(model, num_tokens)
        variants.update({(num_tokens, fold): net for fold in (False, True)})
    times = {key: [] for key in variants}
    for turn in range(rounds + 1):
        outs = {}
        for (num_tokens, fold), net in variants.items():
            spent, outs[num_tokens, fold] = seconds(net, x, fold)
            if turn:  # the first warms up
                times[num_tokens, fold].append(spent)
        assert all(torch.equal(outs[num_tokens, True], outs[num_tokens, False]) for num_tokens in prompts)
    plain = times.pop((0, False))
    return {key: [a / b for a, b in zip(each, plain)] for key, each in times.items()}, statistics.median(plain)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 32])
    parser.add_argument('--prompts', type=int, nargs='+', default=[10, 100])
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--models', nargs='+', choices=MODELS, default=['vit_b', 'vit_s', 'swin_t'])
    args = parser.parse_args()
    print('| backbone, batch | plain, ms | ' + ' | '.join(f'{n} prompts | {n}, folded' for n in args.prompts) + ' |')
    print('|---|---|' + '---|---|' * len(args.prompts))
    for model in tqdm(args.models, unit='model'):
        for batch in args.batches:
            found, plain = ratios(model, batch, args.prompts, args.rounds)
            cells = [f'{statistics.median(each):.2f} ({min(each):.2f}-{max(each):.2f})' for each in found.values()]
            print(f'| {model}, {batch} | {1e3 * plain:.0f} | ' + ' | '.join(cells) + ' |', flush=True)


if __name__ == '__main__':
    main()
