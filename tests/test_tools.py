"""The command-line tools, on a toy model of a second or two."""
import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from toy_model import TOY

from mmprovpt.cli.lock import locked
from mmprovpt.cli.user_errors import user_errors

ROOT = Path(__file__).parents[1]

CONFIG = """
custom_imports = dict(imports=['toy'])
model = dict(type='Toy')
train_dataloader = dict(batch_size=2, dataset=dict(type='Ones'), sampler=dict(type='DefaultSampler', shuffle=True))
test_dataloader = dict(batch_size=2, dataset=dict(type='Ones'), sampler=dict(type='DefaultSampler', shuffle=False))
test_evaluator = dict(type='Number')
test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A directory with the toy, to run tools in."""
    (tmp_path / 'toy.py').write_text(TOY)
    (tmp_path / 'config.py').write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    return tmp_path


def run(cwd, *command, **env):
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=cwd,
        env={**os.environ, 'PYTHONPATH': f'{ROOT}:{cwd}', 'PYTHON': sys.executable,
             'CUDA_VISIBLE_DEVICES': '', **env})


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_help(tool, call, capsys):
    with pytest.raises(SystemExit) as stop:
        call(tool, '--help')
    assert not stop.value.code
    text = capsys.readouterr().out
    for option in ('--work-dir', '--cfg-options', '--launcher'):
        assert option in text


@pytest.mark.parametrize('tool, option', [
    ('dataset_converters/miniature_coco', '--num-train'), ('dataset_converters/miniature_vtab', '--fashion-mnist'),
    ('dataset_converters/vtab1k', '--tfds-dir'), ('model_converters/to_mmpretrain', '--img-size')])
def test_converters_find_the_modules_beside_them(tool, option, tmp_path):
    """From any directory; in this process pytest's paths would find them, too."""
    result = run(tmp_path, sys.executable, ROOT / f'tools/{tool}.py', '--help')
    assert result.returncode == 0 and option in result.stdout, result.stderr


