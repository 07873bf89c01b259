#!/usr/bin/env python
"""Train the rows of the paper's Table 3 (ways to adjust the distribution of prompts) on one task, and print the table.

    python benchmarks/table3/table3.py configs/demo/mask_rcnn_swin_mini_provpt_digits.py --seeds 0 1 2

The task is a config with prompts and a PromptRelocationHook, whose interval stays; the rows are the short configs in
configs/table3/, some of whose classes are in ablations.py. Every run is a trial of mmprovpt.sweep in
WORK_DIR/<row>/seed_<seed>, where its logs lie.
Who starts the script again skips what is finished and resumes the rest from its last checkpoint.
"""
import argparse
import sys
from pathlib import Path
from statistics import mean, stdev

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.registry import MODELS, init_default_scope
from tqdm import tqdm

from mmprovpt.cli.config_parts import HOOK, find_hooks, find_prompts_config, type_name
from mmprovpt.cli.options import read_config
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.errors import ConfigError
from mmprovpt.prompts import find_prompts as find_built
from mmprovpt.sweep import Trial, run_trial, write_config
from mmprovpt.trust import only_weights

ROOT = Path(__file__).resolve().parents[2]
ROWS = ('vpt', 'a_prune', 'b_prune_hyper', 'c_naive_rl', 'd_random_thompson', 'e_random_ppo', 'f_idle_thompson',
        'g_provpt', 'adding')
METRICS = dict(Accuracy='accuracy/top1', CocoMetric='coco/bbox_mAP', IoUMetric='mIoU')


def read_task(path: str, options: dict | None = None) -> Config:
    """The task, with overrides.

    Raises:
        ConfigError: There is no such file, or it has no prompts or not one hook.
    """
    cfg = read_config(path, options)
    if find_prompts_config(cfg.model) is None or find_hook(cfg) is None:
        raise ConfigError(f'{path} must be a PRO-VPT config: with prompts=dict(...) in its model and one {HOOK} among '
                          'its custom_hooks')
    return cfg


def find_hook(cfg: Config) -> ConfigDict | None:
    """The relocation hook among a config's custom hooks, if there is exactly one."""
    mine = find_hooks(cfg)
    return mine[0] if len(mine) == 1 else None


def count_prompts(task: Config) -> list[int]:
    """Prompts of each block, which a config need not tell: builds the model."""
    init_default_scope(task.get('default_scope', 'mmengine'))
    return find_built(MODELS.build(task.model)).distribution.tolist()


def row_config(task: Config, row: str, seed: int, counts: list[int]) -> Config:
    """A row's prompts and relocation in a copy of the task.

    Args:
        task: Of ``read_task``; it stays as it is.
        row: One of ROWS.
        seed: The runner's.
        counts: Prompts of each block.
    """
    cfg = Config(task.to_dict())
    change = Config.fromfile(ROOT / 'configs' / 'table3' / f'{row}.py', import_custom_modules=False)
    if 'custom_imports' in change:
        known = cfg.setdefault('custom_imports', ConfigDict(imports=[]))
        known.imports = [*known.imports, *change.custom_imports.imports]
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    hook, prompts = find_hook(cfg), change.get('prompts', {})
    scaled = [round(count * prompts.get('scale', 1)) for count in counts]
    find_prompts_config(cfg.model).num_tokens = scaled
    if change.relocation is None:
        cfg.custom_hooks.remove(hook)
        return cfg
    hook.update(change.relocation)
    moving = sum(scaled) * (1 - change.relocation.pruner.get('keep', 1))
    if prompts.get('spare', False):
        moving = sum(counts) - sum(scaled)
        find_prompts_config(cfg.model).update(type='SparePrompts', num_spare=moving)
    if moving:  # in the first half of the training, lest the last that come are never tuned
        hook.relocate_per_period = max(1, round(2 * moving / max(1, num_periods(cfg))))
    return cfg


