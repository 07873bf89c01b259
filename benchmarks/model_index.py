"""Write model-index.yml and configs/**/metafile.yml, which MIM reads: each config, what it trains, and known results.

    python benchmarks/model_index.py            # some two minutes

Parameters are counted on the models that the configs build. Results are those of docs/evidence/results.md,
study.md and configs/demo/README.md, which name commands and seeds, and the papers', whose metrics say "paper" in their
names.
Configs of another task (environment variable TASK) have the parameters of the one that is named.
"""
import json
import logging
import re
from pathlib import Path
from statistics import mean

import yaml
from mmengine.logging import MMLogger
from tqdm import tqdm

from mmprovpt.cli.config_parts import find_hooks
from mmprovpt.cli.options import read_scoped_config
from mmprovpt.cli.parameters import count_config
from mmprovpt.shipped import configs

ROOT = Path(__file__).parents[1]
PAPER = json.loads((ROOT / 'tools/paper_results.json').read_text(encoding='utf-8'))['benchmarks']
# Notes of the papers that CITATION.cff lists begin with the method's name.
PAPERS = {each['notes'].partition('.')[0]: dict(Title=each['title'], URL=each.get('url'))
          for each in yaml.safe_load((ROOT / 'CITATION.cff').read_text(encoding='utf-8'))['references']}
# Part of a config's name → method, its paper, the page about it; the first that fits.
METHODS = {
    'provapt': ('PRO-VAPT', 'VAPT', 'docs/method/vapt.md'),
    'vapt': ('VAPT', 'VAPT', 'docs/method/vapt.md'),
    'provpt': ('PRO-VPT', 'PRO-VPT', 'docs/method/index.md'),
    'vpt_shallow': ('VPT-Shallow', 'VPT', 'docs/method/shallow.md'),
    'vpt': ('VPT-Deep', 'VPT', 'docs/method/deep_prompts.md'),
    'lora': ('LoRA', None, 'docs/reference/methods.md'),
    'linear': ('Linear', None, 'docs/reference/methods.md'),
    'frozen': ('Frozen', None, 'docs/reference/methods.md'),
    'full': ('Full', None, 'docs/reference/methods.md'),
    '': ('PRO-VPT', 'PRO-VPT', 'docs/method/index.md'),  # configs/recipes
}
TASKS = dict(mmdet='Object Detection', mmseg='Semantic Segmentation', mmpretrain='Image Classification')
DATA = dict(coco='COCO', ade20k='ADE20K', camvid='CamVid, 240 px', digits='digits, embedded', cub='CUB-200-2011',
            folder='an image folder of yours', vtab1k='VTAB-1k', fgvc='FGVC', miniature_vtab='miniature VTAB')
# Where the file comes from that a config expects in checkpoints/ (docs/how-to/weights.md).
WEIGHTS = dict(
    vit_b16_in21k='ViT-B_16.npz of gs://vit_models/imagenet21k/', vit_l16_in21k='ViT-L_16.npz of the same',
    vit_b16_mae='mae_pretrain_vit_base.pth', swin_b_in21k='swin_base_patch4_window7_224_22k.pth',
    vit_s14_dinov2='vit_small_patch14_dinov2 of timm', vit_s14_dinov2_42='vit_small_patch14_dinov2 of timm')
DENSE = {'VPT-Deep': (33.8, 32.5, 39.1), 'PRO-VPT': (34.6, 33.4, 40.0)}  # PRO-VPT, Tab. vii
# Mean of three seeds for each task of the miniature VTAB; one seed for each demo.
MINIATURE = dict(lora='category 82.7, count 99.9', vpt_shallow='category 74.4, count 75.3',
                 vapt='category 75.2, count 73.0', provapt='category 72.6, count 78.1')
DEMOS = {'mask_rcnn': {'Frozen': {'box AP': 48.7, 'mask AP': 52.8}, 'VPT-Deep': {'box AP': 46.8, 'mask AP': 50.5},
                       'PRO-VPT': {'box AP': 51.9, 'mask AP': 56.3}},
         'setr_pup': {'Frozen': {'mIoU': 40.1}, 'VPT-Deep': {'mIoU': 39.1}, 'PRO-VPT': {'mIoU': 38.9}},
         'swin_mini': {'Frozen': {'Top 1 Accuracy': 66.3}, 'VPT-Deep': {'Top 1 Accuracy': 71.6},
                       'PRO-VPT': {'Top 1 Accuracy': 70.0}},
         'multi': {}}


def method_of(name: str) -> str:
    """The name of a config's method."""
    stem = f'_{Path(name).stem}_'
    return next(method for part, (method, *_) in METHODS.items() if not part or f'_{part}_' in stem)


