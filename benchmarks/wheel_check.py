"""Build sdist and wheel, install the wheel outside the clone, and work with nothing else: train, test, export, draw.

    python benchmarks/wheel_check.py [--mim] [--keep DIR]

The wheel is built from the sdist, so that both are whole. A new environment gets it, and beside it what is installed
for the Python that runs this, but for mmprovpt itself. There, in an empty folder, each command is run as a user would
run it; a table says what was done and how long it took. Exits with 1 at the first that fails.

--mim installs MIM, too, and trains by it, which needs a network.
"""
import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
SEG, DET = 'demo/setr_pup_vit_mini_provpt_digits.py', 'demo/mask_rcnn_swin_mini_provpt_digits.py'
TWO_ITERATIONS = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2',
                  'custom_hooks.0.interval=1']
# What is imported lies in the environment, and so does what is shipped.
PROBE = """
import sys, mmprovpt
from mmengine.config import Config
path = mmprovpt.config({!r})
assert mmprovpt.__file__.startswith(sys.prefix) and path.startswith(sys.prefix), (mmprovpt.__file__, path)
assert not [folder for folder in sys.path if folder.startswith({!r})]
Config.fromfile(path)
print(path)
"""


def run(what: str, *command: str, cwd: Path, env: dict) -> str:
    """Run a command; its output, and a line of the table."""
    start = time.time()
    done = subprocess.run(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f'{done.stdout[-4000:]}\n{what} failed with {done.returncode}: {" ".join(command)}')
    print(f'| {what} | {time.time() - start:.1f} |', flush=True)
    return done.stdout


def build(folder: Path, env: dict) -> Path:
    """Build the sdist of the clone, and of that the wheel."""
    backend = f'from setuptools import build_meta; print(build_meta.build_sdist({str(folder)!r}))'
    run('sdist', sys.executable, '-c', backend, cwd=ROOT, env=env)
    sdist, = folder.glob('*.tar.gz')
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / 'source', filter='data')
    source, = (folder / 'source').iterdir()
    run('wheel', sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation',
        '-w', str(folder), str(source), cwd=folder, env=env)
    wheel, = folder.glob('*.whl')
    print(f'{sdist.name}: {sdist.stat().st_size / 1e6:.1f} MB, {wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB')
    return wheel


def install(wheel: Path, folder: Path, mim: bool, env: dict) -> Path:
    """A new environment with the wheel; returns its folder of programs."""
    venv.create(folder, with_pip=True)
    python = str(folder / 'bin/python')
    run('install', python, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', str(wheel),
        cwd=folder, env=env)
    if mim:
        run('install MIM', python, '-m', 'pip', 'install', '--quiet', 'openmim', 'setuptools<81', cwd=folder, env=env)
    packages, = folder.glob('lib/python3*/site-packages')
    # A path alone: files *.pth there, such as that of an editable install of mmprovpt, are not read.
    others = [path for path in sys.path if path.endswith('-packages')]
    (packages / 'others.pth').write_text('\n'.join(others) + '\n', encoding='utf-8')
    return folder / 'bin'


def work(bin: Path, folder: Path, mim: bool, env: dict) -> None:
    """All that a user does."""
    def mmprovpt(what: str, *arguments: str) -> str:
        return run(what, str(bin / 'mmprovpt'), *map(str, arguments), cwd=folder, env=env)

    def last(pattern: str) -> Path:
        *_, path = sorted(folder.glob(pattern))
        return path

    config = run('import', str(bin / 'python'), '-c', PROBE.format(SEG, str(ROOT)), cwd=folder, env=env).strip()
    mmprovpt('data', 'miniature-coco', '--num-train', 8, '--num-val', 2)
    mmprovpt('train, segmentation', 'train', config, '--work-dir', 'seg', '--cfg-options', *TWO_ITERATIONS)
    mmprovpt('test', 'test', config, 'seg/iter_2.pth')
    mmprovpt('small checkpoint', 'export-prompts', 'seg/iter_2.pth', 'small.pth')
    mmprovpt('draw predictions', 'visualize', config, 'small.pth', '--out', 'predictions', '--num', 2)
    mmprovpt('export', 'export', config, 'small.pth', 'model.onnx')
    mmprovpt('draw relocations', 'plot-relocation', last('seg/*/relocations.jsonl'), '--out', 'relocation.png')
    mmprovpt('add to a config', 'add', 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py', '--out', 'mine.py')
    by_mim = [str(bin / 'python'), '-m', 'mim', 'train', 'mmprovpt', Path(DET).name]
    by_us = [str(bin / 'mmprovpt'), 'train', mmprovpt('config', 'config', DET).strip()]
    run('train, detection' + ' (MIM)' * mim, *(by_mim if mim else by_us), '--work-dir', 'det', '--cfg-options',
        'train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1',
        cwd=folder, env=env)
    for path in ('small.pth', 'predictions/*.png', 'model.onnx', 'relocation.png', 'det/epoch_1.pth'):
        assert last(path).stat().st_size > 1000, path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--mim', action='store_true', help='train by MIM, too')
    parser.add_argument('--keep', type=Path, metavar='DIR', help='a new folder for all that is written')
    args = parser.parse_args()
    env = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'VIRTUAL_ENV')}
    env.update(CUDA_VISIBLE_DEVICES='', MPLBACKEND='agg')
    with tempfile.TemporaryDirectory() as folder:
        folder = args.keep.absolute() if args.keep else Path(folder)
        for name in ('dist', 'work'):
            (folder / name).mkdir(parents=True)
        print('| what | seconds |\n|---|---|')
        wheel = build(folder / 'dist', env)
        bin = install(wheel, folder / 'venv', args.mim, env)
        work(bin, folder / 'work', args.mim, env)


if __name__ == '__main__':
    main()
