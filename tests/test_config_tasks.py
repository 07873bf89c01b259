"""Which configs there are, that they are plain, and how TASK chooses among the tasks that one of them serves."""
import re
from pathlib import Path

import pytest
from test_configs import BASELINES, CHOSEN, FAMILIES, METHODS, MINIATURE, ROOT, TASKS, differences, parse, read

from mmprovpt.datasets.fgvc_tasks import FGVC_TASKS
from mmprovpt.datasets.vtab1k_tasks import BY_NAME
from mmprovpt.errors import ConfigError


def test_no_config_is_missing_or_unknown():
    expected = {f'vtab1k/vit_b_{method}_{task}.py' for method in METHODS for task in TASKS['vtab1k']}
    expected |= {f'custom/vit_b_{method}_folder.py' for method in METHODS + BASELINES}
    expected |= {pattern.format(method) for pattern, (methods, _) in FAMILIES.items() for method in methods}
    folders = ('vtab1k', 'fgvc', 'miniature_vtab', 'custom')
    assert {f'{folder}/{path.name}' for folder in folders
            for path in (ROOT / 'configs' / folder).glob('*.py')} == expected
    for benchmark, known in (('vtab1k', BY_NAME), ('fgvc', FGVC_TASKS)):
        assert {task: entry.num_classes for task, entry in known.items()} \
            == {task: classes for task, (classes, _) in TASKS[benchmark].items()}


def all_configs():
    return sorted(str(path.relative_to(ROOT / 'configs')) for path in (ROOT / 'configs').rglob('*.py'))


def test_every_config_is_read_without_a_task_and_logs_when_told():
    """The first task is the default. The hook that logs can be told to do so each iteration on the command line."""
    for name in all_configs():
        cfg = read(name)
        if name.startswith(('_base_', 'table3')):  # parts of configs
            continue
        cfg.merge_from_dict({'default_hooks.logger.interval': 1})
        logger = cfg.default_hooks.logger
        assert (logger.get('type'), logger.interval) == ('LoggerHook', 1), name
        # Of baselines and relocating runs alike: a pair of one seed is a pair.
        assert cfg.default_hooks.seed == dict(type='mmprovpt.IterationSeedHook'), name
        assert cfg.optim_wrapper.type == 'mmprovpt.FiniteOptimWrapper', name
    for pattern, (methods, tasks) in FAMILIES.items():
        for method in methods:
            name = pattern.format(method)
            assert parse(name) == parse(name, next(iter(tasks)))


def test_configs_are_plain():
    """No import in an expression but where a base is MMSegmentation's, which MMEngine does not find by name."""
    texts = {name: (ROOT / 'configs' / name).read_text() for name in all_configs()}
    assert {name for name, text in texts.items() if '__import__' in text} == {
        *(f'setr_{head}_vit_l_vpt_ade20k.py' for head in ('pup', 'naive', 'mla')),
        'camvid/setr_pup_vit_s_vpt_camvid.py',
        *(f'recipes/{name}_ade20k.py' for name in ('mask2former_swin_t', 'segmenter_vit_s', 'upernet_swin_t',
                                                   'upernet_vit_b', 'upernet_dinov3_b', 'mask2former_dinov3_b'))}
    for name, text in texts.items():
        found = re.findall(r'__import__.*', text)
        assert found in ([], found[:1]) and all(
            line.startswith("__import__('mmengine').utils.get_installed_path('mmseg') +") for line in found), name
    # The recipes show what users write.
    assert {name for name, text in texts.items() if 'PromptRelocationHook' in text and 'recipes/' not in name} \
        == {'_base_/methods/relocation.py'}


@pytest.mark.parametrize('pattern', FAMILIES)
def test_task_is_chosen_from_outside(pattern):
    """It selects data, classes, prompts and where the results go, and changes nothing else."""
    methods, tasks = FAMILIES[pattern]
    for method in methods:
        name = pattern.format(method)
        first = parse(name)
        for task in tasks:
            cfg = parse(name, task)
            if 'miniature' in pattern:
                classes, prompts = len(MINIATURE[task].classes), 5
            else:
                classes, prompts = tasks[task]
            prompts = 10 if 'swin_b' in pattern else prompts
            assert [cfg[f'{phase}_dataloader']['dataset']['task'] for phase in ('train', 'val', 'test')] == [task] * 3
            assert (cfg['model']['head']['num_classes'], cfg['num_classes'], cfg['task']) == (classes, classes, task)
            if method not in ('full', 'lora'):
                assert cfg['model']['backbone']['prompts']['num_tokens'] == (0 if method == 'linear' else prompts)
            assert cfg['work_dir'] == f'work_dirs/{Path(name).stem}_{task}'
            follows = {'model.backbone.prompts.num_tokens', 'model.head.num_classes'} | {
                f'{phase}_dataloader.dataset.{key}' for phase in ('train', 'val', 'test')
                for key in ('task', 'num_classes')}
            assert differences(cfg, first) <= CHOSEN | follows


def test_no_two_share_a_work_dir():
    folders = [parse(pattern.format(method), task)['work_dir'] for pattern, (methods, tasks) in FAMILIES.items()
               for method in methods for task in tasks]
    assert len(set(folders)) == len(folders) == 8 * (19 + 5 + 6) + 6 + 5 * 19


@pytest.mark.parametrize('pattern', FAMILIES)
@pytest.mark.parametrize('task', ['imagenet', 'CIFAR'])
def test_unknown_task(pattern, task):
    methods, tasks = FAMILIES[pattern]
    for method in methods:
        with pytest.raises(ConfigError, match=f"has no task '{task}'; known: {', '.join(tasks)}"):
            read(pattern.format(method), task)


def test_unknown_task_of_the_tools(call, monkeypatch, tmp_path):
    monkeypatch.setenv('TASK', 'imagenet')
    with pytest.raises(SystemExit) as stop:
        call('train', ROOT / 'configs/fgvc/vit_b_lora.py', '--work-dir', tmp_path)
    assert stop.value.code == "error: FGVC has no task 'imagenet'; known: cub, nabirds, flowers, dogs, cars"


@pytest.mark.parametrize('method', METHODS)
def test_configs_of_one_task(method):
    """A file for each task of VTAB-1k says what the file for all says of it, whatever TASK is."""
    for task in TASKS['vtab1k']:
        own, chosen = parse(f'vtab1k/vit_b_{method}_{task}.py'), parse(f'vtab1k/vit_b_{method}.py', task)
        assert differences(own, chosen) == CHOSEN and 'work_dir' not in own
    assert parse(f'vtab1k/vit_b_{method}_kitti.py', 'svhn') == parse(f'vtab1k/vit_b_{method}_kitti.py')
