"""The wheel and what it ships: configs, tools and documents in mmprovpt/.mim, and the console script."""
import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import mmengine
import pytest
import yaml
from mmengine.config import Config

import mmprovpt
from mmprovpt.cli import packages
from mmprovpt.cli.console import TOOLS
from mmprovpt.cli.options import read_config
from mmprovpt.cli.parameters import count_config
from mmprovpt.errors import ConfigError
from mmprovpt.shipped import configs, shipped

ROOT = Path(__file__).parents[1]
SHIPPED = ('configs', 'tools', 'docs', 'examples', 'requirements')


def run(*command, **env):
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True,
                          cwd='/', env={**os.environ, **env})


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """A folder with the wheel, unpacked, built with nothing left in the clone."""
    folder = tmp_path_factory.mktemp('wheel')
    subprocess.run([sys.executable, 'setup.py', '-q', 'build', '-b', folder / 'build', 'egg_info', '--egg-base', folder,
                    'bdist_wheel', '-b', folder / 'bdist', '-d', folder], cwd=ROOT, check=True, capture_output=True)
    wheel, = folder.glob('mmprovpt-*.whl')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / 'installed')
        for each in archive.infolist():
            (folder / 'installed' / each.filename).chmod(each.external_attr >> 16)
    return folder / 'installed'


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob('*')
            if path.is_file() and '__pycache__' not in path.parts}


def test_the_wheel_has_all(installed):
    for name in SHIPPED:
        assert files(installed / 'mmprovpt/.mim' / name) == files(ROOT / name), name
    assert files(installed / 'mmprovpt') - {f'.mim/{path}' for path in files(installed / 'mmprovpt/.mim')} == files(
        ROOT / 'mmprovpt')
    assert {path.partition('/')[0] for path in files(installed)} == {
        'mmprovpt', f'mmprovpt-{mmprovpt.__version__}.dist-info'}
    info = installed / f'mmprovpt-{mmprovpt.__version__}.dist-info'
    assert 'mmprovpt = mmprovpt.cli.console:main' in (info / 'entry_points.txt').read_text()
    needed = re.findall(r'^Requires-Dist: (.*)$', (info / 'METADATA').read_text(encoding='utf-8'), re.M)
    assert [line for line in needed if 'extra ==' not in line] == ['torch>=2.1']
    assert not [line for line in needed if 'mmcv' in line]
    extras = set(re.findall(r"extra == [\"'](\w+)", '\n'.join(needed)))
    assert extras == {'all', 'cls', 'data', 'det', 'onnx', 'plots', 'seg', 'serve', 'sweep', 'tests', 'text', 'timm'}
    assert set(packages.EXTRAS.values()) < extras


def test_the_wheel_works_outside_the_clone(installed, tmp_path):
    (tmp_path / 'mine.py').write_text("_base_ = __import__('mmprovpt').config('demo/swin_mini_provpt_digits.py')\n")
    result = run('-c', f"""
import os, mmprovpt
os.chdir({str(tmp_path)!r})
from mmengine.config import Config
print(mmprovpt.config('mask_rcnn_swin_t_provpt_coco.py'))
print(Config.fromfile('mine.py').model.backbone.init_cfg.checkpoint)
""", PYTHONPATH=str(installed))
    assert result.stdout.split() == [f'{installed}/mmprovpt/.mim/configs/{name}' for name in (
        'mask_rcnn_swin_t_provpt_coco.py', 'demo/swin_mini_digits.pth')], result.stderr
    result = run('-m', 'mmprovpt', 'table', 'nowhere', PYTHONPATH=str(installed))
    assert result.returncode == 1 and result.stderr.endswith('run `mmprovpt sweep`\n')


def test_config_of_the_clone():
    path = mmprovpt.config('mask_rcnn_swin_t_provpt_coco.py')
    assert path == str(ROOT / 'configs/mask_rcnn_swin_t_provpt_coco.py')
    assert Config.fromfile(path).model.type == 'MaskRCNN'


