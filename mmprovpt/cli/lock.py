"""One training at a time in a folder."""
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmprovpt.errors import ConfigError
from mmprovpt.files import removing_empty

try:
    import fcntl
except ImportError:  # not on Windows: there two that begin in the same millisecond could both go on
    fcntl = None  # type: ignore[assignment]

LOCK = '.lock'
RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


@contextmanager
def locked(folder: str | Path, wait: float = 0.) -> Iterator[None]:
    """Keep other processes from training in a folder; what belongs to it is in its file ``.lock``.

    Of a job of several processes, rank 0 locks for all. The lock of a process that has ended, however it did, is taken
    over. Whether it has is known on its own host only: by its number and the time at which it started, since numbers
    are given out again. The lock of another host stays until somebody removes the file.

    Args:
        folder: Made if it is missing, and removed at the end if it is new and empty.
        wait: Seconds to wait for one that holds it.

    Raises:
        ConfigError: Another process holds it.
    """
    if next((os.environ[name] for name in RANKS if name in os.environ), '0') != '0':
        yield
        return
    path = Path(folder).absolute() / LOCK
    mine = dict(host=socket.gethostname(), pid=os.getpid(), start=_start_of(os.getpid()),
                since=time.strftime('%Y-%m-%d %H:%M:%S'))
    with removing_empty(path.parent):
        end = time.monotonic() + wait
        while (holder := _take(path, mine)) is not None:
            if time.monotonic() >= end:
                raise ConfigError(_complaint(path, holder, mine['host']))
            time.sleep(0.2)
        try:
            yield
        finally:
            _release(path, mine)


def _take(path: Path, mine: dict) -> dict | None:
    """Write the lock, unless a process that may be alive holds it: then return what it wrote."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _alone(path) as file:
                holder = _read(file)
                if holder is not None and _may_live(holder, mine['host']):
                    return holder
                file.seek(0)
                file.truncate()
                file.write(json.dumps(mine).encode())
            return None
        except FileNotFoundError:  # whoever held it has just ended, and took its empty folder away
            continue


def _release(path: Path, mine: dict) -> None:
    try:
        with _alone(path) as file:
            if _read(file) == mine:
                path.unlink()
    except OSError:  # somebody has removed the folder
        pass


@contextmanager
def _alone(path: Path) -> Iterator:
    """The open file, which no one else reads or writes meanwhile; made if it is not there."""
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), 'r+b') as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX)
                except OSError:  # a network's file system without that
                    pass
            # Who had it before may have removed it, and another may have made it anew.
            if _is_still(path, file):
                yield file
                return


def _is_still(path: Path, file) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read(file) -> dict | None:
    """What the holder wrote; None of a new file, and of one that a kill or a full disk cut off."""
    file.seek(0)
    try:
        holder = json.loads(file.read())
        return holder if {'host', 'pid', 'start', 'since'} <= holder.keys() else None
    except (ValueError, AttributeError):
        return None


def _may_live(holder: dict, host: str) -> bool:
    if holder['host'] != host:
        return True
    start = _start_of(holder['pid'])
    return start is not None and start == holder['start']


def _start_of(pid: int) -> str | None:
    """When a process of this host was started, in whatever unit; None if there is none, or it has ended."""
    try:
        # After the name, which may hold anything, in brackets: the state, and 19 fields later the time since booting.
        fields = Path(f'/proc/{pid}/stat').read_text(encoding='utf-8', errors='replace').rpartition(')')[2].split()
        boot = Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()
        return None if fields[0] in 'ZX' else boot + fields[19]
    except OSError:
        pass
    if os.path.exists('/proc/self/stat'):
        return None
    try:  # no Linux: the number alone
        os.kill(pid, 0)
    except PermissionError:
        return ''
    except OSError:
        return None
    return ''


def _complaint(path: Path, holder: dict, host: str) -> str:
    remedy = 'wait for it, end it, or give another --work-dir'
    if holder['host'] != host:
        remedy += f'; if it has ended, which cannot be seen from {host}, remove {path}'
    return (f'{path.parent} is in use: process {holder["pid"]} on {holder["host"]} has been training there since '
            f'{holder["since"]}. Two in one folder overwrite each other: {remedy}')
