"""benchmarks/config_trial.py on a few configs, and the page that it writes."""
import importlib.metadata
import re
import sys
from pathlib import Path

import config_trial
import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs/reference/installed_configs.md'


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['config_trial.py', *map(str, args)])
    config_trial.main()


def test_each_kind_of_result(monkeypatch, capsys, tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('before\n{}what it was\n{}after\n'.format(*config_trial.MARKS))
    run(monkeypatch, 'deit-tiny_4xb256', 'dino-4scale_r50_8xb2-12e', 'mocov3_vit-small', 'swinv2-base-w12_8xb128_in21k',
        'grounding_dino_swin-t_finetune_16xb2', '--out', page)
    printed, text = capsys.readouterr().out, page.read_text()
    assert 'deit-tiny_4xb256_in1k.py: added: `VisionTransformer`' in printed
    assert 'grounding_dino_swin-t_finetune_16xb2_1x_coco.py: alone: `SwinTransformer`' in printed
    assert '12e_coco.py: refused: `ResNet` has no attention' in printed
    assert '| it pre-trains its backbone (`MoCoV3`) | 1 | mmpretrain: mocov3 |' in text
    assert "it cannot be read: it or a base of it uses 'test_pipeline', which is not there" in text
    assert text.startswith('before\n') and text.endswith('after\n') and 'what it was' not in text
    assert numbers(text)['all'] == [5, 2, 1, 3, 0]


def test_a_traceback_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(config_trial.add_provpt, 'add_provpt', lambda *args: 1 / 0)
    with pytest.raises(SystemExit, match='some end in a traceback'):
        run(monkeypatch, 'deit-tiny_4xb256')
    assert 'deit/deit-tiny_4xb256_in1k.py`: ZeroDivisionError: division by zero' in capsys.readouterr().out


@pytest.mark.skipif(any(f'{name} {importlib.metadata.version(f"onedl-{name.lower()}")}' not in PAGE.read_text('utf-8')
                        for name in ('MMDetection', 'MMSegmentation', 'MMPretrain')), reason='other codebases')
def test_the_page_is_about_every_config():
    text = PAGE.read_text(encoding='utf-8')
    rows = numbers(text)
    assert rows['all'] == [sum(row) for row in zip(*(rows[name] for name in config_trial.LIBRARIES))]
    assert rows['all'][0] == len(config_trial.installed([])) and rows['all'][-1] == 0 and '| ?' not in text


def numbers(text):
    """Of each library: configs, those that take prompts, of these backbones alone, refused, tracebacks."""
    rows = re.findall(r'^\| (mm\w+|all) \| (.*) \|$', text, re.M)
    return {name: [int(number) for number in row.split(' | ')] for name, row in rows}
