"""Inferencers, tools/test.py and test-time augmentation of all codebases, from full and from small checkpoints."""
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from matrix import randomise
from mmengine.config import Config
from PIL import Image

from mmprovpt import tuned_state_dict
from mmprovpt.cli.runner import build_model

ROOT = Path(__file__).parents[1]
PROMPTS = dict(type='StaticPrompts', num_tokens=2)
VIT = dict(type='mmprovpt.PromptedVisionTransformer', img_size=32, patch_size=8, prompts=PROMPTS)
MEAN_STD = dict(mean=[120., 110., 100.], std=[60., 50., 40.])
FLIPS = [dict(type='RandomFlip', prob=1.), dict(type='RandomFlip', prob=0.)]
METAS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')


def classifier():
    load, pack = dict(type='LoadImageFromFile'), dict(type='PackInputs')
    return dict(
        default_scope='mmpretrain', data_preprocessor=dict(num_classes=2, **MEAN_STD),
        model=dict(
            type='ImageClassifier',
            backbone=dict(VIT, arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=32),
                          init_cfg=dict(type='Pretrained', checkpoint='frozen.pth', prefix='backbone.')),
            head=dict(type='LinearClsHead', in_channels=32, num_classes=2)),
        test_dataloader=dict(dataset=dict(type='CustomDataset', data_root='images', pipeline=[load, pack])),
        test_evaluator=dict(type='Accuracy'),
        tta_model=dict(type='AverageClsScoreTTA'),
        tta_pipeline=[load, dict(type='TestTimeAug', transforms=[FLIPS, [pack]])])


def segmentor():
    load, labels, pack = (dict(type=name) for name in ('LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs'))
    return dict(
        default_scope='mmseg',
        model=dict(
            type='EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 48), **MEAN_STD),
            # Which the segmentor passes on to the backbone, and MMSegInferencer and init_model delete.
            pretrained='frozen.pth', backbone=dict(VIT, embed_dims=32, num_layers=2, num_heads=2, out_indices=(1, )),
            decode_head=dict(type='FCNHead', in_channels=32, channels=8, num_classes=2, in_index=0,
                             norm_cfg=dict(type='SyncBN')),
            test_cfg=dict(mode='whole')),
        test_dataloader=dict(dataset=dict(
            type='BaseSegDataset', data_root='.', data_prefix=dict(img_path='images/0', seg_map_path='labels'),
            img_suffix='.png', metainfo=dict(classes=('a', 'b'), palette=[[0, 0, 0], [255, 0, 0]]),
            pipeline=[load, labels, pack])),
        test_evaluator=dict(type='IoUMetric'), test_pipeline=[load, pack],
        visualizer=dict(type='SegLocalVisualizer', vis_backends=[]),
        tta_model=dict(type='SegTTAModel'),
        tta_pipeline=[load, dict(type='TestTimeAug', transforms=[FLIPS, [labels], [pack]])])


def detector():
    load, resize = dict(type='LoadImageFromFile'), dict(type='Resize', scale=(48, 32))
    pack = dict(type='PackDetInputs', meta_keys=METAS[:-2])
    return dict(
        default_scope='mmdet',
        model=dict(
            type='RetinaNet', data_preprocessor=dict(type='DetDataPreprocessor', **MEAN_STD),
            backbone=dict(type='mmprovpt.PromptedSwinTransformer', embed_dims=12, depths=(2, 2), num_heads=(2, 3),
                          strides=(4, 2), out_indices=(0, 1), prompts=PROMPTS,
                          init_cfg=dict(type='Pretrained', checkpoint='frozen.pth')),
            neck=dict(type='FPN', in_channels=[12, 24], out_channels=8, num_outs=5),
            bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8),
            test_cfg=dict(nms_pre=50, score_thr=0., nms=dict(type='nms', iou_threshold=0.5), max_per_img=10)),
        test_dataloader=dict(dataset=dict(
            type='CocoDataset', data_prefix=dict(img='images/0'), ann_file='coco.json', test_mode=True,
            metainfo=dict(classes=('a', 'b'), palette=[(0, 0, 0), (255, 0, 0)]), pipeline=[load, resize, pack])),
        test_evaluator=dict(type='CocoMetric', ann_file='coco.json', metric='bbox'),
        visualizer=dict(type='DetLocalVisualizer', vis_backends=[]),
        tta_model=dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=10)),
        tta_pipeline=[load, dict(type='TestTimeAug', transforms=[[resize], FLIPS, [dict(pack, meta_keys=METAS)]])])


