#!/usr/bin/env python
"""Make a small checkpoint (only what was tuned) of a full one; or with --merge, a full one of a small one.

The model is built from the config, so that it is known what is frozen. --merge takes the frozen weights from where
the config's init_cfg says, and refuses others than the small checkpoint was tuned on.
"""
import argparse
import contextlib
import copy
import os.path as osp
from functools import partial

import torch
from mmengine.config import Config, DictAction
from mmengine.runner import CheckpointLoader
from mmengine.runner.checkpoint import load_state_dict

from mmprovpt.backbones import tuned_state_dict
from mmprovpt.backbones.loading import FINGERPRINT
from mmprovpt.cli.carried_config import only_registered, parse_config
from mmprovpt.cli.config_parts import scope_of
from mmprovpt.cli.options import add_trust_option, read_config
from mmprovpt.cli.runner import build_model
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.cli.weight_files import require_weights
from mmprovpt.errors import ConfigError
from mmprovpt.files import refuse_overwriting, write_atomically

EMA = 'module.'  # what EMAHook puts in front of its keys


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoint', help='of MMEngine: a full one, or with --merge a small one')
    parser.add_argument('out', help='the file to write')
    parser.add_argument('--merge', action='store_true', help='add the frozen weights instead of leaving them out')
    parser.add_argument('--config', help='by default the config that the checkpoint carries')
    parser.add_argument(
        '--resumable', action='store_true',
        help='keep what training needs to go on (optimizer, schedulers, states of hooks), not only weights and meta')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='override settings of the config, such as model.backbone.init_cfg.checkpoint')
    add_trust_option(parser)
    return parser.parse_args()


def load(path):
    require_weights(path)
    checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    if not isinstance(checkpoint.get('state_dict'), dict):
        raise ConfigError(f'{path} is no checkpoint of MMEngine: it has no state_dict')
    return checkpoint


def find_config(checkpoint, args):
    """The config, and in what its model is to be built and initialised."""
    building = contextlib.nullcontext()
    if args.config:
        cfg = read_config(args.config)
    elif 'cfg' in checkpoint.get('meta', {}):
        text = checkpoint['meta']['cfg']
        if args.trust_checkpoint:
            cfg = Config.fromstring(text, file_format='.py')
        else:
            cfg, building = parse_config(text), only_registered()
    else:
        raise ConfigError(f'{args.checkpoint} carries no config: give --config')
    cfg.merge_from_dict(args.cfg_options or {})
    cfg.default_scope = scope_of(cfg)
    return cfg, building


def convert(model, state_dict, merge):
    """Load a state dict, completely, into the model; return it with or without what is frozen."""
    try:
        load_state_dict(model, state_dict, strict=True)
        return model.state_dict() if merge else tuned_state_dict(model)
    except ConfigError:
        raise
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f'the checkpoint does not fit the config: {error}') from error


@user_errors()
def main():
    args = parse_args()
    refuse_overwriting(args.out, args.checkpoint, args.config)
    checkpoint = load(args.checkpoint)
    if args.merge and not any(key.endswith(FINGERPRINT) for key in checkpoint['state_dict']):
        raise ConfigError(f'{args.checkpoint} is no checkpoint of what was tuned: it has no key that ends with '
                          f'{FINGERPRINT}')
    if not args.resumable:
        checkpoint = {key: checkpoint[key] for key in ('meta', 'state_dict') if key in checkpoint}
    cfg, building = find_config(checkpoint, args)
    with building:
        model = build_model(cfg)
        average = checkpoint.get('ema_state_dict')
        if average is not None:
            own = {key[len(EMA):]: value for key, value in average.items() if key.startswith(EMA)}
            others = {key: value for key, value in average.items() if not key.startswith(EMA)}
            own = copy.deepcopy(convert(model, own, args.merge))  # or the next loading would overwrite it
            checkpoint['ema_state_dict'] = {**others, **{EMA + key: value for key, value in own.items()}}
        checkpoint['state_dict'] = convert(model, checkpoint['state_dict'], args.merge)
    write_atomically(partial(torch.save, checkpoint), args.out)
    print(f'{args.out}: {osp.getsize(args.out) / 1e6:.2f} MB, {len(checkpoint["state_dict"])} tensors')


if __name__ == '__main__':
    main()
