"""What docs/how-to/deployment.md advises for Grad-CAM, run as printed, and what it rests on."""
import re
from pathlib import Path

import pytest
import timm
import torch

from mmprovpt import inject_prompts

PAGE = Path(__file__).parents[2] / 'docs/how-to/deployment.md'
COUNTS = [[2, 2, 2], [0, 0, 2], 0]


def classifier(num_tokens):
    torch.manual_seed(0)
    net = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, depth=3, num_classes=3)
    inject_prompts(net, dict(type='StaticPrompts', num_tokens=num_tokens))
    net.head.requires_grad_(True)
    return net.eval()


@pytest.mark.parametrize('num_tokens', COUNTS)
def test_an_input_that_wants_a_gradient_gives_one_to_every_norm(num_tokens):
    """It is the same as without prompts' freezing, and is there also where no block before it has prompts."""
    net, seen = classifier(num_tokens), {}
    net.blocks[-1].norm1.register_forward_hook(lambda module, args, out: seen.update(out=out))
    image = torch.randn(1, 3, 32, 32)
    net(image.requires_grad_())[0, 1].backward(inputs=[seen['out']])
    expected = torch.zeros_like(seen['out'])
    assert seen['out'].grad is not None and not torch.equal(seen['out'].grad, expected)
    frozen = seen['out'].grad
    net.requires_grad_(True)
    net(image.detach())[0, 1].backward(inputs=[seen['out']])
    torch.testing.assert_close(seen['out'].grad, frozen)


@pytest.mark.parametrize('num_tokens', COUNTS)
def test_the_advice_as_printed(num_tokens):
    section = PAGE.read_text(encoding='utf-8').partition('## Grad-CAM')[2]
    code = re.search('```python\n(.*?)```', section, re.S)[1]
    names = dict(net=classifier(num_tokens), images=torch.randn(1, 3, 32, 32))
    exec(code, names)
    assert names['heat'].shape == (1, 32, 32)
