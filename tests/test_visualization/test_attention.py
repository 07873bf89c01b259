import matrix
import pytest
import torch
from torch import nn

from mmprovpt.visualization import look, visit_attention

COUNTS = {3: [2, 0, 3], 6: [2, 0, 3, 1, 0, 2]}


def prompted(name):
    case = matrix.CASES[name]
    return matrix.build(case, dict(num_tokens=COUNTS[case.depth], dropout=0.1)).train()


def slow_softmax(q, k, scale, bias):
    """Row by row in float64."""
    logits = torch.einsum('bhqd,bhkd->bhqk', q.double(), k.double()) * scale
    if bias is not None:
        logits = logits + nn.functional.pad(bias.double(), (0, k.shape[2] - q.shape[2]))
    return torch.stack([row.exp() / row.exp().sum() for row in logits.flatten(0, 2)]).reshape(logits.shape)


@pytest.mark.parametrize('name', matrix.CASES)
def test_weights_are_those_of_the_forward(name):
    backbone, case = prompted(name), matrix.CASES[name]
    images = matrix.images(case, case.sizes[-1])
    blocks, inputs, read = [], {}, {}
    attentions = [m for m in backbone.modules() if hasattr(m, 'prompt_reader')]
    handles = []
    for module in attentions:
        # What the module itself weighs and sums up, before it projects it.
        proj = getattr(module, 'proj', None) or module.attn.out_proj
        handles.append(proj.register_forward_pre_hook(
            lambda proj, args, module=module: inputs.update({module: args[0]})))
        # What it itself hands to its softmax.
        attend = module.prompt_reader.attend
        module.prompt_reader.attend = lambda q, k, v, pk, pv, scale, mask=None, dropout_p=0., m=module, f=attend: (
            read.update({m: slow_softmax(q, torch.cat([k, pk], 2), scale, mask)})
            or f(q, k, v, pk, pv, scale, mask, dropout_p))
    visit_attention(backbone, images, blocks.append)
    assert [block.attention for block in blocks] == attentions
    for block, count in zip(blocks, COUNTS[case.depth]):
        assert block.weights.shape[-1] - block.weights.shape[-2] == count
        torch.testing.assert_close(block.weights.sum(-1), torch.ones_like(block.weights[..., 0]))
        if count:
            torch.testing.assert_close(block.weights.double(), read[block.attention], rtol=1e-4, atol=1e-6)
        if block.attention in inputs:
            out = (block.weights @ block.values).transpose(1, 2).flatten(2)
            torch.testing.assert_close(out, inputs[block.attention], rtol=1e-4, atol=1e-4)
    # mmseg's own ViT attention, in the block without prompts, projects inside of PyTorch.
    assert len(inputs) == case.depth - (name == 'mmseg-vit')
    assert backbone.prompts.training and not any(m._forward_hooks for m in attentions)


@pytest.mark.parametrize('name', matrix.CASES)
def test_look(name):
    case, backbone = matrix.CASES[name], prompted(name)
    size = case.sizes[-1]
    looks = look(backbone, matrix.images(case, size, batch=1))
    assert [len(prompts) for prompts in looks.prompts] == COUNTS[case.depth]
    if 'swin' in name or 'nocls' in name:
        assert looks.patches == []
        return
    patch = 14 if 'dinov2' in name else 8
    assert {tuple(each.shape) for each in looks.patches} == {(-(-size[0] // patch), -(-size[1] // patch))}
    blocks = []
    visit_attention(backbone, matrix.images(case, size, batch=1), blocks.append)
    extra = 2 if 'deit' in name else 1
    for block, prompts, patches in zip(blocks, *looks):
        row = block.weights[0, :, 0].mean(0)
        torch.testing.assert_close(torch.cat([patches.flatten(), prompts]), row[extra:])


def test_a_backbone_without_prompts_raises():
    backbone = matrix.build(matrix.CASES['mmpretrain-vit'])
    with pytest.raises(ValueError, match='VisionTransformer has no prompts'):
        look(backbone, torch.zeros(1, 3, 32, 32))
