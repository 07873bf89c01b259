import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def requirements(name):
    """The lines of requirements/<name>, with those of the files that it includes."""
    lines = []
    for line in (HERE / 'requirements' / name).read_text(encoding='utf-8').splitlines():
        line = line.split('#')[0].strip()
        if line.startswith('-r '):
            lines += requirements(line[3:].strip())
        elif line:
            lines.append(line)
    return lines


extras = {name: requirements(f'{name}.txt') for name in ('det', 'seg', 'cls', 'sweep', 'onnx', 'tests')}
extras['all'] = sorted({line for name in ('det', 'seg', 'cls') for line in extras[name]})

setup(
    name='mmprovpt',
    version=runpy.run_path(str(HERE / 'mmprovpt/version.py'))['__version__'],
    description='Visual prompt tuning whose prompts move between blocks, for MMDetection, '
    'MMSegmentation, MMPretrain and timm',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmprovpt', 'mmprovpt.*']),
    python_requires='>=3.10',
    # The OpenMMLab packages are not here: two families of distributions provide them under the
    # same import names, and one over the other breaks both. The extras bring the OneDL family.
    install_requires=['matplotlib', 'numpy', 'timm>=1.0', 'torch>=2.0'],
    extras_require=extras,
)