def of_study(name: str) -> dict[str, float]:
    """By task, the last iterate (mean over seeds) of the study's arm that a config expects; of others nothing."""
    config = (ROOT / 'configs' / name).read_text(encoding='utf-8')
    expected = re.search(r'# Expected: .*\("(.+?)"(?: with (\w+))?, docs/evidence/study', config)
    if not expected:
        return {}
    arm, head = expected.groups()
    experiments = ('heads', ) if head else ('main', 'same_setting', 'camvid')
    files = (ROOT / f'benchmarks/study/results/{experiment}.jsonl' for experiment in experiments)
    values: dict[str, list[float]] = {}
    for row in (json.loads(line) for file in files for line in file.read_text(encoding='utf-8').splitlines()):
        task, _, its_head = row['task'].partition('/')
        if row['arm'] == arm and its_head == (head or ''):
            values.setdefault(task, []).append(row['last_miou' if task == 'camvid' else 'last_accuracy'])
    return {task: round(mean(found), 1) for task, found in values.items() if task != 'cifar10_1k'}


def metrics_of(name: str, method: str) -> dict[str, float]:
    """Known results of a config."""
    folder, stem = Path(name).parent.name, Path(name).stem
    if folder == 'demo':
        return next(of for family, of in DEMOS.items() if stem.startswith(family)).get(method, {})
    if folder == 'camvid':
        known = of_study(name)
        return {'mIoU': known['camvid']} if known else {}
    if folder == 'miniature_vtab':
        known = dict(pair.split() for pair in MINIATURE.get(stem, '').split(', ') if pair) or of_study(name)
        return {f'Top 1 Accuracy, {task}': float(value) for task, value in known.items()}
    paper = PAPER.get(DATA.get(folder), {'rows': {}})['rows'].get(method)
    if paper and stem.startswith('vit_b'):
        task = stem.partition('vpt_')[2]
        values = {task: paper['scores'][task]} if task in paper['scores'] else paper['averages']
        return {f'Top 1 Accuracy (paper), {key}': value for key, value in values.items()}
    box, mask, miou = DENSE.get(method, (None, ) * 3)
    if box and stem.startswith('mask_rcnn_swin_t') and '3x' not in stem and not folder:
        return {'box AP (paper)': box, 'mask AP (paper)': mask}
    return {'mIoU (paper)': miou} if miou and stem.startswith('setr_pup_vit_b') and not folder else {}


def entry(name: str) -> dict:
    """What MIM calls a model."""
    cfg = read_scoped_config(ROOT / 'configs' / name)
    folder, stem, method = Path(name).parent.name, Path(name).stem, method_of(name)
    data = next(text for part, text in DATA.items() if part in (folder, *stem.split('_')))
    if folder == 'custom':
        cfg.model.head.num_classes = 10  # which a config of yours says
    length = next((key, cfg.train_cfg[key]) for key in ('max_epochs', 'max_iters') if key in cfg.train_cfg)
    metadata = {'Trained Parameters': count(cfg), 'Training Data': data,
                dict(max_epochs='Epochs', max_iters='Iterations')[length[0]]: length[1]}
    if cfg.get('task'):
        metadata['Task'] = cfg.task
    if find_hooks(cfg):
        metadata['Relocation'] = 'every {interval} '.format(**{'interval': 1, **find_hooks(cfg)[0]}) + (
            'epochs' if find_hooks(cfg)[0].get('by_epoch', True) else 'iterations')
    source = weights_of(cfg.model)
    if source:
        metadata['Frozen Weights' if method != 'Full' else 'Initial Weights'] = source
    metrics = metrics_of(name, method)
    return {'Name': name.removesuffix('.py'), 'In Collection': method, 'Config': f'configs/{name}',
            'Metadata': {key: value for key, value in metadata.items() if value is not None},
            'Results': metrics and [{'Task': TASKS[cfg.default_scope], 'Dataset': data, 'Metrics': metrics}]}


def count(cfg) -> int | None:
    """Of a model with a language model that is not here, docs/how-to/recipes.md has it."""
    try:
        return count_config(cfg)
    except OSError:
        return None


def weights_of(node) -> str | None:
    """Where the first weights come from that a model's config names."""
    if isinstance(node, dict):
        if node.get('model_name') and node.get('pretrained'):
            return f'{node["model_name"]} of timm'
        path = node.get('checkpoint') or node.get('checkpoint_path')
        if isinstance(path, str):
            return WEIGHTS.get(Path(path).stem) or (path if ':' in path else f'configs/demo/{Path(path).name}')
        return next(filter(None, map(weights_of, node.values())), None)
    return None


def write(path: Path, content: dict) -> None:
    """Write a file that says where it comes from."""
    text = yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True)
    path.write_text(f'# Written by benchmarks/model_index.py.\n{text}', encoding='utf-8')


def main():
    MMLogger.get_instance('mmengine', log_level=logging.ERROR)
    families = {}
    for name in configs():
        if not name.startswith(('_base_', 'table3')):  # those of table3 change another config
            families.setdefault(Path(name).parent.as_posix(), []).append(name)
    collections = {method: {'Name': method, **({'Paper': dict(PAPERS[paper])} if paper else {}), 'README': page}
                   for method, paper, page in METHODS.values()}
    for family, names in tqdm(families.items(), unit='family'):
        models = [{key: value for key, value in entry(name).items() if value} for name in names]
        write(ROOT / 'configs' / family / 'metafile.yml',
              {**({'Collections': list(collections.values())} if family == '.' else {}), 'Models': models})
    write(ROOT / 'model-index.yml', {'Import': [
        (Path('configs') / family / 'metafile.yml').as_posix() for family in families]})


if __name__ == '__main__':
    main()
