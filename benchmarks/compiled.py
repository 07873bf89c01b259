"""A compiled backbone (torch.compile, inductor) against the same in eager mode, plain and prompted, with relocations.

    OMP_NUM_THREADS=1 python benchmarks/compiled.py [--models vit swin] [--rounds 7] [--moves 6] [--batch 2]

On a GPU if there is one. A plain backbone's input gets a gradient in training, so that both have a backward through all
blocks. Ratios are medians of rounds in which both take turns, with smallest and largest, of CPU times (on a GPU: on the
wall). A prompt moves before each round; compilations are counted after the first forward and at the end.
"""
import argparse
import statistics
import time

import timm
import torch
from torch._dynamo.utils import counters
from tqdm import tqdm

import mmprovpt

# Some blocks of ViT-B/16, and two stages of Swin-T: compiling takes minutes on a CPU, and each block is alike.
MODELS = dict(vit=dict(model_name='vit_base_patch16_224', depth=2),
              swin=dict(model_name='swin_tiny_patch4_window7_224', depths=(2, 2), num_heads=(3, 6)))
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def build(model, num_tokens, training):
    """Frozen; with prompts if there are any."""
    torch.manual_seed(0)
    net = timm.create_model(**MODELS[model], num_classes=0).eval().requires_grad_(False)
    if num_tokens:
        mmprovpt.inject_prompts(net, dict(type='StaticPrompts', num_tokens=num_tokens, dropout=0.))
        net.train(training)
    return net.to(DEVICE)


def seconds(net, x, training):
    """One forward, or a forward and backward; and its output."""
    if DEVICE == 'cuda':
        torch.cuda.synchronize()
    clock = time.perf_counter if DEVICE == 'cuda' else time.process_time
    start = clock()
    with torch.set_grad_enabled(training):
        out = net(x)
        if training:
            out.square().mean().backward()
    if DEVICE == 'cuda':
        torch.cuda.synchronize()
    return clock() - start, out.detach()


def compare(model, num_tokens, training, args):
    """Ratios of the rounds, and compilations after the first forward and at the end."""
    torch._dynamo.reset()
    counters.clear()
    net = build(model, num_tokens, training)
    x = torch.randn(args.batch, 3, 224, 224, device=DEVICE, requires_grad=training and not num_tokens)
    compiled, ratios = torch.compile(net), []
    seconds(compiled, x, training)
    first = counters['stats']['unique_graphs']
    for turn in range(args.rounds):
        if num_tokens and turn < args.moves:
            net.prompts.relocate(turn, (turn + 1) % net.prompts.num_blocks if turn % 2 else 1)
        (eager, wanted), (fast, out) = seconds(net, x, training), seconds(compiled, x, training)
        assert torch.allclose(out, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
        ratios.append(fast / eager)
    return ratios, first, counters['stats']['unique_graphs']


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS))
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--moves', type=int, default=6)
    parser.add_argument('--batch', type=int, default=2)
    args = parser.parse_args()
    print('| backbone, prompts per block | | compiled / eager | graphs, first forward | at the end |')
    print('|---|---|---|---|---|')
    for model in tqdm(args.models, unit='model'):
        for num_tokens in (0, 10):
            for training in (False, True):
                ratios, first, last = compare(model, num_tokens, training, args)
                print(f'| {model}, {num_tokens} | {"step" if training else "inference"} | '
                      f'{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | {first} | {last} |',
                      flush=True)


if __name__ == '__main__':
    main()
