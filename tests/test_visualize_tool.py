"""tools/visualize.py on the demos' configs, data and pre-trained backbones; the heads are noise."""
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature import build_miniature
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from PIL import Image

from mmprovpt import tuned_state_dict

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('sklearn')

ROOT = Path(__file__).parents[1]
DET = 'configs/demo/mask_rcnn_swin_mini_provpt_digits.py'
CLS = 'configs/demo/swin_mini_provpt_digits.py'
SEG = 'configs/demo/setr_pup_vit_mini_provpt_digits.py'
HEADING = 32  # px, of the line above each picture
FACTOR = 4  # 160 px become the least multiple that is not below 512


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A directory with the data where the configs look for it."""
    root = tmp_path_factory.mktemp('visualize')
    build_miniature(root / 'data/miniature', num_train=1, num_val=2)
    return root


@pytest.fixture
def visualize(root, call, monkeypatch):
    """Call the tool in this process; returns the pictures below their headings, float (H, W, 3)."""
    monkeypatch.chdir(root)

    def visualize(config, checkpoint, out, *args):
        call('visualize', ROOT / config, checkpoint, '--out', out, *args)
        return [np.array(Image.open(path)).astype(float)[HEADING:] for path in sorted(out.glob('*.png'))]

    return visualize


def build(config):
    cfg = Config.fromfile(ROOT / config)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return cfg, model.eval()


def val_image(root, number):
    return np.array(Image.open(root / f'data/miniature/val/{number:06d}.jpg')).astype(float)


def painted(panel, image, palette):
    """Which colour of the palette each pixel of the image was covered with, to 80 %."""
    colours = (panel[FACTOR // 2::FACTOR, FACTOR // 2::FACTOR] - 0.2 * image) / 0.8
    return np.abs(colours[:, :, None] - np.array(palette)).sum(-1).argmin(-1)


def test_segmentation(root, visualize, tmp_path):
    cfg, model = build(SEG)
    model.backbone.prompts.reset_parameters()  # untrained prompts are meant
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'full.pth')
    torch.save(dict(state_dict=tuned_state_dict(model)), tmp_path / 'small.pth')
    pictures = visualize(SEG, tmp_path / 'full.pth', tmp_path / 'full', '--num', '5')
    assert sorted(path.name for path in (tmp_path / 'full').iterdir()) == ['0000_000001.png', '0001_000002.png']
    again, = visualize(SEG, tmp_path / 'small.pth', tmp_path / 'small', '--num', '1')
    np.testing.assert_array_equal(again, pictures[0])

    palette = cfg.val_dataloader.dataset.metainfo.palette
    mean, std = (np.array(cfg.model.data_preprocessor[key]) for key in ('mean', 'std'))
    for number, picture in enumerate(pictures, 1):
        assert picture.shape == (128 * FACTOR, 2 * 160 * FACTOR, 3)
        left, right = np.split(picture, 2, axis=1)
        image = val_image(root, number)
        stored = np.array(Image.open(root / f'data/miniature/annotations/validation/{number:06d}.png')).astype(int)
        labelled = stored > 0
        # Names of classes and borders between regions are the rest.
        assert (painted(left, image, palette) == stored - 1)[labelled].mean() > 0.8
        if not labelled.all():
            dark = left[FACTOR // 2::FACTOR, FACTOR // 2::FACTOR][~labelled] - 0.2 * image[~labelled]
            assert np.median(np.abs(dark)) < 10
        inputs = torch.from_numpy(((image - mean) / std).transpose(2, 0, 1)[None]).float()
        with torch.no_grad():
            logits = model.decode_head(model.backbone(inputs))
        assert tuple(logits.shape[2:]) == (128, 160)
        predicted = logits[0].argmax(0).numpy()
        assert len(np.unique(predicted)) > 3
        assert (painted(right, image, palette) == predicted).mean() > 0.6
        assert (painted(left, image, palette) == predicted).mean() < 0.4


def test_detection(root, visualize, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    cfg, model = build(DET)
    model.backbone.prompts.reset_parameters()  # untrained prompts are meant
    torch.nn.init.constant_(model.roi_head.mask_head.conv_logits.bias, 5.)  # whole masks, not noise
    torch.save(dict(state_dict=tuned_state_dict(model)), tmp_path / 'small.pth')
    option = ['--cfg-options', 'model.test_cfg.rcnn.max_per_img=2']
    pictures = visualize(DET, tmp_path / 'small.pth', tmp_path / 'all', '--score-thr', '0', *option)
    nothing = visualize(DET, tmp_path / 'small.pth', tmp_path / 'none', '--score-thr', '1', *option)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    model.roi_head.test_cfg.max_per_img = 2
    for number, (picture, empty) in enumerate(zip(pictures, nothing, strict=True)):
        with torch.no_grad():
            sample = model.val_step(pseudo_collate([dataset[number]]))[0]
        image = val_image(root, number + 1)
        left, right = np.split(picture, 2, axis=1)
        assert np.abs(np.split(empty, 2, axis=1)[1][2::4, 2::4] - image).mean() < 6  # the image as it is
        truth, found = sample.gt_instances, sample.pred_instances
        assert len(found) == 2
        for panel, masks, labels in ((left, truth.masks.masks, truth.labels),
                                     (right, found.masks.numpy(), found.labels)):
            pixels = panel[2::4, 2::4]
            for mask, label in zip(masks.astype(bool), labels, strict=True):
                own = mask & (masks.sum(0) == 1)
                colours = (pixels[own] - 0.2 * image[own]) / 0.8
                colour = np.median(colours, axis=0)  # the palette's, jittered by up to 64, says MMDetection
                assert np.abs(colour - dataset.metainfo['palette'][label]).max() < 80
                # Outlines, boxes and texts are the rest.
                assert (np.abs(colours - colour).max(-1) < 25).mean() > 0.5
            outside = masks.sum(0) == 0
            assert np.median(np.abs(pixels - image)[outside]) < 6


def test_classification(visualize, tmp_path):
    cfg, model = build(CLS)
    torch.manual_seed(0)
    model.backbone.prompts.reset_parameters()
    torch.nn.init.normal_(model.head.fc.weight)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'full.pth')
    pictures = visualize(CLS, tmp_path / 'full.pth', tmp_path / 'out', '--num', '3')
    assert len(pictures) == 3
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    for number, picture in enumerate(pictures):
        info = dataset.get_data_info(number * len(dataset) // 3)  # spread over the data
        image = np.array(Image.open(info['img_path'])).astype(float)
        assert picture.shape == (560, 560, 3)  # 56 px, ten times
        assert np.abs(picture[5::10, 5::10] - image).mean() < 6


@pytest.mark.parametrize('config, option, message', [
    (SEG, ['--cfg-options', 'val_dataloader.dataset.data_root=nowhere'], 'the config names files that cannot be used'),
    (SEG, ['--cfg-options', 'model.decode_head.channels=8'], 'a.pth does not fit the config'),
])
def test_mistakes(visualize, tmp_path, config, option, message):
    torch.save(dict(state_dict=build(config)[1].state_dict()), tmp_path / 'a.pth')
    with pytest.raises(SystemExit) as stop:
        visualize(config, tmp_path / 'a.pth', tmp_path / 'out', *option)
    assert message in stop.value.code
    assert not (tmp_path / 'out').exists()


def test_data_without_annotations(visualize, tmp_path):
    torch.save(dict(state_dict=build(SEG)[1].state_dict()), tmp_path / 'a.pth')
    (tmp_path / 'config.py').write_text(f"""
_base_ = '{ROOT / SEG}'
val_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]))
""")
    with pytest.raises(SystemExit) as stop:
        visualize(tmp_path / 'config.py', tmp_path / 'a.pth', tmp_path / 'out')
    assert 'loads no annotations' in stop.value.code
