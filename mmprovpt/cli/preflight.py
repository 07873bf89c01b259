"""What is known to fail before anything is built: files missing or truncated, a head with another number of classes."""
import json
import os
import os.path as osp
import re
from functools import partial

from mmprovpt.datasets.fgvc_tasks import find_fgvc_task
from mmprovpt.datasets.vtab1k_tasks import find_num_classes
from mmprovpt.errors import ConfigError
from mmprovpt.shipped import shipped

from .config_parts import has_lora, type_name
from .weight_files import weights_fault

# These fetch what is missing.
_DOWNLOADING = {'CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST'}
# Of a larger JSON file only the first and last bytes are checked: parsing takes seconds.
PARSE_LIMIT = 64 << 20
# Data sets of this package, which know how many classes a task has → their default data_root.
_TASK_DATASETS = dict(VTAB1k='data/vtab-1k', FGVC='data/fgvc')


def check_files(cfg, phases=('train', 'val')) -> None:
    """Check that the files that a config names are there and not truncated, and that the head fits the task.

    Args:
        cfg (mmengine.Config): The complete config, after command-line overrides.
        phases: Whose dataloader and evaluator to check, of 'train', 'val', 'test'. Pre-trained
            weights count for 'train' only, since nothing else initialises the model, and with LoRA always.

    Raises:
        ConfigError: Lists everything that is wrong: the config key, what it says, where that was
            looked for, and what to do; in one line, if it is one thing.
    """
    problems, places = {}, {}  # path → lines: a file that is named twice is reported once
    for key, given, path, check in _named_files(cfg, phases):
        reason = check(path)
        if reason:
            problems.setdefault(path, []).append(f'{key} = {given!r}: {reason}')
            places[path] = osp.abspath(path)
            beside = _beside_config(cfg, path)
            if beside and getattr(check, 'func', check) is weights_fault and not osp.exists(path):
                places[path] += f' and {beside}'
    lines, mistakes = [], list(_task_mistakes(cfg, phases))
    if len(problems) == 1 and not mistakes and not any(found[1:] for found in problems.values()):
        (path, found), = problems.items()
        raise ConfigError(f'{found[0]}; looked for: {places[path]}; what to do: {_advice(path, found)}')
    if problems:
        lines.append('the config names files that cannot be used:')
    for path, found in problems.items():
        lines += [f'  {line}' for line in found]
        lines += [f'    looked for: {places[path]}', f'    what to do: {_advice(path, found)}']
    if mistakes:
        lines += ['the config does not fit its task:'] + [f'  {line}' for line in mistakes]
    if lines:
        raise ConfigError('\n'.join(lines))


def find_weights_beside_config(cfg) -> None:
    """Have relative paths of weights that are not there lead to the folder of the config, in place, if they are there.

    Args:
        cfg (mmengine.Config): That was read from a file; of what it inherits, too, paths are relative to its folder.
    """
    named = [(key, given) for key, given, *_ in _weight_files(cfg.get('model'), 'model')]
    for key, given in named + [('load_from', cfg.get('load_from'))] * _is_local(cfg.get('load_from')):
        beside = _beside_config(cfg, given)
        if beside and osp.isfile(beside) and not osp.exists(given):
            cfg.merge_from_dict({key: beside})


def _beside_config(cfg, path):
    """The absolute path that a relative one means from the config's folder; None if it is no other than from here."""
    folder = osp.dirname(osp.abspath(getattr(cfg, 'filename', None) or 'here'))
    return osp.join(folder, path) if not osp.isabs(path) and folder != os.getcwd() else None


