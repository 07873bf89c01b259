"""Files that hold no weights: each tool says in one line which file and what it is, and leaves nothing behind."""
import io
import os
import tarfile

import numpy as np
import pytest
import safetensors.torch
import torch
from tiny_task import write_task

from mmprovpt.cli.weight_files import weights_fault

STATE = dict(state_dict=dict(weight=torch.arange(500.)), meta=dict(epoch=1))


def save(content, **options):
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


WHOLE, OLD = save(STATE), save(STATE, _use_new_zipfile_serialization=False)
SAFE = safetensors.torch.save(STATE['state_dict'])
UNUSABLE = {
    'lfs.pth': (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n', 'a pointer of Git LFS'),
    'page.pth': (b'<!DOCTYPE html><html><body>Not Found</body></html>', 'an HTML page'),
    'page_with_mark.pth': (b'\xef\xbb\xbf\n <HTML></HTML>', 'an HTML page'),
    'vit.safetensors': (SAFE, 'a file of safetensors'),
    'empty.pth': (b'', 'the file is empty'),
    'cut.pth': (WHOLE[:-100], 'truncated checkpoint'),
    'stub.pth': (b'P', 'no checkpoint of PyTorch'),
    'cut_old.pth': (OLD[:-1], 'truncated checkpoint'),
    'cut_early.pth': (OLD[:40], 'truncated checkpoint'),
    'message.pth': (b'{"message": "Not Found"}', 'no checkpoint of PyTorch'),
}


@pytest.fixture(scope='module')
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp('task')
    for name, (content, _) in UNUSABLE.items():
        (folder / name).write_bytes(content)
    return write_task(folder)


COMMANDS = {
    'init_cfg': lambda file: ['train', 'CONFIG', '--work-dir', 'new', '--cfg-options',
                              'model.backbone.init_cfg.type=Pretrained', f'model.backbone.init_cfg.checkpoint={file}'],
    'load_from': lambda file: ['train', 'CONFIG', '--work-dir', 'new', '--cfg-options', f'load_from={file}'],
    'resume': lambda file: ['train', 'CONFIG', '--work-dir', 'new', '--resume', file],
    'test': lambda file: ['test', 'CONFIG', file, '--work-dir', 'new', '--cfg-options', 'test_dataloader=None'],
    'visualize': lambda file: ['visualize', 'CONFIG', file, '--out', 'new', '--cfg-options', 'default_scope=mmseg'],
    'export_prompts': lambda file: ['export_prompts', file, 'new'],
    'merge': lambda file: ['export_prompts', file, 'new', '--merge'],
    'export_onnx': lambda file: ['export_onnx', 'CONFIG', file, 'new'],
    'plot_attention': lambda file: ['analysis_tools/plot_attention', 'CONFIG', file, 'CONFIG', '--out', 'new'],
}


@pytest.mark.parametrize('command', COMMANDS)
@pytest.mark.parametrize('name', UNUSABLE)
def test_every_tool_says_what_the_file_is(name, command, task, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = str(task.parent / name)
    with pytest.raises(SystemExit) as stop:
        call(*[str(task) if part == 'CONFIG' else part for part in COMMANDS[command](file)])
    line = stop.value.code  # printed, with exit status 1
    assert line.startswith('error: ') and '\n' not in line and file in line and UNUSABLE[name][1] in line
    assert not os.listdir(tmp_path)


def test_whole_files_pass(tmp_path):
    with tarfile.open(tmp_path / 'tar.pth', 'w') as archive:  # PyTorch's before 0.2; only what it is is seen
        archive.addfile(tarfile.TarInfo('pickle'))
    for name, content in dict(new=WHOLE, old=OLD, classes=save(dict(x=Holder()), _use_new_zipfile_serialization=False)
                              ).items():
        (tmp_path / f'{name}.pth').write_bytes(content)
    for name in ('tar', 'new', 'old', 'classes'):
        assert weights_fault(str(tmp_path / f'{name}.pth')) is None


class Holder:
    """Of a class that PyTorch does not allow: whether to load it is not decided here."""


def test_what_timm_reads_passes_for_timm_alone(tmp_path):
    np.savez(tmp_path / 'jax.npz', a=np.ones(3))
    (tmp_path / 'vit.safetensors').write_bytes(SAFE)
    for name, words in (('jax.npz', 'an archive of NumPy'), ('vit.safetensors', 'a file of safetensors')):
        path = str(tmp_path / name)
        assert weights_fault(path, published=True) is None and words in weights_fault(path)
        os.rename(path, path + '.pth')  # timm goes by the name
        assert words in weights_fault(path + '.pth', published=True)
    (tmp_path / 'cut.safetensors').write_bytes(SAFE[:-1])
    assert weights_fault(str(tmp_path / 'cut.safetensors'), published=True) == 'truncated checkpoint'
    assert weights_fault(str(tmp_path)) == 'a directory, not a file'
