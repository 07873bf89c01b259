#!/usr/bin/env python
"""Write a classifier or segmentor as an ONNX graph with its prompts folded in, and check it against PyTorch.

The graph takes a batch of normalised images of one size and gives logits: (B, classes), or of a segmentor
(B, classes, H, W). What to normalise images by is printed, and is in the file's metadata.
"""
import argparse
from pathlib import Path

from mmengine.config import DictAction

from mmprovpt.cli.export_onnx import TOLERANCE, Logits, export_onnx, normalisation
from mmprovpt.cli.options import add_trust_option, read_scoped_config
from mmprovpt.cli.runner import build_model, load_weights
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.cli.weight_files import require_weights
from mmprovpt.errors import ConfigError
from mmprovpt.files import refuse_overwriting


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, full or small')
    parser.add_argument('out', type=Path, help='the file to write, .onnx')
    parser.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'),
        help='size of images; by default that of sliding windows, or else the one that the backbone is built for')
    parser.add_argument('--opset', type=int, help="version of ONNX's operators; by default PyTorch chooses")
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings of the config')
    add_trust_option(parser)
    return parser.parse_args()


def default_shape(model):
    size = (getattr(model, 'test_cfg', None) or {}).get('crop_size') or getattr(model.backbone, 'img_size', None)
    if size is None:
        raise ConfigError(f'the config does not say what size of images {type(model.backbone).__name__} is for: give '
                          '--shape H W')
    return [size] * 2 if isinstance(size, int) else size


def load_model(args):
    require_weights(args.checkpoint)
    model = build_model(read_scoped_config(args.config, args.cfg_options))
    Logits(model, (1, 1))  # refuses what cannot be exported, before weights are read
    load_weights(model, args.checkpoint)
    return model


@user_errors()
def main():
    args = parse_args()
    refuse_overwriting(args.out, args.config, args.checkpoint)
    model = load_model(args)
    shape = tuple(args.shape or default_shape(model))
    difference = export_onnx(model, args.out, shape, args.opset)
    print(f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, image (B, 3, {shape[0]}, {shape[1]}) -> logits')
    print(f'largest difference from PyTorch: {difference:.1e} of the largest logit (allowed: {TOLERANCE:.0e})')
    steps = normalisation(model)
    print(f'normalise images: channels {steps["channels"]}, mean {steps["mean"]}, std {steps["std"]}')


if __name__ == '__main__':
    main()