@pytest.mark.parametrize('name, advice', [
    ('mask_rcnn_swin_t_provpt_coc.py', 'did you mean mask_rcnn_swin_t_provpt_coco.py or '),
    ('swin_mini_provpt_digits.py', 'did you mean demo/swin_mini_provpt_digits.py'),
    ('vtab1k/vit_b_provpt', 'did you mean vtab1k/vit_b_provpt.py'),
    ('../setup.py', 'has no config'), ('/etc/passwd', '`mmprovpt config` lists all')])
def test_config_that_is_not_there(name, advice):
    with pytest.raises(ConfigError, match='^mmprovpt has no config') as error:
        mmprovpt.config(name)
    assert repr(name) in str(error.value) and advice in str(error.value)


def test_all_tools_are_commands():
    """But for the one that makes what the repository ships."""
    found = {path.relative_to(ROOT / 'tools').as_posix() for path in (ROOT / 'tools').rglob('*')
             if path.suffix == '.sh' or path.suffix == '.py' and "__name__ == '__main__'" in path.read_text()}
    assert found - {'pretrain_miniature.py'} == set(TOOLS.values())


def console(*arguments, **env):
    return run('-m', 'mmprovpt', *arguments, PYTHONPATH=str(ROOT), **env)


def test_console_script(tmp_path):
    usage = console().stdout
    assert all(re.search(f'^  {command} .*[a-z]', usage, re.M) for command in (*TOOLS, 'config'))
    versions = dict(line.split() for line in console('--version').stdout.splitlines())
    assert versions['mmprovpt'] == mmprovpt.__version__ and versions['mmengine'] == mmengine.__version__
    assert console('config').stdout.split() == configs()
    assert console('config', 'vtab1k/vit_b_provpt.py').stdout.strip() == mmprovpt.config('vtab1k/vit_b_provpt.py')
    for arguments, message in ((('config', 'x.py'), 'has no config'), (('trian', ), 'did you mean train?'),
                               (('dist-train', ), 'usage: mmprovpt dist-train CONFIG PROCESSES')):
        result = console(*arguments)
        assert result.returncode == 1 and message in result.stderr and 'Traceback' not in result.stderr


def test_commands_run_tools_as_they_are():
    """With the modules beside them, and scripts of the shell."""
    result = console('miniature-coco', '--help')
    assert '--num-train' in result.stdout, result.stderr
    result = console('dist-train', 'no.py', 2, PYTHON='/bin/echo')
    assert result.stdout.endswith('tools/train.py no.py --launcher pytorch\n'), result.stderr


@pytest.mark.parametrize('missing, arguments, message', [
    ('mmengine', ['train', 'x.py'], 'mmengine is not installed: pip install onedl-mmengine'),
    ('mmcv', ['visualize', 'x.py', 'x.pth', '--out', 'x'], 'mmcv is not installed: pip install '),
    ('matplotlib', ['plot-relocation', 'x.jsonl'], "matplotlib is not installed: pip install 'mmprovpt[plots]'")])
def test_what_is_not_installed_is_said(missing, arguments, message, tmp_path):
    (tmp_path / 'sitecustomize.py').write_text(f'import sys\nsys.modules[{missing!r}] = None\n')
    result = run('-m', 'mmprovpt', *arguments, PYTHONPATH=f'{tmp_path}:{ROOT}')
    assert result.returncode == 1 and result.stderr.startswith(f'error: {message}'), result.stderr


def test_a_codebase_that_is_not_installed(monkeypatch, tmp_path):
    path = mmprovpt.config('demo/mask_rcnn_swin_mini_provpt_digits.py')
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'mmdet', None)
        with pytest.raises(ConfigError, match=r"mmdet is not installed.*: pip install 'mmprovpt\[det\]'$"):
            packages.require_codebase('mmdet')
    command = ("pip install 'setuptools>=77,<81' wheel ninja psutil && pip install --no-build-isolation -r "
               + shipped('requirements/mmcv.txt'))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'mmcv', None)
        with pytest.raises(ConfigError, match='^mmcv is not installed, which configs of mmdet need: ') as error:
            read_config(path)
        assert str(error.value).endswith(command)
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').touch()  # without operators
    (tmp_path / 'mmcv/version.py').write_text("__version__ = '2.3.6'")
    result = run('-c', "from mmprovpt.cli.packages import *; require_codebase('mmpretrain'); require_codebase('mmseg')",
                 PYTHONPATH=f'{tmp_path}:{ROOT}')
    assert 'ConfigError: mmcv is installed without its operators, which mmseg needs: pip install' in result.stderr
    assert '--no-binary onedl-mmcv -r' in result.stderr
    assert Path(shipped('requirements/mmcv.txt')).is_file()