def test_two_processes_then_resume_then_test(toy, call):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    # SyncBN (here the default of a class), NCCL and DDP's device_ids all fail on CPU.
    result = run(toy, ROOT / 'tools/dist_train.sh', 'config.py', 2, '--auto-scale-lr', '--cfg-options',
                 'auto_scale_lr.base_batch_size=16', PORT=str(port))
    assert result.returncode == 0, result.stderr
    assert (toy / 'rank0').exists() and (toy / 'rank1').exists()
    checkpoint = toy / 'work_dirs/config/epoch_1.pth'
    content = torch.load(checkpoint, weights_only=False)
    assert content['meta']['iter'] == 2
    assert content['optimizer']['param_groups'][0]['lr'] == pytest.approx(0.1 * 2 * 2 / 16)

    call('train', 'config.py', '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    resumed = torch.load(toy / 'work_dirs/config/epoch_2.pth', weights_only=False)
    assert resumed['meta']['epoch'] == 2 and resumed['meta']['iter'] == 6
    assert resumed['state_dict']['norm.num_batches_tracked'] == 6

    call('test', 'config.py', checkpoint, '--work-dir', 'tested', '--out', 'dump.pkl')
    assert len(pickle.loads((toy / 'dump.pkl').read_bytes())) == 8
    log, = (toy / 'tested').glob('*/*.json')
    assert json.loads(log.read_text())['number'] == 8


def test_flexible_runner(toy, call):
    flexible = ['--cfg-options', 'runner_type=FlexibleRunner']
    call('train', 'config.py', *flexible)
    call('train', 'config.py', '--resume', *flexible, 'train_cfg.max_epochs=2')
    assert torch.load(toy / 'work_dirs/config/epoch_2.pth', weights_only=False)['meta']['iter'] == 8
    call('test', 'config.py', 'work_dirs/config/epoch_2.pth', '--out', 'dump.pkl', *flexible)
    assert len(pickle.loads((toy / 'dump.pkl').read_bytes())) == 8


# Executes its command as srun would, and notes the options that it was given.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do printf '%s\\n' "$1" >> options; shift; done
SLURM_PROCID=0 exec "$@"
"""


@pytest.mark.parametrize('tool, own', [('train', ['--work-dir', 'out dir']), ('test', [])])
def test_slurm_scripts(tmp_path, tool, own):
    (tmp_path / 'srun').write_text(SRUN)
    # Notes what reaches the tool, and from where.
    (tmp_path / 'python').write_text('#!/bin/sh\nprintf "%s\\n" "$@" "$PYTHONPATH" "$SLURM_PROCID" > arguments\n')
    for name in ('srun', 'python'):
        (tmp_path / name).chmod(0o755)
    (tmp_path / '--nodelist=node1').touch()  # what the shell must not take the brackets for
    env = dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', PYTHON='', GPUS='16', CPUS_PER_TASK='3',
               SRUN_ARGS='--nodelist=node[1-2] --time=10')
    given = ['debug', 'a job', 'my config.py', own[1] if own else 'my checkpoint.pth', '--cfg-options', 'a=[1, 2]']
    result = run(tmp_path, ROOT / f'tools/slurm_{tool}.sh', *given, **env)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / 'options').read_text().splitlines() == [
        '--partition=debug', '--job-name=a job', '--gres=gpu:8', '--ntasks=16', '--ntasks-per-node=8',
        '--cpus-per-task=3', '--kill-on-bad-exit=1', '--nodelist=node[1-2]', '--time=10']
    *arguments, path, rank = (tmp_path / 'arguments').read_text().splitlines()
    assert arguments == ['-u', f'{ROOT}/tools/{tool}.py', 'my config.py', *(own or ['my checkpoint.pth']),
                         '--launcher', 'slurm', '--cfg-options', 'a=[1, 2]']
    assert path.split(':')[0] == f'{ROOT}/tools/..' and rank == '0'
    assert run(tmp_path, ROOT / f'tools/slurm_{tool}.sh', *given[:3], **env).returncode != 0


@pytest.mark.parametrize('args, message', [
    (['no.py'], 'error: no such config file: no.py (looked for: '),
    (['config.py', '--resume', 'no.pth'], "load_from = 'no.pth': no such file"),
    (['config.py', '--amp'], 'error: mixed precision (--amp, AmpOptimWrapper) needs a GPU'),
    (['config.py', '--auto-scale-lr'], 'error: --auto-scale-lr needs auto_scale_lr=dict('),
    (['config.py', '--launcher', 'slurm'], 'error: --launcher slurm needs GPUs'),
])
@pytest.mark.skipif(torch.cuda.is_available(), reason='messages for machines without a GPU')
def test_mistakes_end_with_a_message(toy, call, args, message):
    with pytest.raises(SystemExit) as stop:  # Python prints its argument and exits with 1
        call('train', *args)
    assert message in stop.value.code
    assert not (toy / 'work_dirs').exists()


def test_only_the_first_rank_prints_the_message(toy, call, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    with pytest.raises(SystemExit) as stop:
        call('train', 'no.py')
    assert stop.value.code == 1


def test_corrupt_annotations_end_with_a_message():
    with pytest.raises(SystemExit) as stop, user_errors():
        json.loads('{"images": [1,,]}')
    assert 'error: an annotation file is corrupt (Expecting value' in stop.value.code


@pytest.mark.parametrize('args, message', [
    (['--out', 'a.json'], '--out a.json: the name must end with .pkl or .pickle'),
    (['--tta'], '--tta needs tta_model and tta_pipeline in the config'),
    (['--show'], 'need default_hooks.visualization in the config'),
    ([], "load_from = 'a.pth': no such file"),
])
def test_mistakes_in_testing(toy, call, args, message):
    with pytest.raises(SystemExit) as stop:
        call('test', 'config.py', 'a.pth', *args)
    assert message in stop.value.code


def test_augmentation_of_masks_is_refused(toy, call):
    tta = """
model = dict(type='Toy', roi_head=dict(mask_head=dict(type='FCNMaskHead')))
tta_model, tta_pipeline = dict(type='DetTTAModel'), []
"""
    (toy / 'config.py').write_text(CONFIG + tta)
    with pytest.raises(SystemExit) as stop:
        call('test', 'config.py', 'a.pth', '--tta')
    assert 'merges boxes only' in stop.value.code and 'model.roi_head.mask_head=None' in stop.value.code


def test_second_training_in_a_folder_is_refused(toy, call):
    with locked('work_dirs/config'):
        with pytest.raises(SystemExit, match='^error: .*work_dirs/config is in use: process'):
            call('train', 'config.py')
        assert [path.name for path in (toy / 'work_dirs/config').iterdir()] == ['.lock']


def test_failed_build_leaves_nothing_behind(toy, call):
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        # MMEngine names its loggers after the second; the test before may be in the same one.
        call('train', 'config.py', '--cfg-options', 'model.colour=red', 'experiment_name=new')
    assert not (toy / 'work_dirs').exists()


@MODELS.register_module(force=True)
def fails_late():
    """A model that is not built; meanwhile another run has begun in the same new folder."""
    Path('work_dirs/config/of_another.pth').touch()
    raise ZeroDivisionError


def test_failed_build_keeps_what_others_wrote_meanwhile(toy, call):
    with pytest.raises(ZeroDivisionError):
        call('train', 'config.py', '--cfg-options', 'experiment_name=meanwhile', 'model.type=fails_late')
    assert [path.name for path in (toy / 'work_dirs/config').iterdir()] == ['of_another.pth']


def test_failed_build_keeps_an_old_work_dir(toy, call):
    (toy / 'old').mkdir()
    (toy / 'old/epoch_1.pth').touch()
    with pytest.raises(TypeError):
        call('train', 'config.py', '--work-dir', 'old',
             '--cfg-options', 'model.colour=red', 'experiment_name=old')
    assert (toy / 'old/epoch_1.pth').exists()


@pytest.mark.parametrize('target, expected', [
    ('demo', 'tools/train.py configs/demo/mask_rcnn_swin_mini_provpt_digits.py --work-dir work_dirs/demo \n'),
    ('demo-seg', 'tools/train.py configs/demo/setr_pup_vit_mini_provpt_digits.py --work-dir work_dirs/demo-seg \n'),
    ('demo-cls', 'tools/train.py configs/demo/swin_mini_provpt_digits.py --work-dir work_dirs/demo-cls \n'),
    ('test', 'pytest'), ('lint', 'ruff check'), ('lint', 'mypy')])
def test_make_sets_up_first(target, expected):
    result = run(ROOT, 'make', '-n', target, 'VENV=nowhere')
    assert result.returncode == 0, result.stderr
    stages = ['-m venv nowhere', '-r requirements/torch.txt', '-r requirements/mmcv.txt', "-e '.[all,tests]'"]
    positions = [result.stdout.index(part) for part in [*stages, expected]]
    assert positions == sorted(positions)


def test_make_refuses_an_unsupported_python(tmp_path):
    fake = tmp_path / 'python9'
    fake.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])" "$2"\n')
    fake.chmod(0o755)
    result = run(ROOT, 'make', 'setup', f'PYTHON={fake}', f'VENV={tmp_path}/venv')
    assert result.returncode != 0
    assert 'is Python 3.9, but OneDL mmcv supports 3.10 to 3.12' in result.stderr
    assert not (tmp_path / 'venv').exists()
