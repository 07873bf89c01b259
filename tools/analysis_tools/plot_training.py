#!/usr/bin/env python
"""Draw a run's loss and metric beside its relocations, one figure over the iterations; also of a run that goes on."""
import argparse
import sys
from pathlib import Path

from mmprovpt.errors import ConfigError
from mmprovpt.files import refuse_overwriting
from mmprovpt.visualization import LogError, plot_training, read_training


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('run', metavar='RUN', help='work directory, or the folder of one run in it')
    parser.add_argument('--out', default='training.png', metavar='FILE', help='picture (PNG) to write')
    parser.add_argument('--metric', nargs='+', metavar='NAME', help='as logged; by default mIoU, or the first')
    parser.add_argument('--title', default='')
    args = parser.parse_args()
    try:
        refuse_overwriting(args.out, *Path(args.run).glob('**/*.json*'))
        training = read_training(args.run)
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        print(plot_training(training, args.out, args.metric, args.title))
    except (ConfigError, LogError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
