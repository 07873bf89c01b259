#!/usr/bin/env python
"""Draw what a prompted ViT's class token looks at in an image: prompts per block, and maps of patches.

A backbone without a class token (Swin) has no such maps; the attention to prompts is then the mean over all queries.
The whole image is given to the backbone at once, also where the config tests with sliding windows.
"""
import argparse
from pathlib import Path

import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.runner import load_checkpoint

from mmprovpt.cli.config_parts import type_name
from mmprovpt.cli.options import add_trust_option, read_scoped_config
from mmprovpt.cli.runner import build_model
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.cli.weight_files import require_weights
from mmprovpt.errors import ConfigError
from mmprovpt.files import refuse_overwriting
from mmprovpt.prompts import find_prompts
from mmprovpt.visualization import attention_maps, plot_attention


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('image', help='image file')
    parser.add_argument('--out', default='attention.png', metavar='FILE', help='picture (PNG) to write')
    add_trust_option(parser)
    return parser.parse_args()


def load_model(cfg, checkpoint):
    """The model in eval mode, on the CPU, with the checkpoint's weights only."""
    model = build_model(cfg)
    try:
        find_prompts(model)
    except ValueError as error:
        raise ConfigError(f'nothing to draw: {error}') from error
    weights = load_checkpoint(model, checkpoint, map_location='cpu')
    if not any(key.endswith('prompts.tokens') for key in weights.get('state_dict', weights)):
        raise ConfigError(f'{checkpoint} holds no prompts: those drawn would be random')
    return model.eval()


def preprocess(cfg, model, image):
    """(1, 3, H, W), as the backbone gets it in testing."""
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if not loader:
        raise ConfigError('the config has neither test_dataloader nor val_dataloader, which say how images are loaded')
    dataset = loader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    # The image is all that there is.
    steps = [step for step in dataset.pipeline if 'Annotations' not in type_name(step)]
    data = Compose(steps)(dict(img_path=image, img_id=0))
    return model.data_preprocessor(pseudo_collate([data]), False)['inputs']


def picture(model, inputs):
    """(H, W, 3) uint8 of what the backbone sees, normalisation undone."""
    image, normalisation = inputs[0], model.data_preprocessor
    if getattr(normalisation, '_enable_normalize', False):
        image = image * normalisation.std + normalisation.mean
    return image.permute(1, 2, 0).clamp(0, 255).byte().numpy()


@user_errors()
@torch.no_grad()
def main():
    args = parse_args()
    refuse_overwriting(args.out, args.config, args.checkpoint, args.image)
    require_weights(args.checkpoint)
    if not Path(args.image).is_file():
        raise ConfigError(f'no such image file: {args.image} (looked for: {Path(args.image).absolute()})')
    cfg = read_scoped_config(args.config)
    model = load_model(cfg, args.checkpoint)
    inputs = preprocess(cfg, model, args.image)
    maps = attention_maps(model.backbone, inputs)
    if not maps.patches:
        print('This backbone has no class token: the mean over all queries is drawn, and no maps of patches.')
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    print(plot_attention(maps, picture(model, inputs), out, title=Path(args.image).name))


if __name__ == '__main__':
    main()
