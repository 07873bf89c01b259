"""What `import mmprovpt` and its parts need, what they leave alone, and what is refused."""
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import mmcv
import mmengine
import numpy
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image
from printed import ten_lines

import mmprovpt
from mmprovpt import visualization
from mmprovpt.prompts import PromptSet, StaticPrompts
from mmprovpt.version import installed_versions, refuse_known_bad

ROOT = Path(__file__).parents[1]

# To Python, a module that is None is one that is not installed.
BLOCK = 'import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n'

# Nothing but the given packages, the standard library and this package can be imported, as if nothing else were there.
ONLY = """
import sys

class OnlyThese:
    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        top = name.partition('.')[0]
        if top in {allowed!r} or top in sys.stdlib_module_names or top.startswith('_sysconfigdata'):
            return next(filter(None, (finder.find_spec(name, path, target) for finder in self.finders)), None)

assert not {{'torch', 'numpy', 'mmengine'}} & set(sys.modules)
sys.meta_path[:] = [OnlyThese(sys.meta_path[:])]
"""

BUILD = """
from mmengine.registry import MODELS, DefaultScope
import mmprovpt
DefaultScope.get_instance('test', scope_name={scope!r})
backbone = MODELS.build(dict(
    type='mmprovpt.PromptedSwinTransformer', prompts=dict(type='StaticPrompts', num_tokens=3), {kwargs}))
print(int(backbone.prompts.distribution.sum()))
"""
SMALL = 'embed_dims=8, depths=(1, 1), num_heads=(1, 2), window_size=2, strides=(4, 2), out_indices=(0, 1)'
ARCH = 'arch=dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2]), window_size=2, out_indices=(0, 1)'


def run(code, *first):
    """In a process of its own, where modules are looked for in some folders first."""
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, [*first, ROOT]))})


def requirements(name: str) -> set[str]:
    """A distribution and all that it needs, that needs in turn, and so on; extras are not needed."""
    found, new = set(), {name}
    while new:
        found |= new
        needed = [line for each in new for line in _requires(each)
                  if line.marker is None or line.marker.evaluate({'extra': ''})]
        new = {_normal(line.name) for line in needed} - found
    return found


def _requires(name: str) -> list[Requirement]:
    try:
        return [Requirement(line) for line in metadata.requires(name) or []]
    except metadata.PackageNotFoundError:
        return []


def _normal(name: str) -> str:
    return re.sub('[-_.]+', '-', name).lower()


@pytest.fixture(scope='module')
def run_only():
    """Run code where only distributions, what they need, and this package can be imported."""
    homes = metadata.packages_distributions()

    def run_only(distributions: str, code: str) -> subprocess.CompletedProcess:
        needed = set().union(*map(requirements, distributions.split()))
        allowed = {module for module, names in homes.items() if needed & set(map(_normal, names))} | {'mmprovpt'}
        assert not allowed & {'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cv2', 'ray'}
        assert ('matplotlib' in allowed) == ('sklearn' in allowed) == ('matplotlib' in distributions)
        return run(ONLY.format(allowed=allowed) + code)

    return run_only


IMPORT_ALL = """
import importlib, pkgutil
for room in {rooms!r}:
    room = importlib.import_module(f'mmprovpt.{{room}}')
    for module in pkgutil.walk_packages(getattr(room, '__path__', []), f'{{room.__name__}}.'):
        importlib.import_module(module.name)
        print(module.name)
"""


def test_relocation_needs_torch_alone(run_only):
    result = run_only('torch', IMPORT_ALL.format(rooms=['errors', 'files', 'kinds', 'relocation']) + """
import torch
from mmprovpt.relocation import PPOAllocator
print(sum(p.numel() for m in vars(PPOAllocator(num_blocks=12, seed=0)).values() if isinstance(m, torch.nn.Module)
          for p in m.parameters()))
""")
    assert result.returncode == 0, result.stderr
    assert 'mmprovpt.relocation.pruners' in result.stdout and result.stdout.splitlines()[-1] == '13901'


def test_prompts_need_torch_alone(run_only):
    result = run_only('torch', IMPORT_ALL.format(rooms=['attention', 'prompts']))
    assert result.returncode == 0, result.stderr
    assert 'mmprovpt.prompts.static' in result.stdout and 'mmprovpt.attention.window' in result.stdout


