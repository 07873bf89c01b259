"""The configs of dense tasks made small, and data in the layouts that they expect."""
import functools
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

ROOT = Path(__file__).parents[1]
SMALL_VIT = dict(embed_dims=24, num_layers=4, num_heads=2, feedforward_channels=96)


@functools.lru_cache(None)
def parse(name):
    return Config.fromfile(ROOT / f'configs/{name}.py').to_dict()


def config(name):
    return Config(parse(name))


def build(cfg):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def upstream_of(cfg):
    """Arguments of the backbone, which LoRA has inside."""
    return cfg.model.backbone.get('module', cfg.model.backbone)


def small_setr(cfg):
    upstream_of(cfg).update(arch=SMALL_VIT, out_indices=[0, 1, 2, 3], img_size=64, init_cfg=None)
    if 'neck' in cfg.model:
        cfg.model.neck.in_channels = [24] * 4
    else:
        for head in [cfg.model.decode_head, *cfg.model.auxiliary_head]:
            head.update(in_channels=24, channels=8)
    cfg.model.data_preprocessor.size = (64, 64)
    cfg.model.test_cfg.update(crop_size=(64, 64), stride=(48, 48))
    for transform in cfg.train_dataloader.dataset.pipeline:
        transform.update(dict(RandomResize=dict(scale=(256, 64)), RandomCrop=dict(crop_size=(64, 64))).get(
            transform.type, {}))
    for phase in ('val', 'test'):
        cfg[f'{phase}_dataloader'].dataset.pipeline[1].scale = (256, 64)
    for resize in cfg.tta_pipeline[1].transforms[0]:
        resize.scale = tuple(side // 16 for side in resize.scale)
    return cfg


def small_mask_rcnn(cfg):
    upstream_of(cfg).update(embed_dims=12, depths=[2, 1, 1, 1], init_cfg=None, convert_weights=False)
    cfg.model.neck.update(in_channels=[12, 24, 48, 96], out_channels=16)
    cfg.model.rpn_head.update(in_channels=16, feat_channels=16)
    roi = cfg.model.roi_head
    roi.bbox_roi_extractor.out_channels = roi.mask_roi_extractor.out_channels = 16
    roi.bbox_head.update(in_channels=16, fc_out_channels=32)
    roi.mask_head.update(in_channels=16, conv_out_channels=16)
    cfg.model.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=20)
    cfg.model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
    cfg.model.test_cfg.rcnn.update(score_thr=0., max_per_img=5)  # an untrained head is sure of nothing
    for phase in ('train', 'val', 'test'):
        for transform in cfg[f'{phase}_dataloader'].dataset.pipeline:
            if transform.type == 'Resize':
                transform.scale = (100, 64)
    return cfg


def localise(cfg, root, folder):
    """Data in a folder, in this process, and two iterations with a relocation after each."""
    for phase in ('train', 'val', 'test'):
        cfg[f'{phase}_dataloader'].update(num_workers=0, persistent_workers=False)
        cfg[f'{phase}_dataloader'].dataset.data_root = str(root)
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        if 'ann_file' in evaluator:
            evaluator.ann_file = str(root / 'annotations/instances_val2017.json')
    cfg.train_dataloader.batch_size = 2
    cfg.custom_hooks[0].update(interval=1)
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
    else:
        cfg.train_cfg.update(max_epochs=1, val_interval=1)
        cfg.train_dataloader.dataset.filter_cfg.update(filter_empty_gt=False)
    cfg.work_dir, cfg.experiment_name = str(folder), f'dense_{folder.name}'
    return cfg
