"""benchmarks/study: its arithmetic, its controls, and that its experiments are made of configs that exist."""
import json
import math
import re
from pathlib import Path
from statistics import mean

import pytest
import torch
from benchmark_modules import modules_of
from test_relocation.loop import Loop

from mmprovpt.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def study():
    """The modules of the study, which stand beside each other, by their names."""
    with modules_of('study', 'experiments', 'tables', 'parts', 'study', 'page') as modules:
        yield modules


def test_interval_by_hand(study):
    """Of 1, 2, 3: 2 ± 4.303 · 1 / √3."""
    middle, half = study['tables'].interval([1., 2., 3.])
    assert middle == 2 and half == pytest.approx(4.303 / math.sqrt(3))
    assert math.isnan(study['tables'].interval([5.])[1])


def row(arm, task, seed, value):
    return dict(arm=arm, task=task, seed=seed, average_accuracy=value, last_accuracy=value, training_loss=0.5, moves=3)


def test_differences_are_paired_by_task_and_seed(study):
    rows = [row('a', 't', 0, 50.), row('a', 't', 1, 60.), row('b', 't', 1, 63.), row('b', 't', 0, 51.),
            row('b', 'u', 0, 99.)]
    assert study['tables'].paired(rows, 'b', 'a', 'average_accuracy') == {'t': [3., 1.]}
    lines = study['tables'].table(rows).splitlines()
    assert lines[0].startswith('| task | arm | seeds | accuracy (average) | less "a" | accuracy (last) | less "a" |')
    assert lines[3] == '| t | b | 2 | 57.0 | +2.0 ± 12.7 | 57.0 | +2.0 ± 12.7 | 0.50 | 3 |'


def test_calibration_error_by_hand(study):
    """Two bins: confidence 0.9 with half right, 0.6 with all right."""
    scores = torch.tensor([[.9, .1], [.1, .9], [.6, .4]])
    error = study['parts'].calibration_error(scores, torch.tensor([0, 0, 0]))
    assert error == pytest.approx((abs(2 * .9 - 1) + abs(.6 - 1)) / 3, abs=1e-6)


def test_oracles_reach_the_layout(study):
    """From the uniform distribution, in as many moves as differ, whatever the scores."""
    from mmprovpt.relocation import Relocator
    layout = [6, 0, 2, 0]
    blocks = torch.arange(8) % 4
    subject = Relocator(4, study['parts'].OraclePruner(layout), study['parts'].OracleAllocator(4, layout))
    for _ in range(4):
        move, = subject.step(1., torch.randn(8), blocks)
        blocks[move.prompt] = move.target
    assert torch.bincount(blocks, minlength=4).tolist() == layout
    assert subject.step(1., torch.randn(8), blocks) == []


def test_rows_of_constant_length(study):
    from test_hooks.toy_run import ToyModel
    runner = type('Runner', (), dict(model=ToyModel()))()
    hook = study['parts'].ConstantLengthHook()
    hook.before_train(runner)
    rows = runner.model.prompts.tokens
    before = rows.detach().clone()
    with torch.no_grad():
        rows.mul_(torch.rand(len(rows), 1) + 1).add_(0.1)
    hook.after_train_iter(runner, 0)
    torch.testing.assert_close(rows.detach().norm(dim=1), before.norm(dim=1))
    assert not torch.equal(rows.detach(), before)


def tuned(study, results, name):
    """Results of a tuning in which the third setting of each method wins by one measure, and the first by the other."""
    rows, seen = [], {}
    measures = study['experiments'].MEASURES.get(name.removeprefix('tune_'), ('average_accuracy', 'last_accuracy'))
    for run in study['experiments'].EXPERIMENTS[name](results):
        arms = seen.setdefault(run.arm.split(' at ')[0], [])
        if run.arm not in arms:
            arms.append(run.arm)
        number = arms.index(run.arm)
        rows.append(dict(run._asdict(), **{measures[0]: 60. + (number == 2), measures[1]: 50. - number}))
    (results / f'{name}.jsonl').write_text(''.join(json.dumps(row, default=str) + '\n' for row in rows))