def num_periods(cfg: Config) -> int:
    """Periods in the training that a config describes."""
    hook = find_hook(cfg)
    if 'max_epochs' in cfg.train_cfg and not hook.get('by_epoch', True):
        raise ConfigError(f'the training counts epochs ({cfg.train_cfg.max_epochs}), but {HOOK} iterations: give it '
                          'by_epoch=True')
    return cfg.train_cfg.get('max_epochs', cfg.train_cfg.get('max_iters')) // hook.get('interval', 1)


def metric_of(task: Config) -> str:
    """The metric that a run must give, by the task's evaluator.

    Raises:
        ConfigError: It is not known for this evaluator.
    """
    evaluator = task.get('val_evaluator') or {}
    first = evaluator[0] if isinstance(evaluator, (list, tuple)) else evaluator
    if type_name(first) not in METRICS:
        raise ConfigError('which metric counts is known of '
                          f'{", ".join(METRICS)} only, but val_evaluator is {type_name(first)}: name it with --metrics')
    return METRICS[type_name(first)]


def train(cfg: Config, folder: Path, metric: str) -> dict:
    """Train in this process, or take what is there; the last metrics of validation, and the distribution.

    Raises:
        ConfigError: The training diverged, or the folder holds another one.
    """
    write_config(Trial(folder, 'search', 0., 0., cfg))
    result = run_trial(folder, 'search', metric)
    if result.get('error'):
        raise ConfigError(f'{folder}: {result["error"]}')
    return dict(result, start=list(find_prompts_config(cfg.model).num_tokens))


def table(results: dict[str, list[dict]], metrics: list[str]) -> str:
    """Markdown; mean ± standard deviation over seeds."""
    def cell(values: list[float]) -> str:
        return f'{mean(values):.4g}' + (f' ± {stdev(values):.2g}' if len(values) > 1 else '')

    head = ['row', 'seeds', 'prompts, first → last', 'moves', *metrics, 'prompts per block at the end']
    lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    for row, runs in results.items():
        counts = [cell([sum(run[key]) for run in runs]) for key in ('start', 'distribution')]
        last = [mean(run['distribution'][block] for run in runs) for block in range(len(runs[0]['distribution']))]
        lines.append(' | '.join([
            f'| {row}', str(len(runs)), ' → '.join(counts), cell([run['moves'] for run in runs]),
            *(cell([run['metrics'][name] for run in runs]) for name in metrics),
            ' '.join(f'{count:.3g}' for count in last) + ' |']))
    return '\n'.join(lines)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='the task')
    parser.add_argument('--rows', nargs='+', default=ROWS, choices=ROWS, metavar='ROW', help=', '.join(ROWS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--metrics', nargs='+', help='columns; default: all that validation gives')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/table3/<name of the task>')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='as in tools/train.py')
    return parser.parse_args()


@user_errors()
def main():
    args = parse_args()
    sys.path.insert(0, str(ROOT))  # for the classes of ablations.py
    task = read_task(args.config, args.cfg_options)
    metric = args.metrics[0] if args.metrics else metric_of(task)
    counts = count_prompts(task)
    work_dir = args.work_dir or ROOT / 'work_dirs' / 'table3' / Path(args.config).stem
    results: dict[str, list[dict]] = {}
    with tqdm(total=len(args.rows) * len(args.seeds), unit='run') as bar:
        for seed in args.seeds:
            for row in args.rows:
                bar.set_description(f'{row}, seed {seed}')
                with only_weights():
                    run = train(row_config(task, row, seed, counts), work_dir / row / f'seed_{seed}', metric)
                results.setdefault(row, []).append(run)
                bar.update()
    known = list(results[args.rows[0]][0]['metrics'])
    unknown = sorted(set(args.metrics or []) - set(known))
    if unknown:
        raise ConfigError(f'unknown metrics {unknown}; validation gives {", ".join(known)}')
    print(table(results, args.metrics or known))


if __name__ == '__main__':
    main()
