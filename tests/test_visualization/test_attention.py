import matrix
import pytest
import torch

from mmprovpt.attention import PromptedAttention
from mmprovpt.visualization import attention_maps, visit_attention

COUNTS = {3: [2, 0, 3], 6: [2, 0, 3, 1, 0, 2]}


def prompted(name):
    case = matrix.CASES[name]
    return matrix.build(case, dict(num_tokens=COUNTS[case.depth], dropout=0.1)).train()


@torch.no_grad()
@pytest.mark.parametrize('name', matrix.CASES)
def test_weights_are_those_of_the_forward(name):
    backbone, case = prompted(name).eval(), matrix.CASES[name]
    images = matrix.images(case, case.sizes[-1])
    blocks, inputs = [], {}
    attentions = [m for m in backbone.modules() if isinstance(m, PromptedAttention)]
    handles = []
    for module in attentions:
        # What a forward that nobody watches, which is fused, weighs and sums up before it projects it.
        proj = getattr(module, 'norm', None) or getattr(module, 'proj', None) or module.attn.out_proj
        handles.append(proj.register_forward_pre_hook(
            lambda proj, args, module=module: inputs.update({module: args[0]})))
    backbone(images)
    for handle in handles:
        handle.remove()
    backbone.train()
    visit_attention(backbone, images, blocks.append)
    assert [block.attention for block in blocks] == attentions and backbone.prompts.training
    for block, count in zip(blocks, COUNTS[case.depth]):
        assert block.weights.shape[-1] - block.weights.shape[-2] == count
        torch.testing.assert_close(block.weights.sum(-1), torch.ones_like(block.weights[..., 0]))
        out = (block.weights @ block.values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(out, inputs[block.attention], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', matrix.CASES)
def test_attention_maps(name):
    case, backbone = matrix.CASES[name], prompted(name)
    size = case.sizes[-1]
    maps = attention_maps(backbone, matrix.images(case, size, batch=1))
    assert [len(prompts) for prompts in maps.prompts] == COUNTS[case.depth]
    if any(part in name for part in ('swin', 'nocls', 'grouped')):
        assert maps.patches == []
        return
    patch = 14 if 'dinov2' in name or 'timm-eva' in name else 8
    assert {tuple(each.shape) for each in maps.patches} == {(-(-size[0] // patch), -(-size[1] // patch))}
    blocks = []
    visit_attention(backbone, matrix.images(case, size, batch=1), blocks.append)
    extra = {'mmpretrain-deit': 2, 'timm-dinov3': 5}.get(name, 1)
    for block, prompts, patches in zip(blocks, *maps):
        row = block.weights[0, :, 0].mean(0)
        torch.testing.assert_close(torch.cat([patches.flatten(), prompts]), row[extra:])


@pytest.mark.parametrize('name', ['timm-dinov3', 'timm-beit'])
def test_prompts_that_are_tokens_are_seen_where_positions_are_in_the_attention(name):
    case, blocks = matrix.CASES[name], []
    backbone = matrix.build(case, dict(type='ShallowPrompts', num_tokens=3))
    for hidden, count in ((), 3), ((0, 1, 2), 0):
        with backbone.prompts.without(*hidden):
            visit_attention(backbone, matrix.images(case), blocks.append)
        assert {block.weights.shape[-1] - block.weights.shape[-2] for block in blocks} == {count}
        assert all(block.weights.shape[-2] > 16 for block in blocks) and len(blocks) == case.depth
        blocks.clear()


def test_a_backbone_without_prompts_raises():
    backbone = matrix.build(matrix.CASES['mmpretrain-vit'])
    with pytest.raises(ValueError, match='VisionTransformer has no prompts'):
        attention_maps(backbone, torch.zeros(1, 3, 32, 32))
