"""Which kinds of work a training step consists of, by PyTorch's profiler: what bounds a ratio of performance.py.

    OMP_NUM_THREADS=1 python benchmarks/performance/kinds_of_work.py [--model Swin-T] [--methods full ...]

One line per kind: self CPU time in ms of one step of each method, the median of --rounds, in turn; and the sum. On a
CPU alone.
"""
import argparse
import re
import statistics
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]  # from a clone, installed or not

import subjects  # noqa: E402
import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402
from tqdm import tqdm  # noqa: E402

# Names of PyTorch's operators; the first that fits counts.
KINDS = {
    'attention': 'scaled_dot_product|flash',
    'convolutions': 'convolution|conv2d',
    'matrix products': r'::(addmm|mm|bmm|baddbmm)$',
    'norms, softmax, activations': 'norm|softmax|gelu|relu|sigmoid',
    'copies': r'::(cat|copy_|clone|roll|index\w*|gather|scatter\w*|stack|repeat|fill_|zero_|slice_backward|'
              r'constant_pad_nd|upsample\w*)$',
    'sums and products of elements': r'::(add|add_|sub|mul|mul_|div|div_|sum|where|neg|bernoulli_)$',
}


def kind_of(operator):
    """Of KINDS, or 'the rest'."""
    return next((kind for kind, names in KINDS.items() if re.search(names, operator)), 'the rest')


def profiled(subject, batch):
    """Milliseconds of a step by kind."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        subject.step(batch)
    times = dict.fromkeys([*KINDS, 'the rest'], 0.)
    for event in found.key_averages():
        times[kind_of(event.key)] += event.self_cpu_time_total / 1000
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='Mask R-CNN Swin-T', help='of performance.py')
    parser.add_argument('--methods', nargs='+', default=['full', 'linear', 'VPT 10'], choices=list(subjects.METHODS))
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    size = subjects.size_of(args.model)
    base = subjects.build(args.model, 'mmpretrain', size)
    batch = subjects.images(args.model, size, args.batch, 'cpu')
    ready = {method: subjects.Subject(base, method, 'float32', 'cpu') for method in args.methods}
    for subject in ready.values():
        subject.begin_training()
        subject.step(batch)
    rounds = [{method: profiled(subject, batch) for method, subject in ready.items()}
              for _ in tqdm(range(args.rounds), disable=None)]
    print(f'{args.model}, {args.batch} × {size[0]}×{size[1]}, float32, {torch.get_num_threads()} thread(s), ms\n')
    print(f'| kind | {" | ".join(ready)} |\n|{"---|" * (len(ready) + 1)}')
    for kind in [*KINDS, 'the rest']:
        cells = [f'{statistics.median(found[method][kind] for found in rounds):.0f}' for method in ready]
        print(f'| {kind} | {" | ".join(cells)} |')
    sums = [f'{statistics.median(sum(found[method].values()) for found in rounds):.0f}' for method in ready]
    print(f'| all | {" | ".join(sums)} |')


if __name__ == '__main__':
    main()
