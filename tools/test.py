#!/usr/bin/env python
"""Evaluate a checkpoint with a config of MMDetection, MMSegmentation or MMPretrain."""
import argparse
import os.path as osp

from mmengine.config import ConfigDict

from mmprovpt.cli.config_parts import scope_of, type_name
from mmprovpt.cli.options import add_common_options, load_config
from mmprovpt.cli.preflight import check_files
from mmprovpt.cli.runner import run
from mmprovpt.cli.user_errors import user_errors
from mmprovpt.errors import ConfigError
from mmprovpt.files import refuse_overwriting


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='PKL', help='dump the predictions to this pickle file')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='save painted images there')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds between two images of --show')
    parser.add_argument(
        '--tta', action='store_true', help='augment test images, as tta_model and tta_pipeline say')
    add_common_options(parser)
    return parser.parse_args()


def dump_predictions(cfg, path):
    """Add a metric that writes all predictions to ``path``; of several tasks, each to ``NAME.<task>.pkl``."""
    if not path.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out {path}: the name must end with .pkl or .pickle')

    def with_dump(evaluator, scope, path):
        # MMDetection's own encodes masks.
        kind = 'mmdet.DumpDetResults' if scope == 'mmdet' else 'DumpResults'
        metrics = evaluator if isinstance(evaluator, list) else [evaluator]
        return [*metrics, dict(type=kind, out_file_path=path)]

    if type_name(cfg.model) == 'MultiTaskModel':
        start, end = osp.splitext(path)
        cfg.test_evaluator = {task: with_dump(each, cfg.test_dataloader[task].get('_scope_'), f'{start}.{task}{end}')
                              for task, each in cfg.test_evaluator.items()}
    else:
        cfg.test_evaluator = with_dump(cfg.test_evaluator, scope_of(cfg), path)


def visualize(cfg, show, show_dir, wait_time):
    """Switch on the visualization hook; each codebase has its own names for that."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ConfigError('--show and --show-dir need default_hooks.visualization in the config')
    scope = scope_of(cfg)
    hook['enable' if scope == 'mmpretrain' else 'draw'] = True
    hook.update(show=show, wait_time=wait_time)
    if show_dir and scope == 'mmseg':
        cfg.visualizer['save_dir'] = show_dir
    elif show_dir:
        hook['out_dir' if scope == 'mmpretrain' else 'test_out_dir'] = show_dir


def augment_tests(cfg):
    missing = [key for key in ('tta_model', 'tta_pipeline') if cfg.get(key) is None]
    if missing:
        raise ConfigError(f'--tta needs {" and ".join(missing)} in the config')
    if 'Det' in type_name(cfg.tta_model) and (cfg.model.get('roi_head') or {}).get('mask_head'):
        raise ConfigError('--tta: MMDetection merges boxes only, and this model predicts masks. Leave them out: '
                          '--cfg-options model.roi_head.mask_head=None test_evaluator.metric=bbox')
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline


@user_errors()
def main():
    args = parse_args()
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    cfg.resume = False
    if args.out:
        refuse_overwriting(args.out, args.config, args.checkpoint)
        dump_predictions(cfg, args.out)
    if args.show or args.show_dir:
        visualize(cfg, args.show, args.show_dir, args.wait_time)
    if args.tta:
        augment_tests(cfg)
    check_files(cfg, ('test',))
    run(cfg, 'test')


if __name__ == '__main__':
    main()
