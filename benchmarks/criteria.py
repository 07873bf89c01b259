"""How well each idleness criterion foresees what really happens when a prompt is taken away.

    python benchmarks/criteria.py --weights vit_small_patch14_dinov2.pth [--seeds 3] [--epochs 1 4 7]

Trains prompts on the task of benchmarks/fashion_task.py. At initialisation and after the given epochs it takes each of
the 60 prompts away in turn and compares the change of the loss on 256 training images with every criterion's score,
estimated over one epoch of gradients at frozen weights. Columns, each a mean ± standard deviation over seeds:

* spearman: rank correlation with true removal,
* rank: where the criterion's first choice stands among the 60 by true removal (1: the idlest),
* top 5: the best true idleness among its five first choices, divided by the best of all (1: found it) where that is
  positive,
* verified: rank of the one of its top 5 that a true removal on 128 *other* training images prefers (verify_top=5).
"""
import argparse

import torch
from fashion_task import Classifier, add_options, epoch, load, optimizer
from scipy.stats import spearmanr
from tqdm import tqdm

from mmprovpt.relocation import CRITERIA, true_idleness

TOP = 5


def scores(model, x, y, criterion, batch=64):
    """(N,) mean score over one epoch of gradients, without training."""
    measured = CRITERIA[criterion](model.prompts, score_interval=1)
    model.train()
    for xs, ys in zip(x.split(batch), y.split(batch)):
        measured.begin()
        loss = model.loss(xs, ys)
        loss.backward()
        measured.update(loss)
    measured.close()
    model.zero_grad()
    return measured.compute()[0]


def compare(score, truth, verified):
    """The four columns for one criterion."""
    order = truth.argsort(descending=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(1, len(order) + 1)
    top = score.topk(TOP).indices
    best = float(truth.max())
    preferred = top[verified[top].argmax()]
    return (float(spearmanr(score, truth).statistic), float(ranks[score.argmax()]),
            float(truth[top].max()) / best if best > 0 else float('nan'), float(ranks[preferred]))


def run(args, seed, bar):
    """{(after epoch, criterion): columns} of one seed."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, y = (t.to(args.device) for t in load(args.data, 'train', 1000, seed))
    mixed = torch.randperm(len(x), generator=generator)
    x, y = x[mixed], y[mixed]
    model = Classifier(args.weights, num_tokens=5).to(args.device)
    optim, results = optimizer(model), {}
    # A head of zeros lets no gradient through: 'initialisation' is that of prompts, under a trained head.
    warm = torch.optim.AdamW(model.head.parameters(), lr=1e-2)
    with torch.no_grad():
        features = torch.cat([model.eval().backbone(part) for part in x.split(250)])
    for _ in range(100):
        warm.zero_grad()
        torch.nn.functional.cross_entropy(model.head(features), y).backward()
        warm.step()
    everything = range(len(model.prompts.tokens))
    for done in range(max(args.epochs) + 1):
        if done in (0, *args.epochs):
            truth = true_idleness(model.prompts, everything, lambda: model.evaluate(x[:256], y[:256])[0])
            given = {name: scores(model, x, y, name) for name in CRITERIA}
            candidates = sorted({k for score in given.values() for k in score.topk(TOP).indices.tolist()})
            check = torch.full_like(truth, float('nan'))
            check[candidates] = true_idleness(
                model.prompts, candidates, lambda: model.evaluate(x[256:384], y[256:384])[0])
            for name, score in given.items():
                results[done, name] = compare(score, truth, check)
            results[done, 'best'] = float(truth.max())
        if done < max(args.epochs):
            epoch(model, optim, x, y, generator)
        bar.update()
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--epochs', type=int, nargs='+', default=[1, 4, 7])
    args = parser.parse_args()
    with tqdm(total=args.seeds * (max(args.epochs) + 1), unit='epoch') as bar:
        runs = [run(args, seed, bar) for seed in range(args.seeds)]
    print('| after epoch | best true idleness | criterion | spearman | rank | top 5 | verified |')
    print('|---|---|---|---|---|---|---|')
    for done, name in runs[0]:
        if name == 'best':
            continue
        best = torch.tensor([r[done, 'best'] for r in runs])
        values = torch.tensor([r[done, name] for r in runs])
        spread = values.std(0) if len(runs) > 1 else torch.zeros(4)
        cells = [f'{m:.2f} ± {s:.2f}' if i in (0, 2) else f'{m:.0f} ± {s:.0f}'
                 for i, (m, s) in enumerate(zip(values.mean(0), spread))]
        print(f'| {done} | {best.mean():.4f} | {name} | ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
    main()
