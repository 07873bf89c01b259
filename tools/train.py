#!/usr/bin/env python
"""Train a config of MMDetection, MMSegmentation or MMPretrain."""
import argparse
import sys

from mmengine.device import get_device

from mmprovpt.cli.config_parts import type_name
from mmprovpt.cli.lock import locked
from mmprovpt.cli.options import add_common_options, load_config
from mmprovpt.cli.preflight import check_files, unused_schedules
from mmprovpt.cli.runner import build_runner
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.errors import ConfigError


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CKPT',
        help='resume from CKPT, or from the latest checkpoint in the work directory')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument(
        '--auto-scale-lr', action='store_true',
        help='scale the learning rate with the batch size, from auto_scale_lr.base_batch_size')
    add_common_options(parser)
    return parser.parse_args()


@user_errors()
def main():
    args = parse_args()
    cfg = load_config(args)
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if type_name(cfg.optim_wrapper) == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise ConfigError('mixed precision (--amp, AmpOptimWrapper) needs a GPU, and none is '
                          'available: leave out --amp, or set optim_wrapper.type=OptimWrapper')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ConfigError(
                '--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config')
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    check_files(cfg, ('train', 'val'))
    for sentence in unused_schedules(cfg):
        print(f'warning: {sentence}', file=sys.stderr)
    with locked(cfg.work_dir):
        build_runner(cfg).train()


if __name__ == '__main__':
    main()
