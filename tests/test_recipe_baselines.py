"""Recipes and heads on CamVid beside their baselines: what differs, and one step of training of each, made small."""
import pytest
import torch
from dense_task import build, upstream_of
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from test_configs import differences, read
from test_recipes import BASED, BASELINES, SHRINK, SIZE

VIT = {'backbone.arch': dict(_delete_=True, embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64),
       'backbone.out_indices': [0, 1, 2, 3]}
CAMVID = {'camvid/upernet_vit_s_{}camvid': {**VIT, 'neck.embed_dim': 32, 'decode_head.in_channels': [32] * 4},
          'camvid/mask2former_vit_s_{}camvid': {**VIT, 'neck.in_channels': 32}}
FAMILIES = {f'recipes/{name}': (SHRINK[name.format('')], '') for name in BASED}
FAMILIES.update({name: (shrink, 'vpt_') for name, shrink in CAMVID.items()})
CASES = [(name, method) for name in FAMILIES for method in BASELINES]
CASES += [(name, method) for name in CAMVID for method in ('vpt', 'provpt')]


def config(name, method):
    return read(f'{name.format(f"{method}_" if method else "")}.py')


def batch(scope, size):
    """Two images of a codebase with what is to be learned of them."""
    if scope == 'mmdet':
        from mmdet.testing import demo_mm_inputs
        return demo_mm_inputs(2, [[3, *size]] * 2, num_classes=3, num_items=[2, 2], use_box_type=True, with_mask=True)
    from mmseg.structures import SegDataSample
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.randint(3, (1, *size))), metainfo=dict(img_shape=size))
               for _ in range(2)]
    return dict(inputs=[torch.rand(3, *size) * 255 for _ in range(2)], data_samples=samples)


@pytest.mark.parametrize('name', FAMILIES)
def test_twins(name):
    prompted = config(name, FAMILIES[name][1].rstrip('_'))
    frozen, full, lora = (config(name, method) for method in BASELINES)
    hooks = set() if 'camvid' in name else {'custom_hooks'}
    assert differences(prompted, frozen) == {'model.backbone.prompts.num_tokens'} | hooks
    assert frozen.model.backbone.prompts.num_tokens == 0 and not frozen.get('custom_hooks')
    backbone = dict(prompted.model.backbone, type=full.model.backbone.type)
    assert backbone.pop('prompts') and full.model.backbone == backbone
    assert full.model.backbone.type.rpartition('.')[2] == prompted.model.backbone.type.replace('mmprovpt.Prompted', '')
    assert {key for key in differences(prompted, full) if key.startswith('model.')} \
        == {'model.backbone.type', 'model.backbone.prompts'}
    module = lora.model.backbone.module
    assert dict(module, type=full.model.backbone.type) == full.model.backbone
    assert lora.model.backbone.targets == [dict(type='qkv')] and not lora.get('custom_hooks')


@pytest.mark.parametrize('name, method', CASES)
def test_a_step(name, method):
    """It trains what its name says, and the backbone at the learning rate that the file says."""
    cfg = config(name, method)
    size = (168, 224) if 'camvid' in name else (SIZE, SIZE)
    shrink = FAMILIES[name][0]
    if method == 'lora':
        shrink = {key.replace('backbone.', 'backbone.module.', 1): value for key, value in shrink.items()}
    cfg.merge_from_dict({f'model.{key}': value for key, value in shrink.items()})
    upstream_of(cfg).update(init_cfg=None)
    cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = size
    torch.manual_seed(0)
    model = build(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        data = batch(cfg.default_scope, size)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        before = {key: value.detach().clone() for key, value in model.named_parameters()}
        losses = model.train().train_step(data, optimizer)
    assert torch.isfinite(losses['loss'])
    changed = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    part = dict(frozen=None, full='backbone.', lora='.lora_').get(method, 'backbone.prompts.tokens')
    backbone = {key for key in before if key.startswith('backbone.') and part is not None and part in key}
    ours = {key for key in changed if key.startswith('backbone.')}
    assert ours <= backbone and len(ours) >= {'full': 20, 'lora': 3}.get(method, bool(part))
    assert {key for key in changed if key.startswith('neck.')} and len(changed - ours) > 10
    rates = {group['lr'] for group in optimizer.param_groups for value in
             group['params'] if any(value is model.get_parameter(key) for key in ours)}
    factor = 1. if method != 'full' else 0.01 if 'camvid' in name else 0.1
    assert rates == ({cfg.optim_wrapper.optimizer.lr * factor} if ours else set())