def _named_files(cfg, phases):
    """Yield (config key, its value, the path meant, the check for it)."""
    for phase in phases:
        for key, dataset in _datasets(cfg, phase):
            yield from _dataset_files(dataset, key)
        for key, given in of_tasks(cfg.get(f'{phase}_evaluator') or [], f'{phase}_evaluator', 'type'):
            for evaluator in given if isinstance(given, (list, tuple)) else [given]:
                if _is_local(evaluator.get('ann_file')):
                    path = evaluator['ann_file']
                    yield f'{key}.ann_file', path, path, _check_annotation
    if _is_local(cfg.get('load_from')):
        yield 'load_from', cfg.load_from, cfg.load_from, weights_fault
    if 'train' in phases or has_lora(cfg.get('model') or {}):  # LoRAModel loads when it constructs
        yield from _weight_files(cfg.get('model'), 'model')


def _datasets(cfg, phase):
    """Yield (config key, data set) for the data sets of a phase, those in wrappers before the wrapper."""
    def walk(dataset, key):
        if isinstance(dataset, dict):
            yield from walk(dataset.get('dataset'), f'{key}.dataset')
            for i, inner in enumerate(dataset.get('datasets') or []):
                yield from walk(inner, f'{key}.datasets.{i}')
            yield key, dataset

    for key, loader in of_tasks(cfg.get(f'{phase}_dataloader') or {}, f'{phase}_dataloader', 'dataset'):
        yield from walk(loader.get('dataset'), f'{key}.dataset')


def of_tasks(node, key, has):
    """(key, config) of a loader or evaluator, or of those of each task: a config in a dict without the key ``has``."""
    if isinstance(node, dict) and has not in node:
        return [(f'{key}.{task}', each) for task, each in node.items() if isinstance(each, (dict, list, tuple))]
    return [(key, node)]


def _dataset_files(dataset, key):
    if type_name(dataset) in _TASK_DATASETS:
        yield from _task_files(dataset, key)
        return
    if not _is_on_disk(dataset):
        return
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or {}
    given = {f'data_prefix.{k}': v for k, v in prefix.items()} if isinstance(prefix, dict) \
        else {'data_prefix': prefix}
    given = {name: value for name, value in given.items() if value}
    ann_file = dataset.get('ann_file')
    if root and not given and not ann_file:
        given = {'data_root': root}
        root = ''
    for name, value in given.items():
        if _is_local(value):
            yield f'{key}.{name}', value, osp.join(root, value), _check_directory
    if _is_local(ann_file):
        check = _check_annotation
        if 'Coco' in str(dataset.get('type')):
            # Lists of test images come without annotations.
            needed = ['images', 'categories'] + ['annotations'] * (not dataset.get('test_mode'))
            check = partial(_check_annotation, sections=needed)
        yield f'{key}.ann_file', ann_file, osp.join(root, ann_file), check


def _task_files(dataset, key):
    name = type_name(dataset)
    task, split = dataset.get('task', ''), dataset.get('split')
    try:
        folder = osp.join(dataset.get('data_root', _TASK_DATASETS[name]), _find_task(dataset)[0])
    except ConfigError:
        return  # an unknown task: see _task_mistakes
    folder = osp.expanduser(folder)
    yield f'{key}.task', task, folder, _check_directory
    if name == 'VTAB1k' and split and osp.isdir(folder):
        yield f'{key}.split', split, osp.join(folder, f'{split}.txt'), _check_annotation


def _task_mistakes(cfg, phases):
    """Yield a line for each task that is not known, and each number of classes in the model that is not the task's."""
    for phase in phases:
        for key, dataset in _datasets(cfg, phase):
            if type_name(dataset) not in _TASK_DATASETS:
                continue
            try:
                num_classes = _find_task(dataset)[1]
            except ConfigError as error:
                yield f'{key}: {error}'
                continue
            model = cfg.get('model') or {}
            for place, node in (('model.head', model.get('head')),
                                ('model.data_preprocessor', model.get('data_preprocessor')),
                                ('data_preprocessor', cfg.get('data_preprocessor'))):
                given = node.get('num_classes') if isinstance(node, dict) else None
                if given not in (None, num_classes):
                    yield (f'{place}.num_classes = {given!r}: {key}.task = {dataset.get("task")!r} has {num_classes} '
                           f'classes; set it with --cfg-options {place}.num_classes={num_classes}')


