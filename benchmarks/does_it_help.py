"""Does relocation help? Equal budgets with and without it, on real images and a real pre-trained backbone.

    python benchmarks/does_it_help.py --weights vit_small_patch14_dinov2.pth [--seeds 3] [--epochs 8] [--shard 0/2]

Task and training: benchmarks/fashion_task.py (1000 training and 2000 test images from Fashion-MNIST, 60 prompts). All
methods of one seed share images, initial prompts, order of images and dropout's generator, so differences are paired.
Tested are the averaged prompts and head (EMA over some 20 iterations); the last iterate's figures are in --out too.
Every finished run is a line of --out; a script that starts again goes on behind it, so it may be killed, and several
may share the work (--shard i/n). The table is of what is there.
"""
import argparse
import json
from pathlib import Path

import torch
from fashion_task import Classifier, add_options, load, optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmprovpt.datasets.miniature_tasks import TASKS
from mmprovpt.relocation import RelocationSession, true_idleness

DECAY = 0.95  # per iteration, of the averaged parameters that are tested
SETTING = ('task', 'start', 'epochs', 'interval', 'begin', 'end', 'momentum')
HELD = 64  # images of a verification

RANDOM, PAPER = dict(type='RandomPruner'), dict(type='IdlenessPruner', criterion='taylor')
FISHER = dict(type='IdlenessPruner', criterion='gate_fisher', score_interval=1)
VERIFIED = dict(FISHER, verify_top=3)
UNIFORM, PPO = dict(type='UniformAllocator'), dict(type='PPOAllocator')
# name -> pruner and allocator, or None: nothing moves
METHODS = dict(
    static=None,
    random=(RANDOM, UNIFORM),
    verified_random=(VERIFIED, UNIFORM),
    paper=(PAPER, PPO),
    fisher_ppo=(FISHER, PPO),
    verified_ppo=(VERIFIED, PPO),
    verified_need=(VERIFIED, dict(type='NeedAllocator')),
    verified_thompson=(VERIFIED, dict(type='ThompsonAllocator')),
)

# Distributions to begin with. A third of the blocks has all prompts: is there something to be won, and who finds it?
STARTS = dict(uniform=[5] * 12, early=[15] * 4 + [0] * 8, middle=[0] * 4 + [15] * 4 + [0] * 4, late=[0] * 8 + [15] * 4)


class Run:
    """One training; ``result`` says what came of it."""

    def __init__(self, args, method: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.held = torch.Generator().manual_seed(seed)
        self.x, self.y = (t.to(args.device) for t in load(args.data, 'train', 1000, seed, args.task))
        self.test = [t.to(args.device) for t in load(args.data, 'test', 2000, task=args.task)]
        self.model = Classifier(args.weights, STARTS[args.start]).to(args.device)
        self.prompts = self.model.prompts
        self.optim = optimizer(self.model)
        self.args, self.method, self.seed = args, method, seed
        self.moves: list[tuple] = []
        self.losses: list[float] = []
        # At a constant learning rate the last iterate is noisy (a point or two from one epoch to the next).
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
        self.average.update_parameters(self.model)  # the first one copies
        self.session = None
        if METHODS[method] is not None:
            pruner, allocator = METHODS[method]
            self.session = RelocationSession(
                self.prompts, self.optim, pruner, allocator, seed=seed, averages=[self.average])

    def batches(self):
        for _ in range(self.args.epochs):
            yield from torch.randperm(len(self.x), generator=self.generator).split(64)

    def train(self) -> None:
        self.model.train()
        batches = list(self.batches())
        for done, index in enumerate(batches, 1):
            if self.session is not None:
                self.session.begin_iteration()
            loss = self.model.loss(self.x[index], self.y[index])
            loss.backward()
            if self.session is not None:
                self.session.end_iteration(loss)
            self.optim.step()
            self.optim.zero_grad()
            self.losses.append(float(loss.detach()))
            self.average.update_parameters(self.model)
            # What moves last would never be tuned.
            if (self.session is not None and done % self.args.interval == 0
                    and self.args.begin <= done < min(self.args.end, len(batches))):
                self.relocate()

    def relocate(self) -> None:
        chosen = torch.randperm(len(self.x), generator=self.held)[:HELD]
        candidates = self.session.candidates()
        truth = true_idleness(
            self.prompts, candidates, lambda: self.model.evaluate(self.x[chosen], self.y[chosen])[0])
        for move in self.session.close_period(dict(zip(candidates, truth.tolist()))).moves:
            if self.args.momentum == 'zero':
                for value in self.optim.state[self.prompts.tokens].values():
                    if value.shape == self.prompts.tokens.shape:
                        value[move.prompt] = 0
            self.moves.append((len(self.losses), *move))

    def result(self) -> dict:
        self.train()
        last_loss, last_accuracy = self.model.evaluate(*self.test)
        loss, accuracy = self.average.module.evaluate(*self.test)
        last = self.losses[-16:]
        return dict(
            method=self.method, seed=self.seed, **{key: getattr(self.args, key) for key in SETTING},
            accuracy=accuracy, test_loss=float(loss), last_accuracy=last_accuracy, last_loss=float(last_loss),
            train_loss=sum(last) / len(last), distribution=self.prompts.distribution.tolist(), moves=self.moves)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()] if path.exists() else []


