"""Install the oldest versions that are promised to work, once, and run a small program with each.

    python benchmarks/lower_bounds.py [--keep DIR] [--torch 2.1.0] [--timm 1.0.3] [--numpy 1.23.5] [--mmengine 0.8.5]

One new environment gets torch alone, then timm, then MMEngine of upstream (OneDL's begins at what requirements/ pins),
and after each the program that needs it. Prints a table. Some 3 GB are downloaded, as PyPI's torch is that for CUDA.
Another Python is tried by running it with that one; there, OneDL's MMEngine: --mmengine onedl-mmengine==0.10.12.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
# torch → its torchvision
TORCHVISION = {'2.1.0': '0.16.0', '2.2.0': '0.17.0', '2.3.0': '0.18.0', '2.4.0': '0.19.0', '2.11.0': '0.26.0'}

ALONE = """
import importlib, pkgutil, sys
import mmprovpt
for room in ('mmprovpt.relocation', 'mmprovpt.prompts', 'mmprovpt.attention', 'mmprovpt.backbones'):
    for module in pkgutil.iter_modules(importlib.import_module(room).__path__, f'{room}.'):
        if module.name.rpartition('.')[2] not in ('registered', 'simple_pyramid', 'timm_features', 'timm_pooling'):
            importlib.import_module(module.name)  # those are for configs, or for timm's models
assert mmprovpt.config('vtab1k/vit_b_provpt.py')
assert not {'timm', 'mmengine'} & set(sys.modules)
"""
TIMM = """
import runpy, timm, torch, mmprovpt
runpy.run_path('examples/plain_pytorch.py', run_name='__main__')
for name, sizes in (('vit_tiny_patch16_224', dict(patch_size=14, embed_dim=32, depth=2, num_heads=2)),
                    ('swin_tiny_patch4_window7_224', dict(embed_dim=16, depths=(1, 1), num_heads=(1, 2)))):
    for form in ('StaticPrompts', 'AdaptivePrompts', 'ShallowPrompts'):
        backbone = timm.create_model(name, num_classes=0, img_size=56, **sizes)
        prompts = mmprovpt.inject_prompts(backbone, dict(type=form, num_tokens=2))
        backbone(torch.rand(2, 3, 56, 56)).square().sum().backward()
        assert prompts.tokens.grad.abs().sum() > 0
        backbone.load_state_dict(mmprovpt.tuned_state_dict(backbone))
"""
MMENGINE = """
import json, pathlib, tempfile, timm, torch, mmprovpt
from mmengine.model import BaseModel
from mmengine.runner import Runner

class Classifier(BaseModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)  # the same frozen weights when it is resumed
        self.backbone = timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, num_classes=2, depth=2)
        mmprovpt.inject_prompts(self.backbone, dict(type='StaticPrompts', num_tokens=3))

    def init_weights(self):
        pass

    def forward(self, inputs, labels, mode='loss'):
        logits = self.backbone(torch.stack(list(inputs)))
        return dict(loss=torch.nn.functional.cross_entropy(logits, torch.as_tensor(labels)))

class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, number):
        return torch.rand(3, 32, 32), number % 2

def run(folder, epochs, **options):
    runner = Runner(
        Classifier(), folder, dict(batch_size=4, dataset=Images(), sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=dict(by_epoch=True, max_epochs=epochs), default_scope='mmengine', experiment_name=f'to_{epochs}',
        randomness=dict(seed=0), cfg=dict(name='small'),  # an empty one is no Python to MMEngine 0.8
        optim_wrapper=dict(type='mmprovpt.FiniteOptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(checkpoint=dict(type='mmprovpt.PromptCheckpointHook', interval=1),
                           seeds=dict(type='mmprovpt.IterationSeedHook')),
        custom_hooks=[dict(type='mmprovpt.PromptRelocationHook', pruner=dict(type='RandomPruner'))], **options)
    runner.train()
    return runner

folder = tempfile.mkdtemp()
run(folder, 2)
runner = run(folder, 4, resume=True)
log, = pathlib.Path(runner.log_dir).glob('relocations.jsonl')
assert [json.loads(line)['period'] for line in log.read_text().splitlines()] == [1, 2, 3, 4]
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--keep', type=Path, metavar='DIR', help='of the environment; one that is there is used')
    for name, version in dict(torch='2.1.0', timm='1.0.3', numpy='1.23.5', mmengine='0.8.5').items():
        parser.add_argument(f'--{name}', default=version)
    args = parser.parse_args()
    stages = {
        'torch alone': ([f'torch=={args.torch}'], ALONE),
        'timm': ([f'timm=={args.timm}', f'torchvision=={TORCHVISION[args.torch]}', f'numpy=={args.numpy}'], TIMM),
        'MMEngine': ([args.mmengine if '==' in args.mmengine else f'mmengine=={args.mmengine}', f'numpy=={args.numpy}',
                      'opencv-python<4.11', 'setuptools<81'], MMENGINE)}
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'}
    with tempfile.TemporaryDirectory() as folder:
        folder = args.keep or Path(folder) / 'venv'
        if not (folder / 'bin/python').exists():
            venv.create(folder, with_pip=True)
        python, failed = str(folder / 'bin/python'), 0
        print(f'Python {sys.version.split()[0]}\n| program | with | seconds | |\n|---|---|---|---|')
        for name, (pins, program) in stages.items():
            subprocess.run([python, '-m', 'pip', 'install', '--quiet', f'torch=={args.torch}', *pins], check=True)
            start = time.time()
            done = subprocess.run([python, '-W', 'ignore', '-c', program], cwd=ROOT, env=env, text=True,
                                  capture_output=True)
            failed += done.returncode != 0
            result = f'fails: {done.stderr.strip().splitlines()[-1]}' if done.returncode else 'works'
            print(f'| {name} | {", ".join(pins)} | {time.time() - start:.0f} | {result} |', flush=True)
    sys.exit(failed)


if __name__ == '__main__':
    main()