def _find_task(dataset):
    """Folder below data_root and number of classes."""
    task = dataset.get('task', '')
    if type_name(dataset) == 'FGVC':
        entry = find_fgvc_task(task)
        return entry.folder, entry.num_classes
    return task, find_num_classes(task, dataset.get('num_classes'))


def _weight_files(node, key):
    if isinstance(node, dict):
        for name, value in node.items():
            init_cfg = name == 'checkpoint' and type_name(node) in ('Pretrained', 'PretrainedInit')
            of_timm = name == 'checkpoint_path' or name == 'file' and key.endswith('.pretrained_cfg_overlay')
            if (init_cfg or of_timm or name == 'pretrained') and _is_local(value):
                yield f'{key}.{name}', value, value, partial(weights_fault, published=of_timm)
            else:
                yield from _weight_files(value, f'{key}.{name}')
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _weight_files(value, f'{key}.{i}')


def _is_local(path) -> bool:
    # Not 'https://…', 'torchvision://…', 's3:…'. (One letter is a drive of Windows.)
    return isinstance(path, str) and path != '' and not re.match(r'[A-Za-z][\w.+-]+:', path)


def _is_on_disk(dataset) -> bool:
    backend = (dataset.get('backend_args') or {}).get('backend', 'local')
    if backend not in ('local', 'disk') or type_name(dataset) in _DOWNLOADING:
        return False
    return _is_local(dataset.get('data_root') or '.')


def _check_directory(path):
    if not osp.exists(path):
        return 'no such directory'


def _check_annotation(path, sections=()):
    if not osp.exists(path):
        return 'no such file'
    if osp.isfile(path) and osp.getsize(path) == 0:
        return 'the file is empty'
    if path.endswith('.json'):
        return _check_json(path, sections)


def _check_json(path, sections):
    if osp.getsize(path) > PARSE_LIMIT:
        with open(path, 'rb') as f:
            head = f.read(64).lstrip()[:1]
            f.seek(-64, 2)
            tail = f.read().rstrip()[-1:]
        return None if head + tail in (b'{}', b'[]') else 'truncated or corrupt JSON'
    try:
        with open(path, 'rb') as f:
            content = json.load(f)
    except ValueError as error:  # of JSON or of its encoding
        return f'corrupt JSON ({error})'
    missing = [name for name in sections if not isinstance(content, dict) or name not in content]
    if missing:
        return f'not in COCO format, {" and ".join(missing)} missing'


def _advice(path, found):
    if 'data/miniature-vtab' in path.replace('\\', '/'):
        return 'run `mmprovpt miniature-vtab --out data/miniature-vtab`'
    if re.match(r'\S+\.(task|split) = ', found[0]):
        return (f'get or write the data as {shipped("docs/how-to/datasets.md")} says, or override data_root with '
                '--cfg-options')
    if 'data/miniature' in path.replace('\\', '/'):
        return 'run `mmprovpt miniature-coco`'
    if path.startswith('checkpoints/'):
        return f'get it as {shipped("docs/how-to/weights.md")} says, or name another with --cfg-options KEY=PATH'
    if path.endswith(('.pth', '.pt', '.bin', '.safetensors', '.pkl', '.npz')):
        return 'put the checkpoint there, or name another with --cfg-options KEY=PATH'
    if 'data/coco' in path.replace('\\', '/'):
        return f'put COCO 2017 there ({shipped("docs/how-to/dense.md")}), or override the key with --cfg-options'
    if 'data/ade' in path.replace('\\', '/'):
        return f'put ADE20k there ({shipped("docs/how-to/dense.md")}), or override data_root with --cfg-options'
    return 'put the data set there, or override the key (or data_root) with --cfg-options'
