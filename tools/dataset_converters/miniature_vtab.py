#!/usr/bin/env python
"""Write the miniature VTAB: six tasks in VTAB-1k's layout, from Fashion-MNIST and scikit-learn's digits.

1000 training images (800 + 200) and 2000 test images each (digits: 797). An interrupted run goes on where it stopped.
"""
import argparse
from functools import partial
from pathlib import Path

from tqdm import tqdm

from mmprovpt.datasets.miniature_vtab import SPLITS, TASKS, draw, num_images
from mmprovpt.datasets.write_vtab1k import write_task
from mmprovpt.utils.preflight import ConfigError
from mmprovpt.utils.setup import user_errors


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('data/miniature-vtab'))
    parser.add_argument('--fashion-mnist', default='/usr/share/datasets/fashion-mnist', metavar='FOLDER',
                        help='of the four .gz files; default: where the Debian package puts them')
    parser.add_argument('--tasks', nargs='+', choices=list(TASKS), default=list(TASKS), metavar='TASK',
                        help=', '.join(TASKS))
    return parser.parse_args()


def check_files(folder):
    """Raise ConfigError for files of Fashion-MNIST that are missing."""
    names = [f'{split}-{kind}-ubyte.gz' for split in SPLITS.values() for kind in ('images-idx3', 'labels-idx1')]
    missing = [name for name in names if not (Path(folder) / name).is_file()]
    if missing:
        raise ConfigError(f'{folder} lacks {", ".join(missing)}: install Debian\'s package dataset-fashion-mnist, or '
                          'name the folder of the four files with --fashion-mnist')


@user_errors()
def main():
    args = parse_args()
    if set(args.tasks) != {'digits'}:
        check_files(args.fashion_mnist)

    def samples(task, split, numbers):
        return (draw(task, split, number, args.fashion_mnist) for number in numbers)

    with tqdm(unit='image', total=sum(1000 + num_images(task, 'test') for task in args.tasks)) as bar:
        for task in args.tasks:
            bar.set_description(task)
            numbers = dict(train800=('train', range(800)), val200=('train', range(800, 1000)),
                           test=('test', range(num_images(task, 'test'))))
            splits = {name: partial(samples, task, *part) for name, part in numbers.items()}
            write_task(args.out / task, splits, len(TASKS[task].classes),
                       dict(test=num_images(task, 'test')), bar.update)
    print(args.out)


if __name__ == '__main__':
    main()
