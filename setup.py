import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
# What a clone has beside the package goes into it as mmprovpt/.mim, where MIM and mmprovpt.shipped look.
SHIPPED = ('configs', 'tools', 'docs', 'examples', 'requirements', 'model-index.yml')
SUFFIXES = {'.py', '.sh', '.md', '.yml', '.json', '.txt', '.rst', '.pth', '.png', '.svg', '.html'}


class BuildShipped(build_py):
    """Builds the package and, unless it stays in the clone (``pip install -e``), what it ships."""

    def run(self):
        shutil.rmtree(Path(self.build_lib, 'mmprovpt'), ignore_errors=True)  # of an earlier build
        super().run()
        for source, target in self.shipped():
            self.mkpath(str(target.parent))
            shutil.copy(source, target)

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + [str(target) for _, target in self.shipped()]

    def shipped(self):
        """Pairs of a file and where it goes."""
        if getattr(self, 'editable_mode', False):
            return []
        found = [path for name in SHIPPED for path in sorted([HERE / name, *(HERE / name).rglob('*')])]
        return [(path, Path(self.build_lib, 'mmprovpt/.mim', path.relative_to(HERE)))
                for path in found if path.is_file() and path.suffix in SUFFIXES]


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


# mmcv is in none: pip builds it where it cannot see torch, and its operators are left out without a word.
extras = {path.stem: requirements(path.name) for path in (HERE / 'requirements').glob('*.txt')
          if path.stem not in ('torch', 'mmcv', 'docs', 'browser')}
extras['all'] = sorted({line for name in ('timm', 'plots', 'det', 'seg', 'cls', 'data') for line in extras[name]})

setup(
    name='mmprovpt',
    version=runpy.run_path(str(HERE / 'mmprovpt/version.py'))['__version__'],
    description='Visual prompt tuning whose prompts move between blocks, for MMDetection, '
    'MMSegmentation, MMPretrain and timm',
    long_description=(HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='visual prompt tuning, parameter-efficient fine-tuning, vision transformer, OpenMMLab, timm',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    # project_urls: there are none yet (docs/contributing/release.md).
    packages=find_packages(include=['mmprovpt', 'mmprovpt.*']),
    package_data={'mmprovpt': ['py.typed']},
    cmdclass={'build_py': BuildShipped},
    entry_points={'console_scripts': ['mmprovpt = mmprovpt.cli.console:main']},
    python_requires='>=3.10',
    # All else is lazy, and in an extra. Two families of distributions provide the OpenMMLab packages under the same
    # import names, and one over the other breaks both; the extras bring the OneDL family.
    install_requires=['torch>=2.1'],
    extras_require=extras,
)
