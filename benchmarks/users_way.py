"""The way of a new user, from the wheel to the result: build it, install it elsewhere, do what the pages say.

    python benchmarks/users_way.py [--mim] [--from-nothing] [--keep DIR]

The wheel is built from the sdist, so that both are whole. A new environment gets it, and beside it what is installed
for the Python that runs this, but for mmprovpt itself; with --from-nothing, all that docs/start/install.md has pip
install. There, in an empty folder, the commands of README and the how-to pages are run, as they are printed but for
names and for a shorter training; a table says how long each took. Exits with 1 at the first that fails.

--mim installs MIM, too, and trains by it, which needs a network.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import printed  # noqa: E402

from mmprovpt.cli.console import TOOLS  # noqa: E402

ROOT = Path(__file__).parents[1]
DET, SEG, CLS = (f'demo/{name}_provpt_digits.py' for name in ('mask_rcnn_swin_mini', 'setr_pup_vit_mini', 'swin_mini'))
PLAIN = 'demo/mask_rcnn_swin_mini_full_digits.py'  # a user's: without prompts
INSTALL, RECIPES, SMALL, SERVING, RELOCATION, SWEEP = (
    f'docs/{name}.md' for name in ('start/install', 'how-to/recipes', 'how-to/small_checkpoints', 'how-to/deployment',
                                   'how-to/relocation', 'how-to/sweep'))
DEMO = 'configs/demo/README.md'
TRAIN = 'mmprovpt train "$(mmprovpt config demo/swin_mini_provpt_digits.py)"'


class Step(NamedTuple):
    """A command of a page.

    Attributes:
        what: For the table.
        page: Where it is printed.
        begins: How the line begins there.
        names: What is put in place of names in it. ``@…`` is the last file of a pattern, ``$…`` a shipped config.
        more: What is added to it.
    """

    what: str
    page: str
    begins: str
    names: dict[str, str] = {}
    more: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """Those of the page, with `mmprovpt COMMAND` for a script of tools/, as INSTALL says."""
        line = next((line for line in printed.lines(ROOT / self.page) if line.startswith(self.begins)), None)
        if line is None:
            raise ValueError(f'{self.page} has no line that begins with: {self.begins}')
        words, = printed.commands(line)
        scripts = {f'tools/{path}': name for name, path in TOOLS.items()}
        if words[0] == 'python' and words[1] in scripts:
            words[:2] = ['mmprovpt', scripts[words[1]]]
        elif words[0] in scripts:
            words[:1] = ['mmprovpt', scripts[words[0]]]
        missing = [name for name in self.names if name not in words]
        if missing:
            raise ValueError(f'{self.page}: {line}: has no {missing}')
        return [self.names.get(word, word) for word in words] + list(self.more)


def epochs(number: int, *options: str) -> tuple[str, ...]:
    """Options for a short training."""
    return ('--cfg-options', f'train_cfg.max_epochs={number}', f'train_cfg.val_interval={number}',
            'default_hooks.checkpoint.interval=1', *options)


WORK = ('--work-dir', 'mine')
STEPS = [
    Step('data, 8 and 2 images', INSTALL, 'mmprovpt miniature-coco', more=('--num-train', '8', '--num-val', '2')),
    Step('prompts for a config', RECIPES, 'python tools/add_provpt.py my_config.py', {'my_config.py': f'${PLAIN}'}),
    Step('train Mask R-CNN, an epoch', RECIPES, 'python tools/train.py my_provpt.py', more=WORK + epochs(1)),
    Step('resume, another epoch', SMALL, 'tools/train.py CONFIG --resume', {'CONFIG': 'my_provpt.py'},
         WORK + epochs(2)),
    Step('test', SERVING, 'python tools/test.py CONFIG', {'CONFIG': 'my_provpt.py', 'CHECKPOINT': '@mine/epoch_*.pth'}),
    Step('small checkpoint', SMALL, 'python tools/export_prompts.py work_dirs/x/epoch_100.pth',
         {'work_dirs/x/epoch_100.pth': '@mine/epoch_*.pth'}),
    Step('predictions', DEMO, 'python tools/visualize.py', {
        'configs/demo/mask_rcnn_swin_mini_provpt_digits.py': 'my_provpt.py', 'CHECKPOINT': 'small.pth'}),
    Step('the whole model again', SMALL, 'python tools/export_prompts.py small.pth full.pth'),
    Step('train SETR, 2 iterations', INSTALL, TRAIN, {f'$(mmprovpt config {CLS})': f'${SEG}'}, (
        '--work-dir', 'seg', '--cfg-options', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2', 'custom_hooks.0.interval=1')),
    Step('train a classifier, an epoch', INSTALL, TRAIN, {f'$(mmprovpt config {CLS})': f'${CLS}'}, (
        '--work-dir', 'cls') + epochs(1)),
    Step('ONNX', SERVING, 'python tools/export_onnx.py CONFIG CHECKPOINT', {
        'CONFIG': f'${CLS}', 'CHECKPOINT': '@cls/epoch_*.pth'}, ('--shape', '56', '56')),
    Step('relocations of two runs', RELOCATION, 'python tools/analysis_tools/plot_relocation.py', {
        'RUN1/relocations.jsonl': '@mine/*/relocations.jsonl', 'RUN2/relocations.jsonl': '@cls/*/relocations.jsonl'}),
    Step('attention', RELOCATION, 'python tools/analysis_tools/plot_attention.py', {
        'CONFIG': f'${CLS}', 'CHECKPOINT': '@cls/epoch_*.pth', 'IMAGE': '@data/miniature/digits/val/*/*.jpg'}),
    Step('sweep, a seed', SWEEP, 'python tools/sweep.py CONFIG... --seeds 3', {'CONFIG': f'${CLS}', '3': '1'}, (
        '--no-grid', '--cfg-options', *epochs(1)[1:])),
    Step('its table', SWEEP, 'python tools/table.py work_dirs/sweep'),
]
WRITTEN = ('small.pth', 'full.pth', 'pictures/*.png', 'seg/iter_2.pth', 'model.onnx', 'both.png', 'attention.png')
# What is imported lies in the environment, and so does what is shipped.
PROBE = """
import sys, mmprovpt
path = mmprovpt.config({!r})
assert mmprovpt.__file__.startswith(sys.prefix) and path.startswith(sys.prefix), (mmprovpt.__file__, path)
assert not [folder for folder in sys.path if folder.startswith({!r}) and not folder.endswith('-packages')]
"""
# What SERVING's program for a classifier is given.
IMAGE = "import glob, cv2\nimage = cv2.imread(glob.glob('data/miniature/digits/val/*/*.jpg')[0])\n"


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
    return wheel


def install(wheel: Path, folder: Path, everything: bool, env: dict) -> None:
    """Put the wheel into a new environment, with what it needs from the index, or with what is installed here."""
    start = time.time()
    venv.create(folder, with_pip=True)
    print(f'| environment | {time.time() - start:.1f} |')
    pip = [str(folder / 'bin/python'), '-m', 'pip']
    if everything:
        for begins, names in (('pip install torch', {}), ("pip install 'mmprovpt[seg]'", {
                'mmprovpt[seg]': f'{wheel}[all,sweep,onnx]'}), ("pip install 'setuptools", {}),
                ('pip install --no-build-isolation onedl-mmcv', {})):
            _, *words = Step('', INSTALL, begins, names).words()
            first = next(word for word in words[1:] if not word.startswith('-'))
            run(f'`pip install {first.replace(str(wheel), "mmprovpt")} …`', *pip, *words, cwd=folder, env=env)
        return
    run('install the wheel', *pip, 'install', '--quiet', '--no-deps', '--no-index', str(wheel), cwd=folder, env=env)
    packages, = folder.glob('lib/python3*/site-packages')
    # A path alone: files *.pth there, such as that of an editable install of mmprovpt, are not read.
    others = [path for path in sys.path if path.endswith('-packages')]
    (packages / 'others.pth').write_text('\n'.join(others) + '\n', encoding='utf-8')


def go(bin: Path, folder: Path, mim: bool, env: dict) -> None:
    """All that a user does."""
    def fill(word: str) -> str:
        if word.startswith('@'):
            *_, path = sorted(folder.glob(word[1:]))
            return str(path)
        shipped = [str(bin / 'mmprovpt'), 'config', word[1:]]
        return subprocess.check_output(shipped, env=env, text=True).strip() if word.startswith('$demo') else word

    python = str(bin / 'python')
    run('import', python, '-c', PROBE.format(DET, str(ROOT)), cwd=folder, env=env)
    run("README's lines without OpenMMLab", python, '-c', printed.ten_lines(), cwd=folder, env=env)
    for step in STEPS:
        command, *words = map(fill, step.words())
        output = run(f'{step.what}: `{" ".join(step.words()[:2])}` ([{Path(step.page).stem}]({step.page}))',
                     str(bin / command), *words, cwd=folder, env=env)
    assert '| PRO-VPT |' in output, output  # the table of the sweep
    program, = (code for code in printed.blocks(ROOT / SERVING, 'python') if 'onnxruntime' in code)
    run(f'ONNX Runtime ([deployment]({SERVING}))', python, '-c', IMAGE + program, cwd=folder, env=env)
    for path in WRITTEN:
        assert Path(fill(f'@{path}')).stat().st_size > 1000, path
    if mim:
        run('install MIM', python, '-m', 'pip', 'install', '--quiet', 'openmim', 'setuptools<81', cwd=folder, env=env)
        run('train by MIM', python, '-m', 'mim', 'train', 'mmprovpt', Path(DET).name, '--work-dir', 'mim', *epochs(1),
            cwd=folder, env=env)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--mim', action='store_true', help='train by MIM, too')
    parser.add_argument('--from-nothing', action='store_true', help='install everything from the index')
    parser.add_argument('--keep', type=Path, metavar='DIR', help='a new folder for all that is written')
    args = parser.parse_args()
    env = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'VIRTUAL_ENV')}
    env.update(CUDA_VISIBLE_DEVICES='', MPLBACKEND='agg')
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        folder = args.keep.absolute() if args.keep else Path(folder)
        for name in ('dist', 'work'):
            (folder / name).mkdir(parents=True)
        print('| step | seconds |\n|---|---|')
        wheel = build(folder / 'dist', env)
        install(wheel, folder / 'venv', args.from_nothing, env)
        go(folder / 'venv/bin', folder / 'work', args.mim, env)
        shutil.rmtree(folder / 'venv')
    print(f'| all of it | {time.time() - start:.0f} |')


if __name__ == '__main__':
    main()
