"""What is compared: arms, as configs and what they change. study.py runs them."""
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tables import read_rows, winners

from mmprovpt.errors import ConfigError

TASKS = ('category', 'digits', 'count', 'location', 'orientation', 'size', 'cifar10_1k')
TWO = ('category', 'size')  # on which methods are tuned
IDLEST, TAYLOR = (dict(type='IdlenessPruner', criterion=name) for name in ('gate_fisher', 'taylor'))
RANDOM, LEAST, ANY_IDLEST = (dict(type=name, criterion='gate_fisher')
                             for name in ('RandomPruner', 'LeastIdlePruner', 'AnyIdlestPruner'))
VPT = 'miniature_vtab/vpt'
AUTHORS = "PRO-VPT, authors' code"
STAY, UNIFORM, NEED, PPO = (dict(type=f'{name}Allocator') for name in ('Stay', 'Uniform', 'Need', 'PPO'))


class Run(NamedTuple):
    """One training.

    Attributes:
        arm: Its name in tables.
        task: One of TASKS, 'planted/<layout>', 'camvid', 'camvid/<head>' or 'detection'.
        seed: Of the runner.
        config: Its file in configs/, without '.py'.
        options: Keys with dots, as --cfg-options takes them.
        phase: 'search' is evaluated on val200, having trained on the other 800 images; 'final' on the test images.
    """
    arm: str
    task: str
    seed: int
    config: str
    options: dict[str, Any]
    phase: str = 'final'


