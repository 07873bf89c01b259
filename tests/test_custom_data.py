"""docs/how-to/custom_data.md, to the letter: its config, its commands and its Python, on a small image folder."""
import contextlib
import importlib.util
import io
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / 'docs/how-to/custom_data.md').read_text()
CONFIG, INFERENCE = re.findall('```python\n(.*?)```', PAGE, re.S)
COMMANDS = [line.split('#')[0].strip() for block in re.findall('```bash\n(.*?)```', PAGE, re.S)
            for line in block.splitlines()]
CLASSES = ('cat', 'dog', 'fish')
# What makes it a matter of seconds; it changes no line of the page.
SMALL = """
model = dict(
    backbone=dict(
        patch_size=56, arch=dict(_delete_=True, embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=24)),
    head=dict(in_channels=24))
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with the page's images and config, and weights for the small backbone."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 2)):
        for number in range(3 * count):
            label = number % 3
            path = tmp_path / f'data/pets/{split}/{CLASSES[label]}/{number}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.zeros((40, 50, 3), np.uint8)
            pixels[..., label] = rng.integers(150, 255, (40, 50))
            Image.fromarray(pixels).save(path)
    for name in ('configs', 'tools'):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / 'page.py').write_text(CONFIG)
    (tmp_path / 'pets.py').write_text("_base_ = 'page.py'\n" + SMALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    cfg = Config.fromfile('pets.py')
    cfg.model.backbone.prompts.num_tokens = 0
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(dict(cfg.model.backbone, init_cfg=None))
    (tmp_path / 'checkpoints').mkdir()
    torch.save({f'backbone.{name}': torch.randn_like(value) * 0.3 if value.dim() > 1 else value
                for name, value in backbone.state_dict().items() if not name.startswith('prompts.')},
               'checkpoints/vit_b16_in21k.pth')
    return tmp_path


def call(command, monkeypatch):
    """Run `python TOOL ARGS` in this process, which saves importing torch again."""
    python, tool, *args = shlex.split(command)
    spec = importlib.util.spec_from_file_location(Path(tool).stem, tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, 'argv', [tool, *args])
    module.main()


def test_the_page(project, monkeypatch):
    assert len(CONFIG.splitlines()) == 7
    for command in COMMANDS:
        assert command.startswith('python tools/')
        call(command, monkeypatch)
    trained = project / 'work_dirs/pets/epoch_20.pth'
    saved = torch.load(trained, weights_only=False)
    assert saved['meta']['epoch'] == 20 and tuple(saved['meta']['dataset_meta']['classes']) == CLASSES
    assert 'backbone.patch_embed.projection.weight' not in saved['state_dict']
    assert 'backbone.patch_embed.projection.weight' in torch.load('pets_full.pth', weights_only=False)['state_dict']
    assert len(list((project / 'painted').rglob('*.png'))) == 6
    assert len(list(project.glob('work_dirs/pets/*/relocations.jsonl'))) == 1

    printed = io.StringIO()
    scope = {}
    with contextlib.redirect_stdout(printed):
        exec(INFERENCE, scope)  # noqa: S102
    result = scope['result']
    assert printed.getvalue().endswith(f'{result["pred_class"]} {result["pred_score"]}\n')  # after a progress bar
    assert result['pred_class'] == CLASSES[result['pred_scores'].argmax()]
    assert result['pred_score'] == result['pred_scores'].max() and result['pred_scores'].shape == (3,)
    # The classifier that was trained, not another: what the exported ones say is the same.
    for other in ('pets.pth', 'pets_full.pth'):
        again = scope['ImageClassificationInferencer']('pets.py', pretrained=other)('data/pets/val/cat/0.png')[0]
        np.testing.assert_allclose(again['pred_scores'], result['pred_scores'], rtol=1e-5)


@pytest.mark.parametrize('folders, renamed, message', [
    (['train', 'val'], None, 'num_classes is 3, but train_dataloader.dataset has 4 classes: cat, dog, fish, horse'),
    (['val'], None, 'num_classes is 3, but val_dataloader.dataset has 4 classes: cat, dog, fish, horse'),
    (['val'], 'cat', "train_dataloader and val_dataloader have other classes, they differ in ['cat', 'horse']"),
])
def test_classes_that_do_not_fit(folders, renamed, message, project, monkeypatch):
    for split in folders:
        folder = project / 'data/pets' / split
        if renamed:
            (folder / renamed).rename(folder / 'horse')
        else:
            (folder / 'horse').mkdir()
            Image.new('RGB', (40, 50)).save(folder / 'horse/0.png')
    with pytest.raises(SystemExit) as stop:
        call(f'python tools/train.py pets.py --cfg-options experiment_name={len(message)}', monkeypatch)
    assert message in stop.value.code
    assert not list(project.glob('work_dirs/pets/*.pth'))


def test_the_twin(project):
    vpt, provpt = (Config.fromfile(ROOT / f'configs/custom/vit_b_{method}_folder.py') for method in ('vpt', 'provpt'))
    for cfg in (vpt, provpt):
        cfg.merge_from_dict({'param_scheduler.1.end': 20})  # the page's option for a shorter training
        assert [(scheduler.begin, scheduler.end) for scheduler in cfg.param_scheduler] == [(0, 10), (10, 20)]
    assert 'custom_hooks' not in vpt and provpt.optim_wrapper.pop('clip_grad') == dict(max_norm=0.25)
    provpt.pop('custom_hooks')
    assert vpt.to_dict() == provpt.to_dict()
