#!/usr/bin/env python
"""Count what configs train: prompts that a block owns, neck and head, and the networks of the relocation's policy.

    python tools/analysis_tools/count_parameters.py configs/vtab1k/vit_b_provpt_*.py

Nothing is trained, and no data or weights are needed.
"""
import argparse
import logging
import sys
from statistics import mean

from mmengine.config import DictAction
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import track

from mmprovpt.cli.options import read_scoped_config
from mmprovpt.cli.parameters import count_config
from mmprovpt.cli.user_errors import user_errors


@user_errors()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', metavar='CONFIG')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override settings of the configs')
    args = parser.parse_args()
    MMLogger.get_instance('mmengine', log_level=logging.WARNING)  # what every built backbone says
    counts = []
    for path in track(args.configs, 'configs', console=Console(stderr=True), disable=not sys.stderr.isatty()):
        counts.append(count_config(read_scoped_config(path, args.cfg_options)))
        print(f'{counts[-1]:>12,}  {path}')
    print(f'{mean(counts):>12,.0f}  mean of {len(counts)}')


if __name__ == '__main__':
    main()
