import pytest
import timm
import torch
from mmengine.registry import MODELS


@pytest.mark.parametrize('model, arguments, pool', [
    ('vit_tiny_patch16_224', dict(img_size=32, embed_dim=32, depth=1, num_heads=2), 'token'),
    ('swin_tiny_patch4_window7_224', dict(img_size=56, embed_dim=12, depths=(1, 1), num_heads=(2, 3)), 'avg'),
])
def test_pools_as_timm(model, arguments, pool):
    backbone = timm.create_model(model, num_classes=0, **arguments).eval()
    x = torch.randn(2, 3, arguments['img_size'], arguments['img_size'], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = backbone(x)
        features = backbone.forward_features(x)
        neck = MODELS.build(dict(type='mmprovpt.TIMMPooling', pool=pool))
        pooled, = neck((features,))
    assert features.dim() > 2 and expected.dim() == 2
    torch.testing.assert_close(pooled, expected)
    other = MODELS.build(dict(type='mmprovpt.TIMMPooling', pool=dict(token='avg', avg='token')[pool]))
    with pytest.raises(ValueError, match='needs features'):
        other((features,))


def test_unknown_pool():
    with pytest.raises(Exception, match="pool='max', but it must be 'token' or 'avg'"):
        MODELS.build(dict(type='mmprovpt.TIMMPooling', pool='max'))
