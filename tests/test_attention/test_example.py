"""docs/contributing/attention.md, to the letter: a backbone of nobody's library that takes prompts."""
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from mmprovpt import inject_prompts
from mmprovpt.attention import SUPPORTED
from mmprovpt.errors import ConfigError

PAGE = Path(__file__).parents[2] / 'docs/contributing/attention.md'


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The page's two modules, importable, and the code that uses them; both are forgotten afterwards."""
    backbone, reader, use = re.findall('```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.S)
    (tmp_path / 'my_vit.py').write_text(backbone)
    (tmp_path / 'my_attention.py').write_text(reader)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield use
    SUPPORTED.pop('my_vit.Attention', None)
    for name in ('my_vit', 'my_attention'):
        sys.modules.pop(name, None)


def test_the_code_of_the_page_runs(page):
    scope = {}
    exec(page, scope)
    assert scope['prompts'].distribution.tolist() == [4, 4]


def test_its_prompts_are_tokens_whose_outputs_are_dropped(page):
    my_vit = importlib.import_module('my_vit')
    torch.manual_seed(0)
    model, images = my_vit.ViT().eval(), torch.randn(2, 3, 16, 24)
    with pytest.raises(ConfigError, match='my_vit.Attention'):  # unknown, as long as nobody vouches for it
        inject_prompts(model, dict(type='StaticPrompts', num_tokens=3))
    importlib.import_module('my_attention')
    plain = my_vit.ViT().eval()
    plain.load_state_dict(model.state_dict())
    prompts = inject_prompts(model, dict(type='StaticPrompts', num_tokens=[3, 0]))
    x = plain.patch_embed(images)
    with_rows = torch.cat([x, prompts.tokens.expand(2, -1, -1)], 1)
    expected = plain.blocks[1](plain.blocks[0](with_rows)[:, :x.shape[1]])
    torch.testing.assert_close(model(images), expected)
    assert not torch.allclose(plain(images), expected, atol=1e-3)
    model(images).sum().backward()
    assert prompts.tokens.grad.abs().sum(1).min() > 0
