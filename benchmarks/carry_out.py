"""Carry out the commands that the pages print, in a copy of this clone, with noise in place of data that is not free.

    python benchmarks/carry_out.py [WORD ...] [--list] [--keep DIR]

WORDs choose commands. A command runs as it is printed but for names in capitals, for fewer processes than a big machine
has, and for a shorter training: OF_COMMANDS says for each what is put in place of what, and what is added. Pretrained
weights are left out: they take a network. The table says how long each took; exits with 1 if any failed. ELSEWHERE says
of every other command who carries it out, and where nobody does, why.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import printed  # noqa: E402
import stand_ins  # noqa: E402
from dist_exits import free_port  # noqa: E402

ROOT = printed.ROOT
CLS, RCNN, PLAIN, MULTI = (f'configs/demo/{name}_digits.py' for name in (
    'swin_mini_provpt', 'mask_rcnn_swin_mini_provpt', 'mask_rcnn_swin_mini_full', 'multi_swin_mini_vpt'))


class Step(NamedTuple):
    """Commands that begin alike.

    Attributes:
        begins: A pattern of them.
        names: What is put in place of words. ``@…`` is the last file of a pattern.
        more: What is added.
    """
    begins: str
    names: dict[str, str] = {}
    more: str = ''

    def fits(self, command: str) -> bool:
        """Whether this is such a command."""
        return re.match(self.begins, command) is not None

    def filled(self, command: str, folder: Path) -> str:
        """The command that is carried out.

        Raises:
            ValueError: It lacks one of the names, or there is no such file.
        """
        for word, value in self.names.items():
            if not re.search(rf'(?<!\S){re.escape(word)}(?!\S)', command):
                raise ValueError(f'no {word} in: {command}')
            if value.startswith('@'):
                found = sorted(folder.glob(value[1:]), key=os.path.getmtime)
                if not found:
                    raise ValueError(f'nothing is called {value[1:]}')
                value = str(found[-1].relative_to(folder))
            command = re.sub(rf'(?<!\S){re.escape(word)}(?!\S)', value, command)
        return f'{command} {self.more}'.strip()


def short(*options: str, epochs: int = 1) -> str:
    """Options of a training of some epochs."""
    return ' '.join(('--cfg-options', f'train_cfg.max_epochs={epochs}', f'train_cfg.val_interval={epochs}',
                     'default_hooks.checkpoint.interval=1', *options))


def iterations(*options: str, count: int = 2) -> str:
    """Options of a training of some iterations."""
    return ' '.join(('--cfg-options', f'train_cfg.max_iters={count}', f'train_cfg.val_interval={count}',
                     f'default_hooks.checkpoint.interval={count}', *options))


FRESH, TIMM = 'model.backbone.init_cfg=None', 'model.backbone.pretrained=False'
FEW = 'train_dataloader.dataset.indices=8 val_dataloader.dataset.indices=8'
ONE, TWO = (f'train_dataloader.batch_size={size}' for size in (1, 2))  # UPerNet's batch norms want two
DENSE, SEG, FIRST = (f'work_dirs/{name}' for name in (
    'mask_rcnn_swin_t_provpt', 'setr_pup_vit_b_provpt_ade20k', 'mask_rcnn_swin_mini_provpt_digits'))
OF_FIRST = {'CHECKPOINT': f'@{FIRST}/epoch_1.pth'}
OF_CLS = {'CONFIG': CLS, 'CHECKPOINT': '@work_dirs/swin_mini_provpt_digits/epoch_*.pth'}
OF_MULTI = {'CONFIG': MULTI, 'CHECKPOINT': '@work_dirs/multi_swin_mini_vpt_digits/iter_3.pth'}
LOG, RELOCATE = 'default_hooks.logger.interval=1', 'custom_hooks.0.interval=1'
SHAPE, THREADS = '--shape 56 56', r'(OMP_NUM_THREADS=\d )?'

# In the order in which they are carried out: what one writes, another reads.
OF_COMMANDS = [
    Step('python -c'), Step('mmprovpt --(help|version)'),
    Step('python tools/dataset_converters/miniature_coco.py|mmprovpt miniature-coco', more='--num-train 8 --num-val 4'),
    # Detection
    Step('python tools/train.py configs/recipes/mask_rcnn_dinov3_b_sfp_coco.py', more=short(TIMM, ONE)),
    Step('mmprovpt train .* recipes/mask_rcnn_dinov3', more=f'{short(ONE)} --work-dir dinov3'),
    Step('python tools/train.py configs/mask_rcnn_swin_t_provpt_coco.py', more=short(FRESH)),
    Step('tools/dist_train.sh configs/mask_rcnn_swin_t_provpt_coco.py', {'8': '2'},
         f'--work-dir two {short(FRESH, ONE)}'),
    Step('tools/dist_train.sh configs/mask_rcnn_swin_t_provpt_ms', {'8': '2'}, short(FRESH, ONE)),
    Step('python tools/test.py configs/mask_rcnn_swin_t_provpt_coco.py', {'CHECKPOINT': f'@{DENSE}_coco/epoch_1.pth'},
         f'--cfg-options {FRESH}'),
    Step('python tools/test.py configs/mask_rcnn_swin_t_provpt_ms',
         {'CHECKPOINT': f'@{DENSE}_ms_crop_3x_coco/epoch_1.pth'}, f'--cfg-options {FRESH}'),
    Step('python tools/add_provpt.py mmdet::'),
    Step('python tools/train.py my_provpt.py', more=short(FRESH)),
    # Segmentation
    Step('python tools/train.py configs/recipes/(upernet|mask2former)_dinov3', more=iterations(TIMM, TWO)),
    Step('tools/dist_train.sh configs/recipes/upernet', {'8': '2'}, f'--work-dir upernet {iterations(TIMM, TWO)}'),
    Step('python tools/train.py configs/setr_pup_vit_b_provpt_ade20k.py --cfg-options',
         {'train_dataloader.batch_size=16': 'train_dataloader.batch_size=2'},
         f'{iterations(FRESH)} --work-dir one_gpu'),
    Step('python tools/train.py configs/setr_pup_vit_b_provpt_ade20k.py', more=iterations(FRESH, ONE)),
    Step('tools/dist_train.sh configs/setr', {'8': '2'}, f'--work-dir setr {iterations(FRESH, ONE)}'),
    Step('python tools/test.py configs/setr', {'CHECKPOINT': f'@{SEG}/iter_2.pth'}, f'--cfg-options {FRESH}'),
    Step('python tools/test.py CONFIG CHECKPOINT --tta', {
        'CONFIG': 'configs/setr_pup_vit_b_provpt_ade20k.py', 'CHECKPOINT': f'@{SEG}/iter_2.pth'},
        f'--cfg-options {FRESH}'),
    # Classification
    Step(r'TASK=dtd python tools/train.py configs/vtab1k/vit_b_lora.py',
         more=short('model.backbone.module.init_cfg=None', FEW)),
    Step(r'(TASK=\w+ )?python tools/train.py configs/(vtab1k|fgvc)/', more=short(FRESH, FEW)),
    Step('python tools/dataset_converters/miniature_vtab.py'),
    # With the demo's configs
    Step('python tools/train.py configs/demo/(mask_rcnn_)?swin_mini', more=short()),
    Step('mmprovpt train .* demo/', more=f'--work-dir console {short()}'),
    Step('python tools/train.py configs/demo/multi', more=iterations(count=3)),
    Step('python tools/train.py CONFIG --cfg-options model.train', {'CONFIG': MULTI},
         f'{iterations()} --work-dir one_task'),
    Step(r'(TORCH_LOGS=\S+ )?python tools/train.py CONFIG$', {'CONFIG': CLS},
         f'--work-dir compiled {short("compile.backend=aot_eager")}'),
    Step('tools/train.py CONFIG --resume', {'CONFIG': CLS}, short(epochs=2)),
    Step('tools/dist_train.sh CONFIG 2', {'CONFIG': CLS}, f'--work-dir two_of_them {short()}'),
    Step('(tools/dist_train.sh|mmprovpt dist-train) CONFIG 8', {'CONFIG': CLS, '8': '2'},
         f'--work-dir $(mktemp -d) {short()}'),
    Step('python tools/test.py CONFIG CHECKPOINT --cfg-options test_cfg.tasks', OF_MULTI),
    Step('python tools/test.py CONFIG CHECKPOINT', OF_CLS),
    Step('(python )?tools/visualize.py CONFIG', {'CONFIG': RCNN, 'DIR': 'pictures', **OF_FIRST}),
    Step(f'python tools/visualize.py {RCNN}', OF_FIRST),
    Step('python tools/analysis_tools/plot_training.py', {'WORK_DIR': FIRST}),
    Step('python tools/analysis_tools/plot_relocation.py LOG', {'LOG': f'@{FIRST}/*/relocations.jsonl'}),
    Step('python tools/analysis_tools/plot_relocation.py RUN1', {
        f'RUN{n}/relocations.jsonl': f'@{FIRST}/*/relocations.jsonl' for n in (1, 2)}),
    Step('python tools/analysis_tools/plot_attention.py', {**OF_CLS, 'IMAGE': '@data/miniature/digits/val/*/*.jpg'}),
    Step('python tools/analysis_tools/count_parameters.py configs/'),
    Step('tools/analysis_tools/count_parameters.py CONFIG', {'CONFIG': CLS}),
    Step('(python )?tools/add_provpt.py CONFIG --out', {'CONFIG': PLAIN, 'NEW': 'new.py'}),
    Step('(python )?tools/add_provpt.py CONFIG --prompts', {'CONFIG': PLAIN}, '--out vapt.py'),
    Step('(python )?tools/add_provpt.py my_config', {'my_config.py': PLAIN,
                                                     'my_provpt.py': 'mine.py'}),
    Step('python tools/export_prompts.py work_dirs/x', {'work_dirs/x/epoch_100.pth': OF_FIRST['CHECKPOINT']}),
    Step('python tools/export_prompts.py small.pth'),
    Step('python tools/export_onnx.py CONFIG CHECKPOINT model.onnx', OF_CLS, SHAPE),
    Step('python tools/export_onnx.py CONFIG birds.pth', {'CONFIG': CLS, 'birds.pth': OF_CLS['CHECKPOINT']}, SHAPE),
    Step('python tools/export_onnx.py CONFIG cars.pth', {'CONFIG': CLS, 'cars.pth': OF_CLS['CHECKPOINT']}, SHAPE),
    Step('python tools/export_onnx.py CONFIG CHECKPOINT backbone.onnx', OF_MULTI, '--shape 64 64'),
    Step('python tools/export_onnx.py CONFIG CHECKPOINT classify.npz', OF_MULTI, '--shape 64 64'),
    Step('python tools/sweep.py CONFIG... --dry-run', {'CONFIG...': CLS}, '--no-grid'),
    Step('python tools/sweep.py CONFIG... --seeds', {'CONFIG...': CLS, '3': '1'}, f'--no-grid {short()}'),
    Step('python tools/sweep.py CONFIG --asha', {'CONFIG': 'configs/miniature_vtab/linear.py', '10': '1'},
         f'--base-lrs 1 --weight-decays 0 0.01 --seeds 1 --work-dir asha {short(FRESH)}'),
    Step('python tools/table.py work_dirs/sweep'),
    Step("python tools/table.py 'PRO-VPT", {"'PRO-VPT, gate=work_dirs/gate'": "'PRO-VPT, gate=work_dirs/sweep'"}),
    # Benchmarks, as short as they can be
    Step(f'{THREADS}python benchmarks/(scoring_cost|folding|mixed_batches)', more='--rounds 1 --batch 1'),
    Step(f'{THREADS}python benchmarks/compiled', more='--rounds 1 --moves 1'),
    Step('python benchmarks/cross_stage.py', {'CONFIG': RCNN, **OF_FIRST}, '--moves 2 --batches 1'),
    Step(f'{THREADS}python benchmarks/simulated_blocks.py', more='--seeds 2 --periods 10 --task switch'),
    Step('(python|.*nproc_per_node=4) benchmarks/scaling.py', more='--rounds 1'),
    Step(f'({THREADS}python|.*nproc_per_node=2) benchmarks/closing_cost.py', more='--periods 2'),
    Step('torchrun --nproc_per_node=2 examples/sharded_backbone.py'),
    Step('python benchmarks/multi_task.py configs', {'CHECKPOINT': OF_MULTI['CHECKPOINT']}, '--rounds 1 --images 2'),
    Step('python benchmarks/multi_task.py', more='--rounds 1 --images 2'),
    Step('python benchmarks/table3/table3.py', {'0 1 2': '0'}, f'--rows vpt g_provpt {short()}'),
    Step(f'{THREADS}python benchmarks/performance/performance.py', more='--plan trial --rounds 1 --only ViT-tiny'),
    Step(f'{THREADS}python benchmarks/performance/kinds_of_work.py', more='--model ViT-tiny --rounds 1'),
    Step('python benchmarks/performance/scale.py', more='--rounds 1 --only periods'),
    Step('python benchmarks/dist_exits.py', {'40': '2'}),
    Step('python benchmarks/config_trial.py', more='mask-rcnn_swin-t'),
    Step('python benchmarks/timm_names.py --out', more='vit_tiny_patch16_224'),
    Step('python benchmarks/timm_names.py NAME', {'NAME': 'vit_tiny_patch16_224'}),
    Step('python benchmarks/study/study.py main --table'), Step('python benchmarks/study/page.py'),
    Step('python (docs/arguments|docs/figures|benchmarks/model_index).py'),
    # Targets
    Step('make (lint|docs)$'),
    Step('make demo-seg$', more=f"TRAIN_ARGS='{iterations(LOG, RELOCATE)}'"),
    Step('make demo(-cls)?$', more=f"TRAIN_ARGS='{short()}'"),
    # They write new weights for the demos
    Step('python tools/pretrain_miniature.py vit', {'2000': '2'}),
    Step('python tools/pretrain_miniature.py', more='--iters 2'),
]
NETWORK, WEIGHTS = 'a package index or a data set of the network', 'weights or images that are not in the repository'
PUBLISHED, CLUSTER = 'the tables and figures of its page are what it wrote', 'a cluster'
# Who else carries a command out; after "nobody:" what it would take.
ELSEWHERE = {
    r'pytest |\.venv/bin/python -m pytest|make test': 'make test',
    r'cd configs|for m in|.* (work_dirs/)?pets[._/]': 'make test',
    r'make (lint test docs )?(wheel|commands)-check|mmprovpt (add|train|test|visualize|export|sweep|table|plot)[\w-]*$':
        'make wheel-check',
    r'make (serve|browser)-check|python examples/serve.py|curl': 'make serve-check, make browser-check',
    r'(PIP_FIND_LINKS=DIR )?make (setup|data)|make PYTHON=|make demo-multi': 'make demo-multi',
    r'pip |mim |python -m (build|twine|zipfile)|source |git |python benchmarks/lower_bounds':
        'make wheel-check, and python benchmarks/users_way.py --from-nothing --mim; for the rest nobody: ' + NETWORK,
    r'(GPUS=.* )?tools/slurm_train.sh': 'make test, with srun of its own; nobody: ' + CLUSTER,
    r'NNODES=|python tools/sweep.py .*--(address|gpus)': 'nobody: ' + CLUSTER,
    r'python tools/sweep.py configs/': PUBLISHED, r'python tools/table.py work_dirs/miniature_vtab': PUBLISHED,
    rf'{THREADS}python benchmarks/(attention_kernels|onnx_detectors|serving|criteria|reward_noise)': PUBLISHED,
    rf'{THREADS}python benchmarks/study/': PUBLISHED,
    r'(python )?tools/(train.py CONFIG --amp)': 'make test; on a CPU it is refused',
    r'python tools/model_converters/to_mmpretrain.py': 'make test, with files made for it; nobody: ' + WEIGHTS,
    r'python tools/dataset_converters/vtab1k.py': 'make test, with a loader made for it; nobody: ' + NETWORK,
}


def all_commands() -> list[str]:
    """Each line that the pages print, once, without its comment, options in brackets and dots."""
    found = (line for page in printed.PAGES for line in printed.lines(page))
    return list(dict.fromkeys(re.sub(r'\s+#.*|\s\[.*?\]| …', '', line).strip() for line in found))


def elsewhere(command: str) -> str | None:
    """Who else carries it out; None: nobody is known."""
    return next((who for begins, who in ELSEWHERE.items() if re.match(begins, command)), None)


def to_carry_out() -> Iterator[tuple[Step, str]]:
    """Steps and their commands; a command belongs to the first step that it fits."""
    left = all_commands()
    for step in OF_COMMANDS:
        mine = [command for command in left if step.fits(command)]
        left = [command for command in left if command not in mine]
        yield from ((step, command) for command in mine)


def copy_clone(folder: Path) -> None:
    """What git knows, the environment, and data."""
    for name in subprocess.check_output(['git', '-C', ROOT, 'ls-files', '-z'], text=True).split('\0')[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    if (ROOT / '.venv').exists():  # what it lacks, make would install for the copy, and with that the copy itself
        subprocess.run(['make', '-C', ROOT, '--silent', 'setup'], check=True)
    for name in ('.venv', '.venv-docs'):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    data = folder / 'data'
    stand_ins.write_coco(data / 'coco')
    stand_ins.write_ade20k(data / 'ade/ADEChallengeData2016')
    for task in ('cifar', 'dtd'):
        stand_ins.write_vtab1k(data / 'vtab-1k', task)
    stand_ins.write_fgvc(data / 'fgvc', 'cub')


def carry_out(step: Step, command: str, folder: Path) -> str | None:
    """Run a command and print its line of the table; the end of what it said, if it failed."""
    begun, output = time.monotonic(), ''
    try:
        filled = step.filled(command, folder)
        done = subprocess.run(['bash', '-euo', 'pipefail', '-c', filled], cwd=folder, text=True, errors='replace',
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment(folder))
        failed, output = done.returncode != 0, f'$ {filled}\n{done.stdout[-3000:]}'
    except ValueError as error:
        failed, output = True, str(error)
    print(f'| `{command}` | {"FAILED" if failed else f"{time.monotonic() - begun:.0f}"} |', flush=True)
    return output if failed else None


def environment(folder: Path) -> dict[str, str]:
    """The copy's package, the scripts of this environment, no GPU, one thread, and a port that nobody has just left."""
    port = str(free_port())
    return {**os.environ, 'PYTHONPATH': str(folder), 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
            'CUDA_VISIBLE_DEVICES': '', 'MPLBACKEND': 'agg', 'OMP_NUM_THREADS': '1', 'PORT': port,
            'PET_MASTER_PORT': port}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('words', nargs='*', metavar='WORD', help='only commands with one of them')
    parser.add_argument('--list', action='store_true', help='who carries out which command; run nothing')
    parser.add_argument('--keep', type=Path, metavar='DIR', help='a folder for the copy; one that is there is used')
    args = parser.parse_args()
    todo = list(to_carry_out())
    if args.list:
        mine = {command for _, command in todo}
        for command in all_commands():
            print(f'| `{command}` | {"this script" if command in mine else elsewhere(command)} |')
        return
    with tempfile.TemporaryDirectory() as folder:
        folder = args.keep.absolute() if args.keep else Path(folder)
        if not (folder / 'data').exists():
            copy_clone(folder)
        print('| command | seconds |\n|---|---|', flush=True)
        errors = [carry_out(step, command, folder) for step, command in todo
                  if not args.words or any(word in command for word in args.words)]
    sys.exit('\n\n'.join(error for error in errors if error) or None)


if __name__ == '__main__':
    main()
