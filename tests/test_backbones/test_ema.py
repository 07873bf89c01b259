"""MMEngine's EMA copies parameters and buffers through ``.data``; its model must read what it copied."""
import torch
from matrix import CASES, build, images, outputs
from mmengine.model import ExponentialMovingAverage


def test_average_follows_relocation():
    case = CASES['mmdet-swin']
    backbone = build(case, dict(num_tokens=2)).train()
    ema = ExponentialMovingAverage(backbone, momentum=0.5)
    ema.update_parameters(backbone)  # the first update copies
    tokens = backbone.prompts.tokens
    with torch.no_grad():
        before = tokens.clone()
        backbone.prompts.relocate(0, 1)
        tokens += 1
        ema.update_parameters(backbone)
        average = ema.module.prompts
        torch.testing.assert_close(average.tokens, before + 0.5)
        assert torch.equal(average.block_index, backbone.prompts.block_index)
        ema.eval()
        expected = build(case, dict(num_tokens=2))
        expected.load_state_dict(ema.module.state_dict())
        for a, b in zip(outputs(ema, images(case)), outputs(expected.eval(), images(case))):
            assert torch.equal(a, b)
        assert average.rows(1).shape == (3, 12)
