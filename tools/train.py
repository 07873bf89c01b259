#!/usr/bin/env python
"""Train a config of MMDetection, MMSegmentation or MMPretrain."""
import argparse

from mmengine.device import get_device

from mmprovpt.cli.config_parts import type_name
from mmprovpt.cli.lock import locked
from mmprovpt.cli.options import add_common_options, load_config
from mmprovpt.cli.preflight import check_files
from mmprovpt.cli.resuming import latest_checkpoint
from mmprovpt.cli.runner import run
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.errors import ConfigError

# What trains in mixed precision in place of what.
AMP = dict(OptimWrapper='AmpOptimWrapper', FiniteOptimWrapper='FiniteAmpOptimWrapper')


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


def set_amp(optim_wrapper) -> None:
    """Have an optimizer wrapper's config train in mixed precision.

    Raises:
        ConfigError: It is of a type that is neither of MMEngine nor of this package.
    """
    name = type_name(optim_wrapper) if optim_wrapper.get('type') else 'OptimWrapper'
    if name not in (*AMP, *AMP.values()):
        raise ConfigError(f'--amp would replace optim_wrapper.type={name}, and knows only {", ".join(AMP)}: leave out '
                          '--amp, and set a type that trains in mixed precision')
    amp = AMP.get(name, name)
    optim_wrapper.type = f'mmprovpt.{amp}' if amp.startswith('Finite') else amp
    optim_wrapper.setdefault('loss_scale', 'dynamic')


@user_errors()
def main():
    args = parse_args()
    cfg = load_config(args)
    if args.amp:
        set_amp(cfg.optim_wrapper)
    if type_name(cfg.optim_wrapper) in AMP.values() and get_device() == 'cpu':
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
    latest = latest_checkpoint(cfg.work_dir) if args.resume == 'auto' else None
    check_files(cfg, ('train', 'val'))
    with locked(cfg.work_dir):
        run(cfg, 'train', latest)


if __name__ == '__main__':
    main()