CONFIGS = dict(mmpretrain=classifier, mmseg=segmentor, mmdet=detector)


def write_data():
    """Images 0/0.png, 0/1.png and 1/2.png, label maps and boxes of the first two."""
    rng = np.random.default_rng(0)
    for name in ('0/0', '0/1', '1/2'):
        path = Path(f'images/{name}.png')
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 48, 3), np.uint8)).save(path)
    Path('labels').mkdir()
    for name in '01':
        Image.fromarray(rng.integers(0, 2, (32, 48), np.uint8)).save(f'labels/{name}.png')
    box = dict(category_id=1, bbox=[4, 4, 20, 20], area=400, iscrowd=0)
    Path('coco.json').write_text(json.dumps(dict(
        images=[dict(id=i, file_name=f'{i}.png', height=32, width=48) for i in range(2)],
        categories=[dict(id=1, name='a'), dict(id=2, name='b')],
        annotations=[dict(box, id=i + 1, image_id=i) for i in range(2)])))


@pytest.fixture(scope='module', params=CONFIGS)
def files(request, tmp_path_factory):
    """Of a codebase a folder with data, config.py, frozen.pth and a checkpoint, full.pth and small.pth."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data()
        cfg = Config(dict(CONFIGS[request.param](), test_cfg=dict()))
        for key, value in dict(batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False)).items():
            cfg.test_dataloader[key] = value
        cfg.dump('config.py')
        model = randomise(build_model(cfg))
        torch.nn.init.normal_(model.backbone.prompts.tokens)
        model.backbone.prompts.relocate(0, 1)
        frozen = {key: value for key, value in model.backbone.state_dict().items() if 'prompts' not in key}
        # MMSegmentation's ViT reads weights without the prefix.
        prefix = '' if request.param == 'mmseg' else 'backbone.'
        torch.save(dict(state_dict={prefix + key: value for key, value in frozen.items()}), 'frozen.pth')
        meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=('a', 'b'), palette=[(0, 0, 0), (255, 0, 0)]))
        torch.save(dict(meta=meta, state_dict=model.state_dict()), 'full.pth')
        torch.save(dict(meta=meta, state_dict=tuned_state_dict(model)), 'small.pth')
    return folder


@pytest.fixture
def scope(files, monkeypatch):
    """The codebase; the test runs in its folder."""
    monkeypatch.chdir(files)
    return files.name.rstrip('0123456789')


@pytest.fixture
def call(call):
    """Call tools/test.py in this process; returns the predictions."""

    def predictions(*args):
        call('test', *args, '--out', 'out.pkl')
        return pickle.loads(Path('out.pkl').read_bytes())

    return predictions


def init(scope, checkpoint):
    """The model, by the function that each codebase has for that."""
    if scope == 'mmpretrain':
        from mmpretrain import get_model
        return get_model('config.py', pretrained=checkpoint)
    if scope == 'mmseg':
        from mmseg.apis import init_model
        return init_model('config.py', checkpoint, device='cpu')
    from mmdet.apis import init_detector
    return init_detector('config.py', checkpoint, device='cpu')


def infer(scope, checkpoint):
    """What an inferencer says of an image, as a tensor."""
    if scope == 'mmpretrain':
        from mmpretrain import ImageClassificationInferencer
        inferencer = ImageClassificationInferencer('config.py', pretrained=checkpoint, device='cpu')
        return torch.from_numpy(inferencer('images/0/0.png')[0]['pred_scores'])
    if scope == 'mmseg':
        from mmseg.apis import MMSegInferencer
        inferencer = MMSegInferencer('config.py', checkpoint, device='cpu', show_progress=False)
        return inferencer('images/0/0.png', return_datasamples=True).seg_logits.data
    from mmdet.apis import DetInferencer
    inferencer = DetInferencer('config.py', checkpoint, device='cpu', show_progress=False)
    found = inferencer('images/0/0.png', return_datasamples=True, no_save_vis=True)['predictions'][0].pred_instances
    return torch.cat([found.bboxes, found.scores[:, None]], 1)


def assert_same(one, other):
    """Of nested predictions, bit for bit."""
    ones, others = torch.utils._pytree.tree_leaves(one), torch.utils._pytree.tree_leaves(other)
    assert len(ones) == len(others) and any(torch.is_tensor(value) for value in ones)
    for a, b in zip(ones, others):
        assert torch.equal(a, b) if torch.is_tensor(a) else np.array_equal(a, b)


def test_models(scope):
    model, other = (init(scope, name) for name in ('full.pth', 'small.pth'))
    assert_same(model.state_dict(), other.state_dict())
    full = torch.load('full.pth', weights_only=False)['state_dict']
    assert all(torch.equal(value, full[key]) for key, value in other.state_dict().items())


def test_inferencers(scope):
    full, small = infer(scope, 'full.pth'), infer(scope, 'small.pth')
    assert torch.equal(full, small)
    assert full.shape == dict(mmpretrain=(2, ), mmseg=(2, 32, 48), mmdet=(10, 5))[scope]
    assert full.flatten().std() > 0.01


def test_moved_frozen_weights_are_named(scope):
    Path('frozen.pth').rename('moved.pth')
    try:
        with pytest.raises(RuntimeError, match='(?s)cannot be read from.*frozen.pth.*--merge'):
            infer(scope, 'small.pth')
    finally:
        Path('moved.pth').rename('frozen.pth')


def predictions(scope, data_sample):
    """What test-time augmentation merges, of a prediction."""
    key = dict(mmpretrain='pred_score', mmseg='pred_sem_seg', mmdet='pred_instances')[scope]
    return data_sample[key]


def test_tool(scope, call):
    samples = [call('config.py', name) for name in ('full.pth', 'small.pth')]
    assert_same(*([predictions(scope, sample) for sample in each] for each in samples))
    assert len(samples[0]) == (3 if scope == 'mmpretrain' else 2)


def flipped_and_merged(scope, model, image):
    """Slow reference of test-time augmentation: the prediction of an image (3, H, W) and its mirror image, merged."""
    size = dict(img_shape=(32, 48), ori_shape=(32, 48), pad_shape=(32, 48))
    each = []
    for inputs in (image, image.flip(2)):
        with torch.no_grad():
            inputs = model.data_preprocessor(dict(inputs=[inputs], data_samples=None))['inputs']
            if scope == 'mmpretrain':
                each.append(model(inputs, mode='tensor').softmax(1)[0])
            else:
                each.append(model.encode_decode(inputs, [size])[0].softmax(0))
    if scope == 'mmpretrain':
        return sum(each) / 2
    return (each[0] + each[1].flip(2)).argmax(0)


def test_augmentation(scope, call):
    samples = [call('config.py', name, '--tta') for name in ('full.pth', 'small.pth')]
    merged, again = ([predictions(scope, sample) for sample in each] for each in samples)
    assert_same(merged, again)
    model = init(scope, 'full.pth')
    image = torch.from_numpy(np.asarray(Image.open('images/0/0.png'))[..., ::-1].copy()).permute(2, 0, 1)
    if scope == 'mmdet':
        # Merging twice as many boxes by NMS can only raise the best scores.
        plain = [predictions(scope, sample) for sample in call('config.py', 'full.pth')]
        for one, other in zip(merged, plain):
            assert len(one['scores']) == 10 and torch.all(one['scores'] >= other['scores'] - 1e-6)
            assert not torch.equal(one['bboxes'], other['bboxes'])
    elif scope == 'mmseg':
        expected = flipped_and_merged(scope, model, image)
        assert (merged[0]['data'].squeeze() == expected).float().mean() > 0.999
    else:
        torch.testing.assert_close(merged[0], flipped_and_merged(scope, model, image))
