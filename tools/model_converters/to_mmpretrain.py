#!/usr/bin/env python
"""Convert published weights of a ViT or Swin for mmpretrain's backbones (docs/how-to/weights.md).

The layout is recognised by the keys. The result is written only if mmpretrain gives timm's features on it.
"""
import argparse

from convert_weights import convert, some

from mmprovpt.cli.options import add_trust_option
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.files import refuse_overwriting


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='IN', help='the published file: .npz, .pth, .pth.tar, .bin, .safetensors')
    parser.add_argument('out', metavar='OUT', help='the checkpoint to write')
    parser.add_argument('--img-size', type=int, metavar='PIXELS',
                        help="resize a ViT's position embedding as timm does; by default it stays as it is")
    parser.add_argument('--num-heads', type=int, metavar='N', help='of a ViT whose file and width do not tell it')
    parser.add_argument('--timm', action='store_true', help="write timm's keys, for mmpretrain's TIMMBackbone")
    add_trust_option(parser)
    return parser.parse_args()


def main():
    with user_errors():
        args = parse_args()
        refuse_overwriting(args.out, args.source)
        meta = convert(args.source, args.out, args.img_size, args.num_heads, args.timm)
        print(f'{args.source}: {meta["source"]}, sha256 {meta["sha256"]}')
        print(f'left out: {some(meta["left_out"]) or "nothing"}')
        print(f'features: at most {meta["max_difference"]:.1e} from timm {meta["timm"]} (the largest is '
              f'{meta["max_feature"]:.1f})')
        print(f'image mean and std (RGB): {meta["mean"]} {meta["std"]}' if meta['mean'] else
              'image mean and std: not known from the file')
        print(f'backbone: {meta["backbone"]}')
        print(f'written: {args.out}')


if __name__ == '__main__':
    main()
