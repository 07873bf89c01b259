"""--resume: from which file, also where the folder was moved or copied; and no new start beside checkpoints."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny_task import write_task

from mmprovpt.cli.resuming import latest_checkpoint
from mmprovpt.errors import ConfigError

ROOT = Path(__file__).parents[2]
TWO, THREE = ['--cfg-options', 'train_cfg.max_epochs=2'], ['--cfg-options', 'train_cfg.max_epochs=3']


def train(folder, *args):
    """In a process of its own, as users run it."""
    return subprocess.run([sys.executable, ROOT / 'tools/train.py', 'task.py', *args], cwd=folder, text=True,
                          capture_output=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A folder in which two epochs were trained, into ``old``."""
    folder = tmp_path_factory.mktemp('resuming')
    write_task(folder, 'test_dataloader, test_evaluator, test_cfg = val_dataloader, val_evaluator, val_cfg\n')
    done = train(folder, '--work-dir', folder / 'old', *TWO)
    assert done.returncode == 0, done.stderr
    return folder


def listing(folder):
    return sorted(str(path) for path in folder.rglob('*'))


def resumed(folder):
    """What the last log says that was loaded, and where the run ended."""
    log = max(folder.glob('*/*.log'), key=os.path.getmtime).read_text()
    return log, torch.load(folder / 'epoch_3.pth', weights_only=False)['meta']['iter']


@pytest.mark.parametrize('how', ['moved', 'copied'])
def test_a_folder_that_was_moved_or_copied(how, trained, tmp_path):
    """The note names a path that is gone, or another folder's file, which is not the one that is meant."""
    shutil.copytree(trained / 'old', tmp_path / 'old')
    (tmp_path / 'old/last_checkpoint').write_text(str(tmp_path / 'old/epoch_2.pth'))
    shutil.copytree(tmp_path / 'old', tmp_path / 'new')
    if how == 'moved':
        shutil.rmtree(tmp_path / 'old')
    else:
        (tmp_path / 'old/epoch_2.pth').write_bytes(b'overwritten since')
    done = train(trained, '--work-dir', tmp_path / 'new', '--resume', *THREE)
    assert done.returncode == 0, done.stderr
    log, iterations = resumed(tmp_path / 'new')
    assert 'resumed epoch: 2, iter: 4' in log and str(tmp_path / 'new/epoch_2.pth') in log and iterations == 6
    assert (tmp_path / 'new/last_checkpoint').read_text() == str(tmp_path / 'new/epoch_3.pth')
    cfg = Config.fromfile(tmp_path / 'new/task.py')  # by which a later run goes on from what is the latest then
    assert cfg.resume and cfg.load_from is None


@pytest.mark.parametrize('name', ['work_dirs/gone/a.pth', '/gone/a.pth', r'C:\gone\a.pth', 'a.pth\n'])
def test_the_name_counts_and_not_the_path(name, tmp_path):
    torch.save({}, tmp_path / 'a.pth')
    (tmp_path / 'last_checkpoint').write_text(name)
    assert latest_checkpoint(str(tmp_path)) == str(tmp_path / 'a.pth')


def test_files_elsewhere(tmp_path):
    """CheckpointHook's out_dir; storage that is no file."""
    (tmp_path / 'work').mkdir()
    torch.save({}, tmp_path / 'a.pth')
    for path in (str(tmp_path / 'a.pth'), 's3://bucket/a.pth'):
        (tmp_path / 'work/last_checkpoint').write_text(path)
        assert latest_checkpoint(str(tmp_path / 'work')) == path


def test_nothing_there_is_no_mistake(tmp_path):
    (tmp_path / 'b.log').touch()
    assert latest_checkpoint(str(tmp_path)) is latest_checkpoint(str(tmp_path / 'none')) is None


BROKEN = dict(
    no_note=(None, None, 'there is no .*last_checkpoint'),
    empty_note=('', None, 'last_checkpoint is empty'),
    gone=('/gone/epoch_9.pth', None, "names '/gone/epoch_9.pth': no such file .looked for: /gone/epoch_9.pth and .*"),
    truncated=('epoch_9.pth', b'PK\x03\x04', 'truncated checkpoint'),
    empty=('epoch_9.pth', b'', 'the file is empty'),
    lfs=('epoch_9.pth', b'version https://git-lfs.github.com/spec/v1\noid', 'a pointer of Git LFS'),
    page=('epoch_9.pth', b'<html>', 'an HTML page'),
)


@pytest.mark.parametrize('name', BROKEN)
def test_no_new_start_beside_checkpoints(name, trained, tmp_path, call, monkeypatch):
    """It says what lies there, and touches nothing."""
    note, content, reason = BROKEN[name]
    monkeypatch.chdir(trained)
    torch.save({}, tmp_path / 'epoch_1.pth')
    torch.save({}, tmp_path / 'best_x_epoch_1.pth')
    if note is not None:
        (tmp_path / 'last_checkpoint').write_text(note)
    if content is not None:
        (tmp_path / 'epoch_9.pth').write_bytes(content)
    before = listing(tmp_path)
    with pytest.raises(SystemExit) as stop:
        call('train', 'task.py', '--work-dir', tmp_path, '--resume')
    line, there = str(stop.value.code), 'best_x_epoch_1.pth, epoch_1.pth' + ', epoch_9.pth' * (content is not None)
    assert line.startswith('error: nothing to resume: ') and '\n' not in line
    with pytest.raises(ConfigError, match=f'{reason}.*: {there}[.] Name one with --resume PATH, or leave out --resume'):
        latest_checkpoint(str(tmp_path))
    assert listing(tmp_path) == before


def test_a_note_of_a_file_that_is_gone_is_refused_where_nothing_else_lies(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('/gone/epoch_9.pth')
    with pytest.raises(ConfigError, match='checkpoints in .*: none'):
        latest_checkpoint(str(tmp_path))


def test_without_resume_training_starts_anew(trained, tmp_path, call, monkeypatch):
    """As MMDetection's, beside whatever lies there; and --resume of an empty folder does, too."""
    monkeypatch.chdir(trained)
    shutil.copy(trained / 'old/epoch_2.pth', tmp_path / 'epoch_2.pth')
    call('train', 'task.py', '--work-dir', tmp_path, *TWO, 'experiment_name=anew')
    assert (tmp_path / 'epoch_1.pth').exists()
    call('train', 'task.py', '--work-dir', tmp_path / 'empty', '--resume', *TWO, 'experiment_name=empty')
    assert (tmp_path / 'empty/epoch_2.pth').exists()


@pytest.mark.parametrize('way', ['load_from', 'init_cfg', 'resume', 'test'])
def test_weights_that_do_not_fit_leave_no_folder(way, trained, call, monkeypatch):
    """Of other prompts; the Runner was built by then, and had begun a log."""
    monkeypatch.chdir(trained)
    before, file = listing(trained), 'old/epoch_2.pth'
    options = ['--work-dir', 'deep/new', '--cfg-options', 'model.backbone.prompts.num_tokens=3',
               f'experiment_name={way}']
    ways = dict(load_from=['train', 'task.py', *options, f'load_from={file}'],
                init_cfg=['train', 'task.py', *options, 'model.backbone.init_cfg.type=Pretrained',
                          f'model.backbone.init_cfg.checkpoint={file}', 'model.backbone.init_cfg.prefix=backbone.'],
                resume=['train', 'task.py', '--resume', file, *options], test=['test', 'task.py', file, *options])
    with pytest.raises(SystemExit, match='(?s)^error: .*prompts'):
        call(*ways[way])
    assert listing(trained) == before
