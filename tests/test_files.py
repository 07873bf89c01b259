"""Files that are whole or not there: exceptions, kills, and several processes at once."""
import os
import signal
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from mmprovpt.errors import ConfigError
from mmprovpt.files import refuse_overwriting, write_atomically

ROOT = Path(__file__).parents[1]

WRITE = """
import sys, time
from mmprovpt.files import write_atomically

letter, path, times = sys.argv[1].encode(), sys.argv[2], int(sys.argv[3])

def slowly(file):
    for _ in range(16):
        file.write(letter * 4096)
        file.flush()
        time.sleep(0.0005)

open(f'{path}.ready-{sys.argv[1]}', 'w').close()
for _ in range(times):
    write_atomically(slowly, path)
"""


def start(letter, path, times):
    return subprocess.Popen(
        [sys.executable, '-c', WRITE, letter, str(path), str(times)], env={**os.environ, 'PYTHONPATH': str(ROOT)})


def wait_for(found):
    end = time.time() + 60
    while not found():
        assert time.time() < end
        time.sleep(0.001)


def test_bytes_and_functions_that_write(tmp_path):
    write_atomically(b'abc', tmp_path / 'new/folder/a')
    assert (tmp_path / 'new/folder/a').read_bytes() == b'abc'
    write_atomically(partial(torch.save, dict(x=torch.ones(3))), str(tmp_path / 'b.pth'))
    assert torch.load(tmp_path / 'b.pth', weights_only=True)['x'].tolist() == [1, 1, 1]
    write_atomically(b'', tmp_path / 'b.pth')
    assert (tmp_path / 'b.pth').read_bytes() == b''
    assert sorted(path.name for path in tmp_path.iterdir()) == ['b.pth', 'new']


def test_name_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically(b'abc', 'a')
    assert os.listdir() == ['a'] and Path('a').read_bytes() == b'abc'


def test_permissions_are_those_of_any_new_file(tmp_path):
    former = os.umask(0o027)
    try:
        write_atomically(b'', tmp_path / 'a')
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / 'a').stat().st_mode) == 0o640


@pytest.mark.parametrize('error', [OSError('No space left on device'), KeyboardInterrupt(), ValueError('unpicklable')])
@pytest.mark.parametrize('former', [b'former', None])
def test_exception_leaves_what_was_there(error, former, tmp_path):
    def fail(file):
        file.write(b'half')
        raise error

    if former is not None:
        (tmp_path / 'a').write_bytes(former)
    with pytest.raises(type(error)):
        write_atomically(fail, tmp_path / 'a')
    assert [path.read_bytes() for path in tmp_path.iterdir()] == ([former] if former else [])


def test_target_that_is_a_folder(tmp_path):
    (tmp_path / 'a').mkdir()
    with pytest.raises(OSError):
        write_atomically(b'abc', tmp_path / 'a')
    assert os.listdir(tmp_path) == ['a']


def test_processes_that_write_one_path(tmp_path):
    """Whoever reads meanwhile, and at the end, finds a whole file of one of them."""
    path = tmp_path / 'a'
    processes = [start(letter, path, 40) for letter in 'xyz']
    seen = set()
    wait_for(path.exists)
    while any(process.poll() is None for process in processes):
        content = path.read_bytes()
        assert len(content) == 16 * 4096 and len(set(content)) == 1
        seen.add(content[:1])
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(seen) > 1  # they did overlap
    assert len(set(path.read_bytes())) == 1 and path.stat().st_size == 16 * 4096
    assert sorted(os.listdir(tmp_path)) == ['a', 'a.ready-x', 'a.ready-y', 'a.ready-z']


def test_kill_leaves_the_former_file(tmp_path):
    path = tmp_path / 'a'
    write_atomically(b'former', path)
    process = start('x', path, 1)
    wait_for(lambda: any(left.stat().st_size for left in tmp_path.glob('a.*.tmp')))
    process.send_signal(signal.SIGKILL)
    process.wait()
    left, = tmp_path.glob('a.*.tmp')
    assert path.read_bytes() == b'former' and len(left.name) == len('a.12345678.tmp')
    write_atomically(b'latter', path)
    assert path.read_bytes() == b'latter'


def test_what_is_read_is_not_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a').write_bytes(b'')
    os.symlink('a', 'soft')
    os.link('a', 'hard')
    os.symlink('.', 'here')
    for out in ('a', './a', tmp_path / 'a', 'soft', 'hard', 'here/a'):
        with pytest.raises(ConfigError, match='is what is read, and would be overwritten'):
            refuse_overwriting(out, None, 'b', 'a')
    refuse_overwriting('b', 'a', None)
    with pytest.raises(ConfigError):
        refuse_overwriting('new', './new')  # neither is there


def test_tools_do_not_write_over_what_they_read(tmp_path, call, monkeypatch):
    """Nothing of most of these files is read, so they need not be what they are named."""
    monkeypatch.chdir(tmp_path)
    files = dict.fromkeys(['x.pth', 'x.py', 'x.png', 'x.pkl', 'relocations.jsonl'], 'mine')
    files['summary.json'] = ('{"method": "VPT-Deep", "task": "cifar", "test": {"0": 1}, "seeds": 1, "parameters": 1, '
                             '"metric": "accuracy/top1"}')
    files['config.py'] = 'model = dict()'
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for tool, *args in [
            ('export_prompts', 'x.pth', 'x.pth'), ('export_prompts', 'x.pth', 'x.py', '--config', 'x.py'),
            ('export_onnx', 'x.py', 'x.pth', 'x.pth'), ('export_onnx', 'x.py', 'x.pth', 'x.py'),
            ('model_converters/to_mmpretrain', 'x.pth', 'x.pth'),
            ('analysis_tools/plot_attention', 'config.py', 'x.pth', 'x.png', '--out', 'x.png'),
            ('analysis_tools/plot_relocation', 'relocations.jsonl', '--out', 'relocations.jsonl'),
            ('table', 'summary.json', '--paper', '--out', 'summary.json'),
            ('test', 'config.py', 'x.pkl', '--out', 'x.pkl')]:
        with pytest.raises(SystemExit, match='error: .* is what is read, and would be overwritten'):
            call(tool, *args)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files
