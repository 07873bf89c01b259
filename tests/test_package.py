"""What `import mmprovpt` needs and what it refuses."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmprovpt

ROOT = Path(__file__).parents[1]

# To Python, a module that is None is one that is not installed.
BLOCK = 'import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n'

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


def run(code):
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)})


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
])
def test_versions_accepted(versions):
    mmprovpt._refuse_known_bad(versions)


@pytest.mark.parametrize('change, message', [
    (dict(mmcv='1.7.2'), 'mmcv 1.7.2 is older than 2.0'),
    (dict(mmengine='0.7.4'), 'mmengine 0.7.4 is older than 0.8.3'),
    (dict(mmengine='0.10.7'), r'mmengine 0.10.7 with torch 2.11.0\+cpu: .* --resume fails'),
    (dict(torch='2.1.2'), 'numpy 2.2.6 with torch 2.1.2: .* use numpy < 2 or torch >= 2.3'),
])
def test_versions_refused(change, message):
    with pytest.raises(RuntimeError, match=message):
        mmprovpt._refuse_known_bad({**GOOD, **change})


def test_missing_mmengine_is_named():
    with pytest.raises(RuntimeError, match='MMEngine is not installed: pip install'):
        mmprovpt._refuse_known_bad(dict(torch='2.11.0', numpy='2.2.6'))
