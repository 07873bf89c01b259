#!/usr/bin/env python
"""Draw one or several relocation logs side by side: distribution, idleness, reward and entropy over the periods."""
import argparse
import sys
from pathlib import Path

from mmprovpt.errors import ConfigError
from mmprovpt.files import refuse_overwriting
from mmprovpt.visualization import LogError, plot_relocation, read_log


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('logs', nargs='+', metavar='LOG', help='relocations.jsonl')
    parser.add_argument('--out', default='relocation.png', metavar='FILE', help='picture (PNG) to write')
    parser.add_argument('--names', nargs='+', metavar='NAME', help='a title for each log; by default its path')
    return parser.parse_args()


def main():
    args = parse_args()
    names = args.names or args.logs
    if len(names) != len(args.logs):
        sys.exit(f'error: {len(args.logs)} logs, but --names gives {len(names)}')
    try:
        refuse_overwriting(args.out, *args.logs)
        runs = [read_log(log, name) for log, name in zip(args.logs, names)]
        blocks = [len(run.counts) for run in runs]
        if len(set(blocks)) > 1:
            raise LogError('the logs are about different numbers of blocks: '
                           + ', '.join(f'{log} {count}' for log, count in zip(args.logs, blocks)))
        for run in runs:
            if run.warning:
                print(f'warning: {run.warning}', file=sys.stderr)
        out = Path(args.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        print(plot_relocation(runs, out))
    except (ConfigError, LogError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
