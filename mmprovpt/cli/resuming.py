"""Which checkpoint a run goes on from, that is asked to go on from the latest."""
import os
import os.path as osp
import re
from pathlib import Path

from mmprovpt.errors import ConfigError

from .weight_files import weights_fault


def latest_checkpoint(work_dir: str) -> str | None:
    """The file that ``last_checkpoint`` of a work directory names; None where no checkpoint lies.

    The folder may have been moved or copied since: a file of that name in the folder itself comes first, whatever path
    was noted.

    Raises:
        ConfigError: Checkpoints lie there, or one is named, but none can be resumed; says which there are.
    """
    note = Path(work_dir) / 'last_checkpoint'
    named = os.fsdecode(note.read_bytes()).strip() if note.is_file() else ''
    name = re.split(r'[\\/]', named)[-1]  # of either system
    beside = osp.join(work_dir, name)
    path = beside if name and osp.exists(beside) else named
    if re.match(r'[A-Za-z][\w.+-]+:', path):  # not a file of this machine
        return path
    there = sorted(str(file) for file in Path(work_dir).glob('*.pth'))
    if not note.is_file():
        reason = f'there is no {note}'
    elif not named:
        reason = f'{note} is empty'
    else:
        fault = weights_fault(path)
        if fault is None:
            return path
        reason = f'{note} names {named!r}: {fault}' + (f' (looked for: {path} and {beside})' if path != beside else '')
    if not there and not note.is_file():
        return None
    listed = f'; checkpoints in {work_dir}: {", ".join(map(osp.basename, there)) or "none"}'
    raise ConfigError(f'nothing to resume: {reason}{listed}. Name one with --resume PATH, or leave out --resume to '
                      'start anew')