INJECT = """
import timm, torch, mmprovpt
torch.manual_seed(0)
backbone = timm.create_model({name!r}, num_classes=0, {kwargs})
prompts = mmprovpt.inject_prompts(backbone, dict(type={form!r}, num_tokens=2))
images = torch.rand(2, 3, 56, 56)
backbone(images).square().sum().backward()
assert prompts.tokens.grad.abs().sum() > 0
assert mmprovpt.find_prompts(backbone) is prompts
if {form!r} != 'ShallowPrompts':
    prompts.relocate(0, 1)
small = mmprovpt.tuned_state_dict(backbone)
backbone.load_state_dict(small)
print(sorted(small) == sorted(key for key in small if key.startswith('prompts.')), len(prompts.tokens))
"""


@pytest.mark.parametrize('form, total', [('StaticPrompts', 4), ('AdaptivePrompts', 4), ('ShallowPrompts', 2)])
@pytest.mark.parametrize('name, kwargs', [
    ('vit_tiny_patch16_224', 'img_size=56, patch_size=14, embed_dim=32, depth=2, num_heads=2'),
    ('swin_tiny_patch4_window7_224', 'img_size=56, embed_dim=16, depths=(1, 1), num_heads=(1, 2)'),
])
def test_injection_needs_torch_and_timm(name, kwargs, form, total, run_only):
    result = run_only('timm', INJECT.format(name=name, kwargs=kwargs, form=form))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f'True {total}'


def test_ten_lines_of_readme(run_only, tmp_path):
    """As they stand there: prompts, training, relocations and a picture, by PyTorch, timm and what draws alone."""
    code = ten_lines()
    lines = [line for line in code.splitlines() if line and not line.startswith(('import ', 'from '))]
    assert len(lines) == 10
    result = run_only('timm matplotlib scikit-learn', f'import os\nos.chdir({str(tmp_path)!r})\n{code}'
                      'print(len(periods), sum(prompts.distribution.tolist()), [len(each.moves) for each in periods])')
    assert result.returncode == 0, result.stderr
    first, last = map(float, re.match(r'loss (\S+) to (\S+); prompts.png\n', result.stdout).groups())
    assert last < first / 2
    assert result.stdout.splitlines()[1] == '8 60 [1, 1, 1, 1, 1, 1, 1, 0]'
    with Image.open(tmp_path / 'prompts.png') as image:
        image.verify()


def test_import_loads_nothing():
    result = run('import sys, mmprovpt, mmprovpt.visualization, mmprovpt.errors, mmprovpt.files, mmprovpt.kinds\n'
                 "print({'torch', 'numpy', 'mmengine', 'timm', 'matplotlib'} & set(sys.modules))")
    assert result.stdout.strip() == 'set()', result.stderr


def test_matplotlib_is_for_drawing():
    result = run('import sys\nfrom mmprovpt.visualization import read_log, run_of\n'
                 "print('matplotlib' in sys.modules)\n"
                 'from mmprovpt.visualization import plot_relocation\n'
                 "print('matplotlib' in sys.modules, callable(plot_relocation))")
    assert result.stdout.split() == ['False', 'True', 'True'], result.stderr


@pytest.mark.parametrize('module', [mmprovpt, visualization])
def test_public_names(module):
    for name in module.__all__:
        assert getattr(module, name) is not None and name in dir(module)
    with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'nonsense'"):
        getattr(module, 'nonsense')  # noqa: B009
    with pytest.raises(ImportError):
        exec(f'from {module.__name__} import nonsense')


def test_former_name():
    with pytest.warns(FutureWarning, match='PromptPool is called PromptSet now'):
        assert mmprovpt.PromptPool is PromptSet is mmprovpt.PromptSet


@pytest.mark.parametrize('module', ['registry', 'hooks'])
def test_missing_mmengine_is_said_where_it_is_needed(run_only, module):
    result = run_only('torch', f'import mmprovpt.{module}')
    assert result.stderr.splitlines()[-1] == (
        'ModuleNotFoundError: MMEngine is not installed, which configs, registries and hooks of mmprovpt need: pip '
        'install onedl-mmengine (or upstream, mmengine)')


def test_mmengine_finds_our_types_by_their_prefix():
    result = run('from mmengine.registry import HOOKS, MODELS\n'
                 "print(MODELS.build(dict(type='mmprovpt.TIMMPooling', pool='avg')).pool, "
                 "HOOKS.get('mmprovpt.PromptRelocationHook').__name__)")
    assert result.stdout.splitlines()[-1] == 'avg PromptRelocationHook', result.stderr