def test_experiments_name_configs_and_tell_runs_apart(study, tmp_path):
    tunings = [name for name in study['experiments'].EXPERIMENTS if name.startswith('tune')]
    for name in ('main', 'epochs_40', 'camvid', 'detection', 'heads'):
        with pytest.raises(ConfigError, match='trainings of the experiment .* are missing'):
            study['experiments'].EXPERIMENTS[name](tmp_path)
    for name in tunings:
        tuned(study, tmp_path, name)
    for name, make in study['experiments'].EXPERIMENTS.items():
        runs = make(tmp_path)
        keys = [study['study'].key_of(run) for run in runs]
        assert len(set(keys)) == len(keys) > 0, name
        assert all((ROOT / f'configs/{run.config}.py').exists() for run in runs), name


def test_a_run_is_what_its_arm_says(study, tmp_path):
    """Options reach the config, and the split, the evaluator and the average are those of the phase."""
    run = next(run for run in study['experiments'].gain(tmp_path) if run.arm == 'idlest, in place, shrunk')
    cfg = study['study'].trial_of(run, tmp_path, tmp_path / 'data', tmp_path / 'weights').cfg
    assert cfg.train_cfg.max_epochs == 40 and cfg.optim_wrapper.clip_grad.max_norm == 0.25
    hook, average, _ = cfg.custom_hooks
    assert hook.allocator.type == 'StayAllocator' and hook.arrival == 'rebirth' and average.momentum == 0.05
    assert cfg.train_dataloader.dataset.split == 'train800val200' and cfg.test_dataloader.dataset.split == 'test'
    assert cfg.val_dataloader is None and cfg.model.backbone.init_cfg.checkpoint.startswith(str(tmp_path))
    search = study['study'].trial_of(run._replace(phase='search'), tmp_path, tmp_path, tmp_path).cfg
    assert search.train_dataloader.dataset.split == 'train800' and search.val_dataloader.dataset.split == 'val200'
    assert search.test_dataloader is None


def test_rebirth_in_place(study):
    """Owners never change, one row per period is shrunk, and the log names its own block."""
    loop = Loop(pruner=dict(type='RandomPruner', criterion='taylor'), allocator=dict(type='StayAllocator'),
                arrival=dict(type='rebirth', factor=0.01))
    owners = loop.model.prompts.block_index.clone()
    for _ in range(4):
        loop.train()
        before = loop.model.prompts.tokens.detach().clone()
        move, = loop.session.close_period().moves
        assert move.source == move.target == owners[move.prompt]
        before[move.prompt] *= 0.01
        torch.testing.assert_close(loop.model.prompts.tokens.detach(), before)
    assert torch.equal(loop.model.prompts.block_index, owners)


def test_ap_is_in_points_and_planted_prompts_are_counted(study, tmp_path):
    (tmp_path / 'detection.jsonl').write_text(json.dumps(dict(arm='a', average_box_ap=0.5, last_box_ap=None)) + '\n')
    assert study['tables'].read_rows(tmp_path / 'detection.jsonl') == [
        dict(arm='a', average_box_ap=50., last_box_ap=None)]
    place = study['experiments'].in_their_place
    assert place(dict(distribution=[1] * 12)) == 1 and place(dict(distribution=[0, 3, 9] + [0] * 9)) == 9
    lines = study['tables'].table([row('a', 't', 0, 50.)], more={'double': lambda each: 2 * each['moves']}).splitlines()
    assert lines[0].endswith('| moves | double |') and lines[2].endswith('| 3 | 6.0 |')


def test_methods_are_compared_at_what_won_by_each_measure(study, tmp_path):
    """Two winners for each method, both trained; the table of a measure has its own."""
    tuned(study, tmp_path, 'tune')
    runs = study['experiments'].EXPERIMENTS['main'](tmp_path)
    arms = {run.arm for run in runs if run.arm.startswith('VPT-Deep at')}
    assert arms == {'VPT-Deep at 0.3, 0.0001', 'VPT-Deep at 0.1, 0.0001'}
    assert len(runs) == 2 * len(study['experiments'].METHODS) * 5 * 7
    values = {'VPT-Deep at 0.3, 0.0001': 70., 're-birth in place at 0.3, 0.0001': 72.}
    rows = [dict(row(arm, task, seed, value + seed), experiment='main')
            for arm, value in values.items() for task in 'tu' for seed in range(2)]
    chosen = {'VPT-Deep': 'VPT-Deep at 0.3, 0.0001', 're-birth in place': 're-birth in place at 0.3, 0.0001'}
    lines = study['tables'].main_table(rows, chosen, 'average_accuracy', 'VPT-Deep').splitlines()
    assert lines[0] == '| method | setting | t | u | mean | less VPT-Deep |'
    assert lines[3] == ('| re-birth in place | 0.3, 0.0001 | 72.5 (+2.0 ± 0.0) | 72.5 (+2.0 ± 0.0) | 72.5 '
                        '| +2.0 ± 0.0 |')


