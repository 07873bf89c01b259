#!/usr/bin/env python
"""Write a classifier or segmentor as an ONNX graph with its prompts folded in, and check it against PyTorch.

The graph takes a batch of normalised images of one size and gives logits: (B, classes), or of a segmentor
(B, classes, H, W). What to normalise images by is printed, and is in the file's metadata.

With --prompts-as-inputs one graph serves every set of StaticPrompts, of any number in any block; those of the
checkpoint are written beside it, OUT.npz. Those of another checkpoint with the same backbone and head: CONFIG
CHECKPOINT OUT.npz --for GRAPH.onnx.
"""
import argparse
from pathlib import Path

from mmengine.config import DictAction

from mmprovpt.cli.export_onnx import (
    TOLERANCE,
    Logits,
    export_onnx,
    export_prompts,
    normalisation,
    prompt_inputs,
    write_prompts,
)
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
    parser.add_argument('out', type=Path, help='the file to write, .onnx; with --for, .npz')
    parser.add_argument('--backbone-only', action='store_true', help="the backbone's outputs, of detectors, too")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument('--prompts-as-inputs', action='store_true', help="prompts' keys and values are inputs")
    prompts.add_argument('--for', type=Path, dest='graph', metavar='GRAPH',
                         help='write no graph, but the inputs of one that was written by --prompts-as-inputs')
    parser.add_argument('--task', help='which one of a MultiTaskModel')
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
    cfg = read_scoped_config(args.config, args.cfg_options)
    model = build_model(cfg)
    several = hasattr(model, 'tasks')
    if several != (args.task is not None):
        raise ConfigError(f'{args.config} is of several tasks: --task says which' if several
                          else f'--task {args.task}, but {args.config} is of a single one')
    checked = model.tasks[args.task] if several and args.task in model.tasks else model
    if not args.backbone_only and args.graph is None:
        Logits(checked, (1, 1))  # refuses what cannot be exported, before weights are read
    load_weights(model, args.checkpoint)
    if several:
        from mmprovpt.tasks import take_task
        return take_task(model, cfg, args.task)
    return model


@user_errors()
def main():
    args = parse_args()
    if (args.out.suffix == '.npz') != (args.graph is not None):
        raise ConfigError(f'{args.out}: .npz is what --for GRAPH.onnx writes, and all else is .onnx')
    refuse_overwriting(args.out, args.config, args.checkpoint)
    model = load_model(args)
    if args.graph is not None:
        difference = export_prompts(model, args.out, args.graph)
        print(f'{args.out}: {args.out.stat().st_size / 1e3:.1f} kB, inputs of {args.graph}')
        print(f'largest difference from PyTorch: {difference:.1e} of the largest output (allowed: {TOLERANCE:.0e})')
        return
    shape = tuple(args.shape or default_shape(model))
    if args.prompts_as_inputs:
        beside = args.out.with_suffix('.npz')
        refuse_overwriting(beside, args.config, args.checkpoint)
    difference = export_onnx(model, args.out, shape, args.opset, args.backbone_only, args.prompts_as_inputs)
    outputs, largest = ('features', 'output') if args.backbone_only else ('logits', 'logit')
    print(f'{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, image (B, 3, {shape[0]}, {shape[1]}) -> {outputs}')
    if args.prompts_as_inputs:
        given = prompt_inputs(model)
        write_prompts(given, beside)
        print(f'{beside}: {beside.stat().st_size / 1e3:.1f} kB, {len(given)} inputs: keys and values of each block')
    print(f'largest difference from PyTorch: {difference:.1e} of the largest {largest} (allowed: {TOLERANCE:.0e})')
    steps = normalisation(model)
    print(f'normalise images: channels {steps["channels"]}, mean {steps["mean"]}, std {steps["std"]}')


if __name__ == '__main__':
    main()
