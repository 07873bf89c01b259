"""How much of a reward is due to the move, and how much to chance.

    python benchmarks/reward_noise.py --weights vit_small_patch14_dinov2.pth [--epochs 8] [--after 1 4] [--orders 3]

Task and training: benchmarks/fashion_task.py; a period is one epoch of 16 iterations.

Table 1, the estimator of a period's loss (``loss_tail``). From one state of training, one prompt is given to each of
the 12 blocks in turn, and each time the next period is trained with the same few orders of images and dropouts.
*Between*: standard deviation of the period's loss over blocks, that due to chance taken off (two-way analysis of
variance, blocks × orders), 0 where chance alone would bring more. *Within*: over orders, for one block. A reward holds
this noise twice, once in the loss before. *Ratio*: between / within; p: of the F test that blocks differ.

Table 2, the baseline (``reward_baseline``): a run in which nothing moves. All of its rewards are trend and noise.
*Mean*: of the rewards less baseline, *std*: over periods, both over those from the third on.
"""
import argparse
import copy

import numpy as np
import torch
from fashion_task import Classifier, add_options, load, optimizer
from scipy.stats import f
from tqdm import tqdm

from mmprovpt.relocation import PeriodLoss, RewardBaseline

TAILS = (1.0, 0.5, 0.25)


def period(model, optim, x, y, seed: int) -> list[float]:
    """Train one epoch; its losses."""
    torch.manual_seed(seed)
    model.train()
    losses = []
    for index in torch.randperm(len(x)).split(64):
        loss = model.loss(x[index], y[index])
        loss.backward()
        optim.step()
        optim.zero_grad()
        losses.append(float(loss))
    return losses


def estimate(losses: list[float], tail: float) -> float:
    """Loss of a period."""
    loss = PeriodLoss(tail)
    for position, value in enumerate(losses):
        loss.add(value, position, len(losses))
    return loss.compute()[0]


def after_moves(model, optim, x, y, orders: int, bar) -> np.ndarray:
    """(L, orders, iterations) losses of the period after a prompt went to each block; leaves all as it was."""
    state = copy.deepcopy((model.state_dict(), optim.state_dict()))
    losses = []
    for block in range(model.prompts.num_blocks):
        losses.append([])
        for order in range(orders):
            model.load_state_dict(state[0])
            optim.load_state_dict(copy.deepcopy(state[1]))
            model.prompts.relocate(0, block)
            losses[-1].append(period(model, optim, x, y, 10_000 + order))
            bar.update()
    model.load_state_dict(state[0])
    optim.load_state_dict(state[1])
    return np.array(losses)


def analyse(losses: np.ndarray) -> dict[float, tuple]:
    """(between, within, ratio, p) by tail: blocks and orders are crossed, as every block sees the same orders."""
    results = {}
    for tail in TAILS:
        values = np.array([[estimate(order, tail) for order in block] for block in losses])
        blocks, orders = values.shape
        rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
        degrees = blocks - 1, (blocks - 1) * (orders - 1)
        noise, signal = rest.var() * rest.size / degrees[1], orders * values.mean(1).var(ddof=1)
        between = max((signal - noise) / orders, 0)**.5
        within = values.var(1, ddof=1).mean()**.5
        results[tail] = between, within, between / within, float(f.sf(signal / noise, *degrees))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument('--epochs', type=int, default=8)
    parser.add_argument('--after', type=int, nargs='+', default=[1, 4], help='epochs after which prompts move')
    parser.add_argument('--orders', type=int, default=3)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    x, y = (t.to(args.device) for t in load(args.data, 'train', 1000, args.seed))
    model = Classifier(args.weights, num_tokens=5).to(args.device)
    optim = optimizer(model)
    static, tables = [], {}
    with tqdm(total=args.epochs + len(args.after) * model.prompts.num_blocks * args.orders, unit='epoch') as bar:
        for done in range(args.epochs):
            if done in args.after:
                tables[done] = analyse(after_moves(model, optim, x, y, args.orders, bar))
            static.append(period(model, optim, x, y, args.seed * 1000 + done))
            bar.update()
    print('| after epoch | loss_tail | between | within | ratio | p |\n|---|---|---|---|---|---|')
    for done, table in tables.items():
        for tail, (between, within, ratio, p) in table.items():
            print(f'| {done} | {tail} | {between:.4f} | {within:.4f} | {ratio:.2f} | {p:.2g} |')
    print('\n| loss_tail | baseline | mean | std |\n|---|---|---|---|')
    for tail in TAILS:
        losses = [estimate(each, tail) for each in static]
        for kind in (None, 'mean'):
            baseline = RewardBaseline(kind)
            credit = [baseline.advantage(before - after) for before, after in zip(losses, losses[1:])][2:]
            print(f'| {tail} | {kind} | {np.mean(credit):.4f} | {np.std(credit, ddof=1):.4f} |')


if __name__ == '__main__':
    main()