def same_setting(row: dict, args) -> bool:
    """Whether a row belongs to the table; where nothing moves, no more than the epochs matters."""
    keys = ['task', 'start', 'epochs'] if METHODS[row['method']] is None else SETTING
    return all(row[key] == getattr(args, key) for key in keys)


def cell(values: list[float], digits: int) -> str:
    values = torch.tensor(values, dtype=torch.float64)
    spread = f' ± {values.std():.{digits}f}' if len(values) > 1 else ''
    return f'{values.mean():.{digits}f}{spread}'


def table(rows: list[dict]) -> str:
    """Markdown; mean ± standard deviation over seeds, differences to static seed by seed."""
    static = {row['seed']: row for row in rows if row['method'] == 'static'}
    lines = ['| method | seeds | accuracy | less static | test loss | less static | training loss | moves '
             '| prompts per block at the end |', '|---|---|---|---|---|---|---|---|---|']
    for method in METHODS:
        mine = sorted((row for row in rows if row['method'] == method), key=lambda row: row['seed'])
        paired = [row for row in mine if row['seed'] in static]
        if not mine or not paired:
            continue
        counts = torch.tensor([row['distribution'] for row in mine]).double().mean(0)
        lines.append(' | '.join([
            f'| {method}', str(len(mine)), cell([row['accuracy'] for row in mine], 1),
            cell([row['accuracy'] - static[row['seed']]['accuracy'] for row in paired], 2),
            cell([row['test_loss'] for row in mine], 3),
            cell([row['test_loss'] - static[row['seed']]['test_loss'] for row in paired], 4),
            cell([row['train_loss'] for row in mine], 3),
            cell([len(row['moves']) for row in mine], 1),
            ' '.join(f'{count:.1f}' for count in counts) + ' |']))
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument('--task', choices=list(TASKS), default='category', help='of the miniature VTAB')
    parser.add_argument('--start', choices=list(STARTS), default='uniform', help='distribution to begin with')
    parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=list(METHODS))
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--epochs', type=int, default=8)
    parser.add_argument('--interval', type=int, default=8, help='iterations of a period; an epoch has 16')
    parser.add_argument('--begin', type=int, default=0, help='no relocation before this iteration')
    parser.add_argument('--end', type=int, default=10**6, help='no relocation from this iteration on')
    parser.add_argument('--momentum', choices=['keep', 'zero'], default='keep', help="Adam's, of a prompt that moves")
    parser.add_argument('--shard', default='0/1', help='i/n: every n-th run from the i-th')
    parser.add_argument('--out', type=Path, default=Path('does_it_help.jsonl'))
    args = parser.parse_args()
    shard, shards = map(int, args.shard.split('/'))
    runs = [(seed, method) for seed in range(args.seeds) for method in args.methods][shard::shards]
    for number, (seed, method) in enumerate(runs, 1):
        known = [row for row in read(args.out) if same_setting(row, args)]
        if not any((row['seed'], row['method']) == (seed, method) for row in known):
            print(f'run {number} of {len(runs)}: {method}, seed {seed}', flush=True)
            with args.out.open('a', encoding='utf-8') as file:
                file.write(json.dumps(Run(args, method, seed).result()) + '\n')
    print(table([row for row in read(args.out) if same_setting(row, args)]))


if __name__ == '__main__':
    main()