def test_the_page_has_the_results(study):
    """The tables of docs/evidence/study.md are those of the committed results; `page.py` writes them."""
    text = study['page'].PAGE.read_text(encoding='utf-8')
    assert study['page'].filled(text) == text and text.count('| VPT-Deep |') >= 4


EXPECTED = re.compile(
    r'# Expected: ([\d.]+) (%|mIoU), ([\d.]+) to ([\d.]+) over (\w+) seeds '
    r'\("(.+?)"(?: with (\w+))?, docs/evidence/study.md')
CLASSIFICATION = [*(f'_base_/methods/{name}' for name in ('vpt', 'provpt', 'provpt_paper', 'provpt_authors')),
                  *(f'miniature_vtab/{name}' for name in ('linear', 'vpt', 'provpt', 'provpt_authors'))]
CAMVID = [f'camvid/{head}_vit_s_{name}_camvid' for head in ('setr_pup', 'upernet', 'mask2former')
          for name in ('frozen', 'vpt', 'provpt', 'lora', 'full')]


@pytest.mark.parametrize('config', CLASSIFICATION + CAMVID)
def test_configs_say_what_to_expect(config, study):
    """Mean over tasks of the last iterate, and its range over seeds, as in the committed results."""
    text = (ROOT / f'configs/{config}.py').read_text(encoding='utf-8')
    middle, unit, least, greatest, seeds, arm, head = EXPECTED.search(text).groups()
    files, key, tasks = dict([('%', (('main', 'same_setting'), 'last_accuracy', 7)),
                              ('mIoU', (('heads' if head else 'camvid', ), 'last_miou', 1))])[unit]
    found = {}
    for row in (row for name in files for row in study['tables'].read_rows(study['page'].RESULTS / f'{name}.jsonl')):
        if row['arm'] == arm and (not head or row['task'] == f'camvid/{head}'):
            found.setdefault(row['seed'], []).append(row[key])
    assert len(found) == dict(five=5, three=3)[seeds] and {len(values) for values in found.values()} == {tasks}
    means = [mean(values) for values in found.values()]
    assert [middle, least, greatest] == [f'{value:.1f}' for value in (mean(means), min(means), max(means))]


def test_a_head_is_trained_at_its_own_rate(study, tmp_path):
    """PRO-VPT at VPT-Deep's, whichever the other head has; ten epochs, all by one schedule."""
    rows = study['experiments'].tune_heads(tmp_path)
    best = {'camvid/UPerNet': 'VPT-Deep at 0.01', 'camvid/Mask2Former': 'VPT-Deep at 0.001'}
    (tmp_path / 'tune_heads.jsonl').write_text(''.join(json.dumps(dict(
        run._asdict(), average_miou=float(best[run.task] == run.arm), last_miou=0.)) + '\n' for run in rows))
    runs = study['experiments'].heads(tmp_path)
    rates = {(run.task, run.arm): run.options['optim_wrapper.optimizer.lr'] for run in runs}
    assert [rates[task, arm] for task in best for arm in ('VPT-Deep', 'PRO-VPT')] == [0.01, 0.01, 0.001, 0.001]
    run = next(run for run in runs if run.task == 'camvid/Mask2Former')
    cfg = study['study'].trial_of(run, tmp_path, tmp_path, tmp_path).cfg
    assert cfg.custom_imports['imports'] == ['parts', 'mmdet.models'] and cfg.model.type == 'BFloat16Segmentor'
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[1].end == 460
