"""docs/how-to/several_tasks.md, run as printed, and what it says about it."""
import re
from pathlib import Path

import pytest
import timm
import torch

import mmprovpt

PAGE = (Path(__file__).parents[1] / 'docs/how-to/several_tasks.md').read_text(encoding='utf-8')
CODE = re.findall('```python\n(.*?)```', PAGE, re.S)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Names after all blocks of code, one after the other, with a ViT of a few blocks in place of the page's."""
    create = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp('page'))
        patch.setattr(timm, 'create_model', lambda name, **kwargs: create(name, depth=3, **kwargs))
        names = {}
        for block in CODE:
            exec(block, names)
        yield names


def test_each_sample_reads_its_own(run):
    for number, alone in enumerate(('birds', 'plain', 'cars')):
        torch.testing.assert_close(run['mixed'][number], run[alone][number], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(run['birds'], run['cars'])


def test_one_was_trained(run):
    assert run['session'].period == 2 and run['prompts'] is run['backbone'].prompts['birds']
    assert set(run['backbone'].state_dict()) >= {'prompts.birds.tokens', 'prompts.cars.tokens'}


def test_what_was_saved_is_what_was_loaded(run):
    """The page takes the other backbone's sets off again."""
    another = timm.create_model('vit_tiny_patch16_224', num_classes=0)
    state = {key: value for key, value in run['backbone'].state_dict().items() if not key.startswith('prompts.')}
    another.load_state_dict(state)
    for name in ('birds', 'cars'):
        mmprovpt.load_prompts(another, name, f'{name}.pth')
        mmprovpt.set_prompts(another, name)
        mmprovpt.set_prompts(run['backbone'], name)
        with torch.no_grad():
            assert torch.equal(another.eval()(run['images']), run['backbone'].eval()(run['images']))


def test_every_function_is_named_and_exists():
    named = set(re.findall(r'`(\w+)\((?:backbone|model), ', PAGE))
    assert named >= {f'{verb}_prompts' for verb in ('add', 'load', 'set', 'using', 'remove')} | {'tuned_state_dict'}
    assert all(callable(getattr(mmprovpt, name)) for name in named)
