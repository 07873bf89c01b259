"""Which parts of detectors with prompts PyTorch's exporter makes ONNX graphs of, and what stops it at the others.

    python benchmarks/onnx_detectors.py

Narrow models with random weights, images of 64 px, on the CPU. A part that is exported is run by ONNX Runtime, and the
largest difference from PyTorch is printed; of one that is not, the exporter's reason and the line of upstream.
"""
import re
import tempfile
from pathlib import Path

import onnxruntime
import torch
from mmengine.config import Config
from torch import nn
from tqdm import tqdm

from mmprovpt.cli.runner import build_model
from mmprovpt.shipped import shipped

CONFIGS = {'Mask R-CNN': 'configs/demo/mask_rcnn_swin_mini_vpt_digits.py',
           'RetinaNet': 'configs/recipes/retinanet_swin_t_coco.py'}
META = dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64), batch_input_shape=(64, 64), scale_factor=(1, 1))


class Maps(nn.Module):
    """Scores and boxes of each cell, before anything is chosen: of RetinaNet, or of Mask R-CNN's proposals."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        head = self.model.rpn_head if hasattr(self.model, 'rpn_head') else self.model.bbox_head
        scores, boxes = head(self.model.extract_feat(image))
        return (*scores, *boxes)


class Regions(nn.Module):
    """Mask R-CNN's second stage on given boxes."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image, boxes):
        features = self.model.extract_feat(image)
        found = self.model.roi_head._bbox_forward(features, boxes)
        masks = self.model.roi_head._mask_forward(features, boxes)
        return found['cls_score'], found['bbox_pred'], masks['mask_preds']


class Whole(nn.Module):
    """Boxes, scores and labels."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        from mmdet.structures import DetDataSample
        found = self.model.predict(image, [DetDataSample(metainfo=META)], rescale=False)[0].pred_instances
        return found.bboxes, found.scores, found.labels


def build(path):
    cfg = Config.fromfile(shipped(path))
    cfg.model.backbone.update(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4, init_cfg=None)
    cfg.model.neck.in_channels = [8, 16, 32, 64][-len(cfg.model.neck.in_channels):]
    for head in ('bbox_roi_extractor', 'mask_roi_extractor') if 'roi_head' in cfg.model else ():
        cfg.model.roi_head[head].roi_layer.use_torchvision = True  # mmcv's operator is not PyTorch's to trace
    model = build_model(cfg).eval().requires_grad_(False)
    model.backbone.prompts.reset_parameters()
    return model


def attempt(part, arguments, folder):
    """What became of it, in words."""
    expected = part(*arguments)
    path = Path(folder, 'part.onnx')
    try:
        exported = torch.export.export(part, arguments, strict=False)
        torch.onnx.export(exported, dynamo=True, optimize=False, verbose=False).save(path)
    except Exception as error:  # whatever the exporter raises
        text = str(error)
        reason = re.search(r'Could not guard on data-dependent expression \S+ \S+ \S+', text)
        line = re.findall(r'mm\w+/\S+\.py(?::|", line )\d+', text)
        return f'{type(error).__name__}: {reason[0] if reason else text[:100]} ({line[-1] if line else "no line"})'
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    got = session.run(None, {each.name: value.numpy() for each, value in zip(session.get_inputs(), arguments)})
    return f'{max(float(abs(one - other.numpy()).max()) for one, other in zip(got, expected)):.1e}'


@torch.no_grad()
def main():
    torch.manual_seed(0)
    image, boxes = torch.randn(1, 3, 64, 64), torch.tensor([[0, 1., 2., 30., 40.], [0, 5., 5., 20., 20.]])
    for name, path in tqdm(CONFIGS.items(), unit='model'):
        model = build(path)
        parts = {'maps of the dense head': (Maps, image), 'whole': (Whole, image)}
        if hasattr(model, 'roi_head'):
            parts['second stage on given boxes'] = (Regions, image, boxes)
        for what, (part, *arguments) in parts.items():
            with tempfile.TemporaryDirectory() as folder:
                print(f'{name}, {what}: {attempt(part(model), tuple(arguments), folder)}', flush=True)


if __name__ == '__main__':
    main()
