"""benchmarks/timm_names.py on a few names, and the page that it writes."""
import re
import sys
from pathlib import Path

import pytest
import timm
import timm_names

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs/reference/timm_models.md'


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(timm_names.logging, 'disable', lambda level: None)  # it would last


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['timm_names.py', *map(str, args)])
    timm_names.main()


def test_each_kind_of_result(monkeypatch, capsys, tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('before\n{}old\n{}after\n'.format(*timm_names.MARKS))
    run(monkeypatch, 'vit_7b_patch16_dinov3', 'xcit_nano_12_p16_224', 'resnet18', '--out', page)
    printed, text = capsys.readouterr().out, page.read_text()
    assert "vit_7b_patch16_dinov3: works: ('models.eva.EvaAttention', 'small')" in printed
    assert 'xcit_nano_12_p16_224: refused: Xcit has attention that takes no prompts: timm.models.xcit' in printed
    assert 'resnet18: none: ResNet has no attention at all' in printed
    assert '| `xcit` | 1 | attends to channels, not to tokens |' in text and '| `eva` | all 1 |' in text
    assert text.startswith('before\n') and text.endswith('after\n') and 'old' not in text
    assert numbers(text) == [1, 1, 1, 0]


def test_what_crashes_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(timm_names, 'try_prompts', lambda model, form: 1 / 0)
    with pytest.raises(SystemExit, match='some crash'):
        run(monkeypatch, 'test_vit')
    assert '- `test_vit` crashes: ZeroDivisionError: division by zero' in capsys.readouterr().out


def test_a_refusal_needs_a_reason(monkeypatch):
    monkeypatch.delitem(timm_names.REASONS, 'xcit')
    with pytest.raises(SystemExit, match=r"without a reason: \['xcit'\]"):
        run(monkeypatch, 'xcit_nano_12_p16_224')


@pytest.mark.skipif(f'timm ({timm.__version__} here)' not in PAGE.read_text(encoding='utf-8'), reason='another timm')
def test_the_page_is_about_every_name():
    text = PAGE.read_text(encoding='utf-8')
    assert sum(numbers(text)) == len(timm.list_models()) and numbers(text)[3] == 0 and '?' not in text


def numbers(text):
    """Names that work, are refused with and without attention, and crash."""
    return [int(number) for number in re.findall(r'^\| (?:work|have|crash).* \| (\d+) \|$', text, re.M)]
