#!/usr/bin/env python
"""Draw predictions of a checkpoint beside the ground truth, images of validation.

One PNG per image, ground truth on the left, prediction on the right; of a classifier the image, and both above it.
What has no label in a segmentation's ground truth is dark. Small images are enlarged, so that labels can be read.
"""
import argparse
import math
import os
import os.path as osp
import sys

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import DictAction
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.registry import DATASETS, VISUALIZERS
from mmengine.structures import PixelData
from rich.progress import track

from mmprovpt.cli.options import add_trust_option, read_scoped_config
from mmprovpt.cli.preflight import check_files
from mmprovpt.cli.runner import build_model, load_weights
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.errors import ConfigError

# What a data sample of each codebase holds of ground truth.
GROUND_TRUTH = dict(mmdet='gt_instances', mmseg='gt_sem_seg', mmpretrain='gt_label')
MIN_SIDE = 512  # px, of what a panel's longer side is enlarged to, at least
HEADING = 32  # px, above a picture


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, full or small')
    parser.add_argument('--out', required=True, metavar='DIR', help='where the PNG files go')
    parser.add_argument(
        '--num', type=int, default=8, help='number of images, spread over the data set (default: %(default)s)')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='detections with lower scores are left out (default: %(default)s)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override settings of the config')
    add_trust_option(parser)
    return parser.parse_args()


def load_model(cfg, checkpoint):
    """The config's model in eval mode, with a checkpoint's weights."""
    model = build_model(cfg)
    load_weights(model, checkpoint)
    return model.to(get_device()).eval()


def build_visualizer(cfg, dataset):
    """The config's visualizer with the data set's names and colours; it writes files only."""
    visualizer = VISUALIZERS.build(dict(cfg.visualizer, name='visualize', vis_backends=None))
    visualizer.dataset_meta = dataset.metainfo
    return visualizer


def repeat(array, factor):
    """Repeat each pixel of (..., H, W), a tensor or an array, so that (..., H * factor, W * factor) comes out."""
    array = torch.as_tensor(array).cpu()
    return array.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def enlarge(sample, factor):
    """Enlarge, in place, what a data sample says of an image."""
    for name in ('gt_instances', 'pred_instances'):
        instances = sample.get(name)
        if instances is None:
            continue
        instances.bboxes = getattr(instances.bboxes, 'tensor', instances.bboxes) * factor
        if 'masks' in instances:
            masks = instances.masks
            instances.masks = repeat(masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks, factor)
    for name in ('gt_sem_seg', 'pred_sem_seg'):
        if name in sample:
            setattr(sample, name, PixelData(data=repeat(sample.get(name).data, factor)))


def put_heading(path, left, right, side):
    """Write what stands above the left and the right of a picture, the right from ``side`` px on."""
    picture = cv2.imread(path)
    strip = np.full((HEADING, *picture.shape[1:]), 255, np.uint8)
    for text, x in ((left, 8), (right, side + 8)):
        cv2.putText(strip, text, (x, HEADING - 10), cv2.FONT_HERSHEY_SIMPLEX, 0.65, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.imwrite(path, np.vstack((strip, picture)))


def draw_classified(path, image, sample, classes):
    """An image, and above it its classes, by their names if there are any."""
    mmcv.imwrite(image[..., ::-1], path)
    truth, found = (' '.join(classes[label] if classes else str(label) for label in each.tolist())
                    for each in (sample.gt_label, sample.pred_label))
    score = f', {float(sample.pred_score.max()):.0%}' if 'pred_score' in sample else ''
    put_heading(path, f'ground truth: {truth}', f'prediction: {found}{score}', image.shape[1] // 2)


def write_larger(visualizer):
    """MMDetection's texts of 6 to 13 px cannot be read once the picture is shown smaller than it is."""
    draw_texts = visualizer.draw_texts
    visualizer.draw_texts = lambda *args, font_sizes=None, **kwargs: draw_texts(*args, font_sizes=18, **kwargs)


def draw(model, dataset, visualizer, args, scope):
    """Write the files; returns how many."""
    options = dict(pred_score_thr=args.score_thr) if scope == 'mmdet' else {}
    if scope == 'mmdet':
        write_larger(visualizer)
    count = min(args.num, len(dataset))
    numbers = [place * len(dataset) // count for place in range(count)]
    for number in track(numbers, description='images', disable=not sys.stdout.isatty()):
        with torch.no_grad():
            sample = model.val_step(pseudo_collate([dataset[number]]))[0].cpu()
        if GROUND_TRUTH[scope] not in sample:
            raise ConfigError('the pipeline of val_dataloader loads no annotations: there is nothing to draw beside '
                              'predictions; give it a LoadAnnotations after its Resize')
        image = mmcv.imread(sample.img_path, channel_order='rgb')
        factor = math.ceil(MIN_SIDE / max(image.shape[:2]))
        enlarge(sample, factor)
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
        name = osp.splitext(osp.basename(sample.img_path))[0]
        path = osp.join(args.out, f'{number:04d}_{name}.png')
        if scope == 'mmpretrain':
            draw_classified(path, image, sample, dataset.metainfo.get('classes'))
            continue
        visualizer.add_datasample(name, image, sample, draw_gt=True, draw_pred=True, out_file=path, **options)
        put_heading(path, 'ground truth', 'prediction', image.shape[1])
    return count


@user_errors()
def main():
    args = parse_args()
    cfg = read_scoped_config(args.config, args.cfg_options)
    scope = cfg.get('default_scope')
    if scope not in GROUND_TRUTH:
        raise ConfigError(f'{args.config} is a config of {scope}: this draws those of {", ".join(GROUND_TRUTH)}')
    cfg.load_from = args.checkpoint
    check_files(cfg, ('val', ))
    model = load_model(cfg, args.checkpoint)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    os.makedirs(args.out, exist_ok=True)
    count = draw(model, dataset, build_visualizer(cfg, dataset), args, scope)
    print(f'{args.out}: {count} images, ground truth left, prediction right')


if __name__ == '__main__':
    main()
