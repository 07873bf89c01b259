"""Text is read and written as UTF-8, whatever the locale; what is not says so."""
import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from PIL import Image
from tiny_task import TASK

from mmprovpt.cli.options import read_config
from mmprovpt.datasets.vtab1k import VTAB1k
from mmprovpt.errors import ConfigError

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ('mmprovpt', 'tools', 'benchmarks', 'examples') for path in (ROOT / folder).rglob('*.py')]
PLAIN = TASK.replace('mmprovpt.PromptedVisionTransformer', 'VisionTransformer').replace(
    "prompts=dict(type='StaticPrompts', num_tokens=[4, 4])", '').split('custom_hooks')[0]


def opens_text_by_locale(call):
    """Whether a call opens a text file and leaves the encoding to the locale."""
    name = getattr(call.func, 'attr', getattr(call.func, 'id', None))
    if name not in ('open', 'fdopen', 'read_text', 'write_text', 'NamedTemporaryFile', 'TemporaryFile'):
        return False
    library = getattr(getattr(call.func, 'value', None), 'id', None)
    if name == 'open' and library in ('Image', 'tarfile', 'gzip', 'zipfile', 'os'):  # of bytes
        return False
    words = {word.arg for word in call.keywords}
    if name.endswith('_text'):
        return 'encoding' not in words
    strings = [each.value for each in [*call.args, *(word.value for word in call.keywords if word.arg == 'mode')]
               if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    is_binary = any('b' in mode and set(mode) <= set('rwxab+') for mode in strings)
    return not (is_binary or 'encoding' in words)


@pytest.mark.parametrize('source, found', [
    ('open(path)', True), ("open(path, 'rb')", False), ("path.open('a')", True), ('path.read_text()', True),
    ("path.open('a', encoding='utf-8')", False), ("path.write_text('b')", True), ("open(p, mode='wb')", False)])
def test_how_such_calls_are_found(source, found):
    assert opens_text_by_locale(ast.parse(source).body[0].value) == found


def test_nobody_leaves_the_encoding_to_the_locale():
    found = [f'{path.relative_to(ROOT)}:{node.lineno}' for path in SOURCES
             for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
             if isinstance(node, ast.Call) and opens_text_by_locale(node)]
    assert len(SOURCES) > 80 and not found


def add_provpt(folder, *args, **env):
    """The tool in that folder, whose name may be of any bytes, in a locale."""
    return subprocess.run([sys.executable, ROOT / 'tools/add_provpt.py', 'task.py', *args], cwd=folder,
                          capture_output=True, env={**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONUTF8': '0', **env})


def test_a_folder_in_chinese_in_the_locale_of_windows_in_china(tmp_path):
    made = shutil.which('localedef') and subprocess.run(
        ['localedef', '-c', '-i', 'zh_CN', '-f', 'GBK', tmp_path / 'zh_CN.GBK'], capture_output=True)
    if not (tmp_path / 'zh_CN.GBK').exists():
        pytest.skip(f'no locale in GBK can be made: {made}')
    folder = os.fsencode(tmp_path) + '/数据'.encode('gbk')
    os.mkdir(folder)
    with open(folder + b'/task.py', 'w', encoding='utf-8') as file:
        file.write(PLAIN + "note = '数据'\n")
    done = add_provpt(folder, '--out', 'new.py', '--cfg-options', 'note=提示'.encode('gbk'), LOCPATH=str(tmp_path),
                      LC_ALL='zh_CN.GBK')
    assert done.returncode == 0, done.stderr.decode('gbk')
    os.rename(folder, tmp_path / 'data')  # this process is not in that locale
    assert Config.fromfile(tmp_path / 'data/new.py').note == '提示'


def test_a_config_that_is_printed_is_utf8_in_any_locale(tmp_path):
    (tmp_path / '数据').mkdir()
    (tmp_path / '数据/task.py').write_text(PLAIN, encoding='utf-8')
    done = add_provpt(tmp_path / '数据', '--cfg-options', 'note=提示', LC_ALL='C', PYTHONCOERCECLOCALE='0',
                      PYTHONIOENCODING='gbk')
    assert done.returncode == 0, done.stderr
    (tmp_path / '数据/new.py').write_bytes(done.stdout)
    cfg = Config.fromfile(tmp_path / '数据/new.py')
    assert cfg.note.encode('utf-8', 'surrogateescape').decode() == '提示'
    assert cfg.model.backbone.type == 'mmprovpt.PromptedVisionTransformer'


@pytest.mark.parametrize('content, words', [
    ("a = '数据'\n".encode('gbk'), 'is not in UTF-8 '), ('a = 1\n'.encode('utf-16'), 'is not in UTF-8 '),
    (b'\xef\xbb\xbfa = 1\n', 'save it as UTF-8 without a byte order mark'), (b'a = = 1\n', 'is not Python: '),
    (b"a = '\n", 'is not Python: ')])
@pytest.mark.parametrize('name', ['own.py', 'heir.py'])
def test_a_config_that_cannot_be_read_says_why_in_one_line(content, words, name, tmp_path):
    (tmp_path / 'own.py').write_bytes(content)
    (tmp_path / 'heir.py').write_text("_base_ = 'own.py'\n", encoding='utf-8')
    with pytest.raises(ConfigError) as error:
        read_config(tmp_path / name)
    assert words in str(error.value) and str(tmp_path / name) in str(error.value) and '\n' not in str(error.value)


def test_a_list_of_images_with_a_byte_order_mark(tmp_path):
    (tmp_path / 'own/images').mkdir(parents=True)
    Image.new('RGB', (8, 8)).save(tmp_path / 'own/图.png')
    options = dict(data_root=str(tmp_path), task='own', split='test', num_classes=3)
    (tmp_path / 'own/test.txt').write_text('图.png 2\n', encoding='utf-8-sig')
    data, = [VTAB1k(**options).get_data_info(0)]
    assert data['img_path'] == str(tmp_path / 'own/图.png') and data['gt_label'] == 2
    (tmp_path / 'own/test.txt').write_text('数据.png 2\n', encoding='gbk')
    with pytest.raises(ConfigError, match='test.txt is not in UTF-8 .*\nwhat to do: save it as UTF-8'):
        VTAB1k(**options)