def test_import_needs_no_codebase():
    result = run(BLOCK.format(blocked=['mmcv', 'mmdet', 'mmseg', 'mmpretrain']) +
                 'import mmprovpt, mmprovpt.registry; print(callable(mmprovpt.inject_prompts))')
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == 'True'


def test_import_imports_no_codebase():
    result = run('import sys, mmprovpt, mmprovpt.registry\n'
                 "print([name for name in ('mmdet', 'mmseg', 'mmpretrain') if name in sys.modules])")
    assert result.stdout.strip() == '[]'


@pytest.mark.parametrize('scope, kwargs', [('mmdet', SMALL), ('mmseg', SMALL), ('mmpretrain', ARCH)])
def test_each_codebase_needs_none_of_the_others(scope, kwargs):
    others = [name for name in ('mmdet', 'mmseg', 'mmpretrain') if name != scope]
    result = run(BLOCK.format(blocked=others) + BUILD.format(scope=scope, kwargs=kwargs))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == '6'


GOOD = dict(torch='2.11.0+cpu', numpy='2.2.6', mmengine='0.10.12', mmcv='2.3.6')


@pytest.mark.parametrize('versions', [
    GOOD,
    dict(torch='2.1.2', numpy='1.26.4', mmengine='0.10.7', mmcv='2.1.0'),
    dict(torch='2.13.0', numpy='2.2.6', mmengine='0.10.8rc1'),
    dict(torch='2.11.0'),
    dict(torch='2.1.2', mmengine='0.10.7'),
    {},
])
def test_versions_accepted(versions):
    refuse_known_bad(versions)


@pytest.mark.parametrize('change, message', [
    (dict(mmcv='1.7.2'), 'mmcv 1.7.2 is older than 2.0'),
    (dict(mmengine='0.8.4'), 'mmengine 0.8.4 is older than 0.8.5'),
    (dict(mmengine='0.10.7'), r'mmengine 0.10.7 with torch 2.11.0\+cpu: .* --resume fails'),
    (dict(torch='2.1.2'), 'numpy 2.2.6 with torch 2.1.2: .* use numpy < 2 or torch >= 2.3'),
])
def test_versions_refused(change, message):
    with pytest.raises(RuntimeError, match=message):
        refuse_known_bad({**GOOD, **change})


def test_versions_are_those_of_the_packages():
    found = installed_versions()
    assert torch.__version__.startswith(found.pop('torch'))
    assert found == {module.__name__: module.__version__ for module in (numpy, mmengine, mmcv)}


def test_a_known_bad_version_is_refused_without_being_imported(tmp_path):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv/__init__.py').write_text('raise SystemExit("imported")')
    (tmp_path / 'mmcv/version.py').write_text("__version__ = '1.7.2'")
    result = run('import mmprovpt', tmp_path)
    assert result.stderr.splitlines()[-1].strip() == (
        'mmcv 1.7.2 is older than 2.0: it has a Runner and a registry of its own')


def test_prompts_are_found():
    def block(*forms):
        return torch.nn.ModuleDict({f'backbone{number}': form for number, form in enumerate(forms)})

    first, second = (StaticPrompts([2, 2], patch_fan_in=12, widths=[4, 4]) for _ in range(2))
    assert mmprovpt.find_prompts(first) is first
    assert mmprovpt.find_prompts(block(torch.nn.Linear(2, 2), second)) is second
    with pytest.raises(ValueError, match='^Linear must have one set of prompts, but has 0; give the backbone'):
        mmprovpt.find_prompts(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match='ModuleDict must have one set of prompts, but has 2: backbone0, backbone1;'):
        mmprovpt.find_prompts(block(first, second))


def test_prompts_are_found_behind_distributed_data_parallel(tmp_path):
    prompts = StaticPrompts([2, 2], patch_fan_in=12, widths=[4, 4])
    torch.distributed.init_process_group('gloo', f'file://{tmp_path}/rendezvous', rank=0, world_size=1)
    try:
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.ModuleDict(dict(a=prompts)))
        assert mmprovpt.find_prompts(model) is prompts
        with pytest.raises(ValueError, match='must have one set of prompts, but has 2: module.a, module.b;'):
            model.module['b'] = StaticPrompts([1], patch_fan_in=12, widths=[4])
            mmprovpt.find_prompts(model)
    finally:
        torch.distributed.destroy_process_group()
