# SPDX-License-Identifier: Apache-2.0
"""Write VTAB-1k from TensorFlow Datasets, which fetches what it has not got; splits that are complete are kept.

    python tools/dataset_converters/vtab1k.py --out data/vtab-1k --tasks cifar dtd
"""
import argparse
import signal
import sys
from functools import partial
from pathlib import Path

from progress import show_progress
from vtab1k_sources import SOURCES
from write_vtab1k import WRITTEN, write_task

from mmprovpt.cli.user_errors import user_errors
from mmprovpt.datasets.vtab1k_tasks import BY_NAME, SPLITS
from mmprovpt.errors import ConfigError
from mmprovpt.shipped import shipped


def import_tfds():
    """TensorFlow Datasets, with TensorFlow on the CPU only."""
    try:
        import tensorflow
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        if error.name not in ('tensorflow', 'tensorflow_datasets'):
            raise
        raise ConfigError(f'{error.name} is not installed\nwhat to do: pip install tensorflow tensorflow-datasets (in '
                          'an environment of its own if it wants another NumPy), or get VTAB-1k prepared: '
                          + shipped('docs/how-to/datasets.md')) from None
    tensorflow.config.set_visible_devices([], 'GPU')
    return tensorflow_datasets


def write(task, out, tfds, data_dir):
    """Write one task; returns the splits that were not there before."""
    source = SOURCES[task]
    builder = tfds.builder(source.builder, data_dir=data_dir)
    builder.download_and_prepare()
    splits = source.splits({name: info.num_examples for name, info in builder.info.splits.items()})

    def images(split):
        # In the order of the files: the first 800 are always the same.
        data = builder.as_dataset(split=splits[split], shuffle_files=False)
        return map(source.convert, tfds.as_numpy(data))

    sizes = {split: SPLITS[split] or BY_NAME[task].num_test for split in WRITTEN}
    return write_task(out / task, {split: partial(images, split) for split in WRITTEN}, sizes,
                      BY_NAME[task].num_classes, lambda split, *counts: show_progress(f'{task} {split:<8}', *counts))


def parse_args():
    parser = argparse.ArgumentParser(description='Write VTAB-1k from TensorFlow Datasets')
    parser.add_argument('--out', type=Path, default=Path('data/vtab-1k'),
                        help='directory of the tasks (default: %(default)s)')
    parser.add_argument('--tfds-dir', metavar='FOLDER',
                        help='where TensorFlow Datasets keeps its data (default: its own, ~/tensorflow_datasets)')
    parser.add_argument('--tasks', nargs='+', choices=list(SOURCES), default=list(SOURCES), metavar='TASK',
                        help=f'of {", ".join(SOURCES)} (default: all)')
    return parser.parse_args()


@user_errors()
def main():
    args = parse_args()
    # Being terminated shall clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tfds = import_tfds()
    for task in args.tasks:
        written = write(task, args.out, tfds, args.tfds_dir)
        print(f'{args.out / task}: ' + (f'{", ".join(written)} written' if written else 'complete, nothing to do'))


if __name__ == '__main__':
    main()
