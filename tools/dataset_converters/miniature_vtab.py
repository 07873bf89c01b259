# SPDX-License-Identifier: Apache-2.0
"""Write the miniature VTAB, six tasks in VTAB-1k's layout; what is complete is kept.

    python tools/dataset_converters/miniature_vtab.py --out data/miniature-vtab
"""
import argparse
import signal
import sys
from functools import partial
from pathlib import Path

from draw_miniature import SPLITS, draw, num_images
from progress import show_progress
from write_vtab1k import WRITTEN, write_task

from mmprovpt.cli.user_errors import user_errors
from mmprovpt.datasets.miniature_tasks import TASKS
from mmprovpt.errors import ConfigError

# Split of VTAB-1k → split of the miniature and which of its images. Classes come in turn (of the digits, about so), so
# both parts of the training split have about as many of each.
PARTS = dict(train800=('train', 0, 800), val200=('train', 800, 1000), test=('test', 0, None))


def check_source(folder):
    """Raise if one of Fashion-MNIST's files is missing."""
    names = [f'{begin}-{kind}-ubyte.gz' for begin in SPLITS.values() for kind in ('images-idx3', 'labels-idx1')]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f'no {", ".join(missing)} in {folder}\nwhat to do: install Debian\'s package of Fashion-MNIST (apt-get '
            'install dataset-fashion-mnist), or name the folder of its four .gz files with --fashion-mnist')


def write(task, out, folder):
    """Write one task; returns the splits that were not there before."""
    def images(split):
        source, start, stop = PARTS[split]
        stop = num_images(task, source) if stop is None else stop
        return (draw(task, source, number, str(folder)) for number in range(start, stop))

    sizes = dict(train800=800, val200=200, test=num_images(task, 'test'))
    return write_task(out / task, {split: partial(images, split) for split in WRITTEN}, sizes,
                      len(TASKS[task].classes), lambda split, *counts: show_progress(f'{task} {split:<8}', *counts))


def parse_args():
    parser = argparse.ArgumentParser(description="Write the miniature VTAB in VTAB-1k's layout")
    parser.add_argument('--out', type=Path, default=Path('data/miniature-vtab'),
                        help='directory of the tasks (default: %(default)s)')
    parser.add_argument('--fashion-mnist', type=Path, default=Path('/usr/share/datasets/fashion-mnist'),
                        metavar='FOLDER', help="of Fashion-MNIST's four .gz files (default: %(default)s)")
    parser.add_argument('--tasks', nargs='+', choices=list(TASKS), default=list(TASKS), help='default: all')
    return parser.parse_args()


@user_errors()
def main():
    args = parse_args()
    # Being terminated shall clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if set(args.tasks) != {'digits'}:
        check_source(args.fashion_mnist)
    for task in args.tasks:
        written = write(task, args.out, args.fashion_mnist)
        print(f'{args.out / task}: ' + (f'{", ".join(written)} written' if written else 'complete, nothing to do'))


if __name__ == '__main__':
    main()
