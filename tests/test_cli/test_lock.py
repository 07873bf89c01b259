"""One training at a time in a folder: real processes, killed ones, other hosts, half-written locks."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmprovpt.cli.lock import LOCK, locked
from mmprovpt.errors import ConfigError

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from mmprovpt.cli.lock import locked
with locked(sys.argv[1]):
    print('held', flush=True)
    sys.stdin.read()
"""
RACE = """
import sys, time
from mmprovpt.cli.lock import locked
from mmprovpt.errors import ConfigError
while time.time() < float(sys.argv[2]):
    pass
try:
    with locked(sys.argv[1]):
        print('held', flush=True)
        sys.stdin.read()
except ConfigError:
    print('refused', flush=True)
"""


def start(code, *args, **env):
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(ROOT), **env})


@pytest.fixture
def holder(tmp_path):
    """A process that trains in a folder until it is told to end."""
    process = start(HOLD, tmp_path / 'run')
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.communicate()


def test_held_by_another_process_and_then_free(holder, tmp_path):
    with pytest.raises(ConfigError, match=f'run is in use: process {holder.pid} on .*give another --work-dir'):
        with locked(tmp_path / 'run'):
            pass
    holder.communicate('')
    assert not (tmp_path / 'run').exists(), 'a new folder that stayed empty goes, and the lock with it'
    with locked(tmp_path / 'run'):
        (tmp_path / 'run/epoch_1.pth').touch()
        assert json.loads((tmp_path / 'run' / LOCK).read_text())['pid'] == os.getpid()
    assert [path.name for path in (tmp_path / 'run').iterdir()] == ['epoch_1.pth']


def test_waits_if_told_to(holder, tmp_path):
    """Until the holder ends, which takes its empty folder away meanwhile."""
    stdin, holder.stdin = holder.stdin, None
    stdin.close()
    with locked(tmp_path / 'run', wait=60):
        assert (tmp_path / 'run' / LOCK).exists()


@pytest.mark.parametrize('sent', [signal.SIGKILL, signal.SIGTERM])
def test_lock_of_a_killed_process_is_taken_over(holder, tmp_path, sent):
    """At once, while its parent has not asked yet what became of it."""
    holder.send_signal(sent)
    holder.stdout.read()
    with locked(tmp_path / 'run', wait=10):
        assert json.loads((tmp_path / 'run' / LOCK).read_text())['pid'] == os.getpid()
    assert not (tmp_path / 'run' / LOCK).exists()


@pytest.mark.parametrize('change, taken', [
    (dict(), False),
    (dict(start='earlier'), True),  # its number was given out again
    (dict(host='elsewhere', pid=2 ** 22), False),
])
def test_who_may_live(holder, tmp_path, change, taken):
    path = tmp_path / 'run' / LOCK
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if taken:
        with locked(tmp_path / 'run'):
            pass
        return
    remedy = 'cannot be seen from .*remove .*[.]lock' if change else 'end it'
    with pytest.raises(ConfigError, match=remedy), locked(tmp_path / 'run'):
        pass


@pytest.mark.parametrize('text', ['', '{"host": "a", "pi', '{}', '7', '\0\0\0'])
def test_lock_cut_off_by_a_kill_is_taken_over(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())['pid'] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_of_several_that_start_at_once_one_goes_on(tmp_path):
    """Over a dead one's lock, which all find."""
    dead = start(HOLD, tmp_path)
    dead.stdout.readline()
    dead.kill()
    dead.communicate()
    at = time.time() + 4
    started = [start(RACE, tmp_path, at) for _ in range(5)]
    answers = sorted(process.stdout.readline() for process in started)
    for process in started:
        process.communicate('')
    assert answers == ['held\n', *['refused\n'] * 4]


def test_ranks_of_a_job_share_it(holder, tmp_path):
    second = start(HOLD, tmp_path / 'run', RANK='1')
    assert second.stdout.readline() == 'held\n'
    second.communicate('')
    assert json.loads((tmp_path / 'run' / LOCK).read_text())['pid'] == holder.pid
    first = start(RACE, tmp_path / 'run', 0, RANK='0')
    assert first.stdout.readline() == 'refused\n'
    first.communicate()