def strings(path):
    """(Is it part of a docstring?, the text) of each string in a file."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    documents = {id(node.body[0].value) for node in ast.walk(tree) if hasattr(node, 'body') and
                 isinstance(node.body, list) and node.body and isinstance(node.body[0], ast.Expr)}
    return [(id(node) in documents, node.value) for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_nothing_names_a_file_that_the_wheel_lacks():
    """Texts name shipped files; what is said while a program runs says where they lie, and names commands."""
    wrong = []
    for path in [*(ROOT / 'mmprovpt').rglob('*.py'), *(ROOT / 'tools').rglob('*.py')]:
        if path.name in ('pretrain_miniature.py', 'console.py'):
            continue
        for is_document, text in strings(path):
            named = re.findall(r'(?<![\w/:.-])(?:docs|configs|tools|requirements|benchmarks)/[\w/.-]*\w\.\w+', text)
            wrong += [(path.name, name) for name in named if not (ROOT / name).is_file()]
            if is_document:
                wrong += [(path.name, name) for name in named if name.startswith('benchmarks/')]
            elif named and text not in named:  # what shipped() is given is a path and nothing else
                wrong += [(path.name, name) for name in named if f'{name} of the repository' not in text]
            if not is_document and re.search(r'\bmake [a-z-]+`|README', text):
                wrong.append((path.name, text))
    assert not wrong


def test_what_has_a_shebang_is_executable():
    listed = subprocess.run(['git', 'ls-files', '-s'], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip('no clone of git')
    wrong = [line.split()[3] for line in listed.stdout.splitlines() if (ROOT / line.split()[3]).is_file() and
             (ROOT / line.split()[3]).open('rb').read(2).startswith(b'#!') != (line[:6] == '100755')]
    assert not wrong


def test_shell_scripts_of_the_wheel_are_executable(installed):
    assert all(os.access(path, os.X_OK) for path in (installed / 'mmprovpt/.mim/tools').glob('*.sh'))


def test_model_index_lists_every_config():
    """With what benchmarks/model_index.py counts, and results that the pages have."""
    def load(path):
        return yaml.safe_load((ROOT / path).read_text(encoding='utf-8'))

    families = [load(path) for path in load('model-index.yml')['Import']]
    collections = {each['Name']: each for family in families for each in family.get('Collections', [])}
    models = {each['Config'].removeprefix('configs/'): each for family in families for each in family['Models']}
    assert set(models) == {name for name in configs() if not name.startswith(('_base_', 'table3'))}
    assert {each['In Collection'] for each in models.values()} == set(collections)
    assert all((ROOT / each['README']).is_file() for each in collections.values())
    for name in ('demo/swin_mini_provpt_digits.py', 'fgvc/vit_b_lora.py', 'miniature_vtab/vapt.py'):
        counted = count_config(read_config(mmprovpt.config(name)))
        assert models[name]['Metadata']['Trained Parameters'] == counted, 'run benchmarks/model_index.py'
    for folder, pages in (('demo', ['configs/demo/README.md']), ('camvid/', ['docs/evidence/study.md']),
                          ('miniature_vtab', ['docs/evidence/results.md', 'docs/evidence/study.md'])):
        text = ''.join((ROOT / page).read_text(encoding='utf-8') for page in pages)
        results = [result for name, each in models.items() if name.startswith(folder) for result in
                   each.get('Results', [])]
        assert results and all(f' {value}' in text for result in results for value in result['Metrics'].values())


def test_jobs_are_targets_of_make():
    job = yaml.safe_load((ROOT / '.github/workflows/ci.yml').read_text(encoding='utf-8'))['jobs']['make']
    matrix = job['strategy']['matrix']
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(encoding='utf-8'), re.M))
    assert {*matrix['target'], *(each['target'] for each in matrix['include'])} <= targets
    assert f'torch=={matrix["torch"][0]}' in (ROOT / 'requirements/torch.txt').read_text(encoding='utf-8').split()
