# SPDX-License-Identifier: Apache-2.0
"""Write the embedded data set in COCO's and ADE20k's layout and as an image folder; at once done if it is there.

    python tools/dataset_converters/miniature_coco.py --out data/miniature
"""
import argparse
import signal
import sys
from functools import partial
from pathlib import Path

from miniature import build_miniature
from progress import show_progress


def parse_args():
    parser = argparse.ArgumentParser(description='Write the embedded data set: COCO, ADE20k, image folder')
    parser.add_argument('--out', type=Path, default=Path('data/miniature'),
                        help='directory of the data set (default: %(default)s)')
    parser.add_argument('--num-train', type=int, default=128, help='training images')
    parser.add_argument('--num-val', type=int, default=40, help='validation images')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args()


def main():
    args = parse_args()
    # Being terminated shall clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        written = build_miniature(args.out, args.num_train, args.num_val, seed=args.seed,
                                  progress=partial(show_progress, str(args.out)))
    except (ValueError, FileExistsError) as error:
        sys.exit(f'error: {error}')
    print(f'{args.out}: ' + ('written' if written else 'complete, nothing to do'))


if __name__ == '__main__':
    main()