def setting(epochs: int, lr: float, weight_decay: float = 1e-4, clip: float | None = 0.25,
            cosine: bool = False) -> dict[str, Any]:
    """Length and rates; the rate is constant, or has a tenth of the epochs for warm-up and then a cosine."""
    begin = max(1, epochs // 10)
    schedule = [dict(type='LinearLR', start_factor=0.001, by_epoch=True, begin=0, end=begin,
                     convert_to_iter_based=True),
                dict(type='CosineAnnealingLR', by_epoch=True, begin=begin, end=epochs, convert_to_iter_based=True)]
    return {'train_cfg.max_epochs': epochs, 'train_cfg.val_interval': epochs, 'optim_wrapper.optimizer.lr': lr,
            'optim_wrapper.optimizer.weight_decay': weight_decay,
            'optim_wrapper.clip_grad': None if clip is None else dict(max_norm=clip),
            'param_scheduler': schedule if cosine else []}


def moving(pruner: dict, allocator: dict, arrival: str | dict = 'keep', **options) -> dict[str, Any]:
    """The relocation hook alone among the custom hooks."""
    return dict(custom_hooks=[dict(dict(type='mmprovpt.PromptRelocationHook', interval=1, by_epoch=True, pruner=pruner,
                                        allocator=allocator, arrival=arrival), **options)])


def arms_of_gain() -> dict[str, dict[str, Any]]:
    """Where a gain comes from: the place, the new birth, the choice of the prompt, or only less overfitting?"""
    prompts = 'model.backbone.prompts.dropout'
    return {
        'static': {},
        'idlest, in place, shrunk': moving(IDLEST, STAY, 'rebirth'),
        'idlest, moved at random, kept': moving(IDLEST, UNIFORM),
        'idlest, moved at random, shrunk': moving(IDLEST, UNIFORM, 'rebirth'),
        'random, in place, shrunk': moving(RANDOM, STAY, 'rebirth'),
        'least idle, in place, shrunk': moving(LEAST, STAY, 'rebirth'),
        'idlest of any sign, in place, shrunk': moving(ANY_IDLEST, STAY, 'rebirth'),
        'idlest, in place, drawn anew': moving(IDLEST, STAY, 'reinit'),
        'idlest, in place, shrunk, momentum 0': moving(IDLEST, STAY, dict(type='rebirth', forgets=True)),
        'idlest, moved by need, shrunk': moving(IDLEST, NEED, 'rebirth'),
        'idlest, moved by PPO, shrunk': moving(IDLEST, PPO, 'rebirth'),
        'taylor, moved by PPO, kept (paper)': moving(TAYLOR, PPO),
        'taylor, moved by PPO, shrunk': moving(TAYLOR, PPO, 'rebirth'),
        AUTHORS: {},
        'idlest, in place, shrunk, every 4 iterations':
            moving(IDLEST, STAY, 'rebirth', by_epoch=False, interval=4),
        'idlest, in place, shrunk, every 2 epochs': moving(IDLEST, STAY, 'rebirth', interval=2),
        'rows of constant length': dict(custom_hooks=[dict(type='mmprovpt.ConstantLengthHook')]),
        'weight decay 0.001': {'optim_wrapper.optimizer.weight_decay': 1e-3},
        'weight decay 0.01': {'optim_wrapper.optimizer.weight_decay': 1e-2},
        'dropout 0': {prompts: 0.0},
        'dropout 0.3': {prompts: 0.3},
        'dropout 0.5': {prompts: 0.5},
    }


# Those that are run on all tasks.
ON_ALL = ('static', 'idlest, in place, shrunk', 'random, in place, shrunk', 'idlest, moved at random, shrunk',
          'idlest, moved by PPO, shrunk', AUTHORS)


def gain(results: Path, names: tuple[str, ...] = (), tasks: tuple[str, ...] = TWO, epochs: int = 40,
         seeds: int = 3) -> list[Run]:
    """Arms on tasks, paired seeds; all arms if none are named."""
    return [Run(arm, task, seed, 'miniature_vtab/provpt_authors' if arm == AUTHORS else VPT,
                {**setting(epochs, 0.3), **options})
            for seed in range(seeds) for arm, options in arms_of_gain().items() if arm in (names or [arm])
            for task in tasks]


def gain_all(results: Path) -> list[Run]:
    """Some arms on all tasks, one seed, as long as in `main`: at 40 epochs they would take hours of a core."""
    return gain(results, ON_ALL, TASKS, epochs=10, seeds=1)


# Method → config, what it changes, learning rates to choose from, whether the rate falls, clip of the gradients' norm.
METHODS: dict[str, tuple[str, dict, tuple[float, ...], bool, float | None]] = {
    'linear': ('miniature_vtab/linear', {}, (0.02, 0.1, 0.5, 2.5), True, None),
    'VPT-Deep, no clip': (VPT, {}, (0.0025, 0.005, 0.01, 0.02), True, None),
    'VPT-Deep': (VPT, {}, (0.1, 0.3, 1.0, 3.0), True, 0.25),
    'VPT-Deep, constant rate': (VPT, {}, (0.1, 0.3, 1.0, 3.0), False, 0.25),
    'PRO-VPT, paper': (VPT, moving(TAYLOR, PPO), (0.0025, 0.005, 0.01, 0.02), False, None),
    'PRO-VPT, cosine': (VPT, moving(TAYLOR, PPO), (0.1, 0.3, 1.0, 3.0), True, 0.25),
    'PRO-VPT, authors': ('miniature_vtab/provpt_authors', {}, (0.1, 0.3, 1.0, 3.0), False, 0.25),
    're-birth in place': (VPT, moving(IDLEST, STAY, 'rebirth'), (0.1, 0.3, 1.0, 3.0), False, 0.25),
    're-birth in place, cosine': (VPT, moving(IDLEST, STAY, 'rebirth'), (0.1, 0.3, 1.0, 3.0), True, 0.25),
}


def tune(results: Path) -> list[Run]:
    """Four learning rates times two weight decays for each method, on two tasks."""
    runs = []
    for method, (config, options, rates, cosine, clip) in METHODS.items():
        for task in TWO:
            for lr in rates:
                for decay in (1e-4, 1e-2):
                    runs.append(Run(f'{method} at {lr:g}, {decay:g}', task, 0, config,
                                    {**setting(10, lr, decay, clip, cosine), **options}, 'search'))
    return sorted(runs, key=lambda run: TWO.index(run.task))


def rows_of_tuning(results: Path, tuning: str) -> list[dict]:
    """All of its trainings.

    Raises:
        ConfigError: The tuning is not complete.
    """
    rows = read_rows(results / f'{tuning}.jsonl')
    missing = len(EXPERIMENTS[tuning](results)) - len(rows)
    if missing:
        raise ConfigError(f'{missing} trainings of the experiment {tuning!r} are missing in {results}: run it first')
    return rows


def settings(results: Path, tuning: str, measures: tuple[str, ...]) -> list[str]:
    """Arms that won a tuning, which must be complete, by any of the measures."""
    rows = rows_of_tuning(results, tuning)
    return sorted({arm for measure in measures for arm in winners(rows, measure).values()})


def tuned(arm: str, epochs: int, task: str, seed: int) -> Run:
    """A method at the setting that its arm names."""
    method, rates = arm.split(' at ')
    lr, decay = rates.split(', ')
    config, options, _, cosine, clip = METHODS[method]
    return Run(arm, task, seed, config, {**setting(epochs, float(lr), float(decay), clip, cosine), **options})


def main_(results: Path) -> list[Run]:
    """Every method at its winner on every task: five paired seeds, 10 epochs; last iterate and average each chosen."""
    return [tuned(arm, 10, task, seed) for seed in range(5)
            for arm in settings(results, 'tune', ('average_accuracy', 'last_accuracy')) for task in TASKS]


SAME = '0.3, 0.01'


def same_setting(results: Path) -> list[Run]:
    """VPT-Deep at the setting that won for PRO-VPT with its schedule: is it prompts that move, or the setting?"""
    return [tuned(f'VPT-Deep at {SAME}', 10, task, seed) for seed in range(5) for task in TASKS]


MATTER_MOST = ('VPT-Deep', 'PRO-VPT, cosine', 're-birth in place, cosine')  # and VPT-Deep at SAME
MATTER = (*MATTER_MOST, 'PRO-VPT, paper', 'PRO-VPT, authors', 're-birth in place')


def longer(results: Path, epochs: int, tasks: tuple[str, ...], methods: tuple[str, ...]) -> list[Run]:
    """The methods that matter, longer, at what won for ten epochs by the average, and VPT-Deep at PRO-VPT's setting."""
    won = [arm for arm in settings(results, 'tune', ('average_accuracy',)) if arm.split(' at ')[0] in methods]
    return [tuned(arm, epochs, task, seed) for seed in range(3) for arm in dict.fromkeys((f'VPT-Deep at {SAME}', *won))
            for task in tasks]


# Planted truth: tasks whose labels follow from what a teacher's prompts change, and where it has them.
LAYOUTS = dict(
    early=[15] * 4 + [0] * 8, late=[0] * 8 + [15] * 4,
    block_2=[0, 0, 12] + [0] * 9, block_6=[0] * 6 + [12] + [0] * 5)
OTHERS = dict(early='late', late='early', block_2='block_6', block_6='block_2')


def prompts_of(layout: list[int]) -> dict[str, Any]:
    """A distribution to begin with."""
    return {'model.backbone.prompts.num_tokens': layout}


def uniform(layout: list[int]) -> list[int]:
    """As many prompts, equally many in each block."""
    return [sum(layout) // len(layout)] * len(layout)


def layouts(results: Path) -> list[Run]:
    """Does it pay a student to have the teacher's layout? Only where it does, its recovery means something."""
    return [Run(arm, f'planted/{task}', seed, VPT, {**setting(10, 0.3), **prompts_of(start)})
            for seed in range(3) for task, layout in LAYOUTS.items()
            for arm, start in (('uniform', uniform(layout)), ("teacher's", layout),
                               ('another', LAYOUTS[OTHERS[task]]))]


PAYS = 'block_2'  # the task where `layouts` pays


def in_their_place(row: dict) -> int:
    """How many prompts of a final distribution are where that task's teacher has its own; of 12, 1 by chance."""
    return sum(map(min, row['distribution'], LAYOUTS[PAYS]))


def recovery(results: Path) -> list[Run]:
    """How much of the layout is found from the uniform one, and what that gains."""
    layout = LAYOUTS[PAYS]
    score_oracle = dict(type='OraclePruner', criterion='gate_fisher', layout=layout)
    place_oracle = dict(type='OracleAllocator', layout=layout)
    verified = dict(IDLEST, verify_top=12, verify_batches=4)
    arms = {
        'uniform, static': {},
        "teacher's, static": prompts_of(layout),
        'random, moved at random, kept': moving(RANDOM, UNIFORM),
        'random, moved at random, shrunk': moving(RANDOM, UNIFORM, 'rebirth'),
        'idlest, moved at random, shrunk': moving(IDLEST, UNIFORM, 'rebirth'),
        'idlest, moved by need, shrunk': moving(IDLEST, NEED, 'rebirth'),
        'idlest, moved by PPO, kept': moving(IDLEST, PPO),
        'idlest, moved by PPO, shrunk': moving(IDLEST, PPO, 'rebirth'),
        'taylor, moved by PPO, kept': moving(TAYLOR, PPO),
        'taylor, moved by PPO, shrunk': moving(TAYLOR, PPO, 'rebirth'),
        'verified, moved at random, shrunk': moving(verified, UNIFORM, 'rebirth'),
        'idlest, moved by the oracle, shrunk': moving(IDLEST, place_oracle, 'rebirth'),
        'oracle, moved at random, shrunk': moving(score_oracle, UNIFORM, 'rebirth'),
        'oracle, moved by the oracle, kept': moving(score_oracle, place_oracle),
        'oracle, moved by the oracle, shrunk': moving(score_oracle, place_oracle, 'rebirth'),
    }
    base = {**setting(20, 0.3), **prompts_of(uniform(layout))}
    return [Run(arm, f'planted/{PAYS}', seed, VPT, {**base, **options})
            for seed in range(3) for arm, options in arms.items()]


# Dense tasks: configs, what is moved, learning rates to choose from.
CAMVID, DETECTION = 'camvid/setr_pup_vit_s_{}_camvid', 'demo/mask_rcnn_swin_mini_{}_digits'
AUTHORS_HOOK = dict(reward_idleness='largest', state='standardised', score_pass=True, score_clip=0.25)
AUTHORS_PPO = dict(PPO, horizon=2, epochs=60, normalise='rollout', init='torch', max_grad_norm=None)
DENSE = {
    'frozen': ('frozen', {}),
    'VPT-Deep': ('vpt', {}),
    'PRO-VPT, paper': ('vpt', (TAYLOR, PPO, 'keep', {})),
    'PRO-VPT, authors': ('vpt', (TAYLOR, AUTHORS_PPO, 'shrink', AUTHORS_HOOK)),
    're-birth in place': ('vpt', (IDLEST, STAY, 'rebirth', {})),
    'LoRA': ('lora', {}),
    'full': ('full', {}),
}


def dense(task: str, rates: tuple[float, ...], seeds: int, phase: str) -> list[Run]:
    """All methods at all rates; 'search' on one seed."""
    # An epoch, and what the authors' code multiplies losses by: its batches / their size.
    config, every, scale = dict(camvid=(CAMVID, dict(by_epoch=False, interval=46), 46 / 8),
                                detection=(DETECTION, dict(by_epoch=True, interval=1), 32 / 4))[task]
    runs = []
    for seed in range(seeds):
        for arm, (name, parts) in DENSE.items():
            more = dict(reward_loss_scale=scale) if parts and parts[3] else {}
            options = moving(*parts[:3], **{**parts[3], **more, **every}) if parts else {}
            for lr in rates:
                runs.append(Run(f'{arm} at {lr:g}' if phase == 'search' else arm, task, seed, config.format(name),
                                {**options, 'optim_wrapper.optimizer.lr': lr}, phase))
    return runs


def tune_camvid(results: Path) -> list[Run]:
    """Four learning rates for each method, on one seed."""
    return dense('camvid', (3e-4, 1e-3, 3e-3, 1e-2), 1, 'search')


def tune_detection(results: Path) -> list[Run]:
    """The same for Mask R-CNN."""
    return dense('detection', (1e-4, 2e-4, 5e-4, 1e-3), 1, 'search')


def final_dense(task: str, results: Path) -> list[Run]:
    """Every method at the rates that won, three seeds."""
    wanted = {(name, float(rate)) for name, rate in (
        arm.split(' at ') for arm in settings(results, f'tune_{task}', MEASURES[task]))}
    rates = tuple(sorted({rate for _, rate in wanted}))
    return [run._replace(arm=f'{run.arm} at {run.options["optim_wrapper.optimizer.lr"]:g}')
            for run in dense(task, rates, 3, 'final')
            if (run.arm, run.options['optim_wrapper.optimizer.lr']) in wanted]


# CamVid with other heads than SETR's: each method's config, and rates to choose from. PRO-VPT takes VPT-Deep's.
HEADS = dict(UPerNet='camvid/upernet_vit_s_{}_camvid', Mask2Former='camvid/mask2former_vit_s_{}_camvid')
RATES = (1e-3, 3e-3, 1e-2)
TUNED = {'VPT-Deep': 'vpt', 'frozen': 'frozen', 'LoRA': 'lora', 'full': 'full'}


def with_head(head: str, arm: str, config: str, lr: float, seed: int, phase: str, epochs: int = 10) -> Run:
    """A training of 46 iterations an epoch."""
    options = {'optim_wrapper.optimizer.lr': lr, 'train_cfg.max_iters': 46 * epochs,
               'train_cfg.val_interval': 46 * epochs, 'param_scheduler.1.end': 46 * epochs}
    return Run(arm, f'camvid/{head}', seed, HEADS[head].format(config), options, phase)


def tune_heads(results: Path) -> list[Run]:
    """Three learning rates for each method and head: three epochs on one seed."""
    return [with_head(head, f'{method} at {lr:g}', config, lr, 0, 'search', epochs=3)
            for head in HEADS for method, config in TUNED.items() for lr in RATES]


def heads(results: Path) -> list[Run]:
    """UPerNet and Mask2Former by each method, ten epochs at the rate that won with this head, three seeds."""
    rows = rows_of_tuning(results, 'tune_heads')
    runs = []
    for seed in range(3):
        for head in HEADS:
            won = winners([row for row in rows if row['task'] == f'camvid/{head}'], 'average_miou')
            for method, config in {**TUNED, 'PRO-VPT': 'provpt'}.items():
                lr = float(won[method.replace('PRO-VPT', 'VPT-Deep')].split(' at ')[1])
                runs.append(with_head(head, method, config, lr, seed, 'final'))
    return runs


MIOU = ('average_miou', 'last_miou')
MEASURES = dict(camvid=MIOU, heads=MIOU, detection=('average_box_ap', 'last_box_ap'))
# By name; each is given the folder of results, for some go on from others.
EXPERIMENTS: dict[str, Callable[[Path], list[Run]]] = dict(
    gain=gain, gain_all=gain_all, tune=tune, main=main_, layouts=layouts, recovery=recovery,
    same_setting=same_setting,
    epochs_40=partial(longer, epochs=40, tasks=('category', 'size', 'cifar10_1k'), methods=MATTER),
    epochs_100=partial(longer, epochs=100, tasks=('size',), methods=MATTER_MOST), tune_camvid=tune_camvid,
    tune_detection=tune_detection, camvid=partial(final_dense, 'camvid'), detection=partial(final_dense, 'detection'),
    tune_heads=tune_heads, heads=heads)
# The tuning that one goes on from.
NEEDS = dict(main='tune', epochs_40='tune', epochs_100='tune', camvid='tune_camvid', detection='tune_detection',
             heads='tune_heads')
