"""Registries of scope ``mmprovpt``, children of MMEngine's root registries.

``type='mmprovpt.X'`` therefore resolves in mmpretrain, mmdet and mmseg configs alike: MMEngine imports this
module when it meets the prefix, and each registry imports its own modules when it is first asked for a name.
Nothing of mmpretrain, mmdet or mmseg is imported for it.

Raises:
    ModuleNotFoundError: MMEngine is not installed. Only configs, hooks and the command line need it.
"""
try:
    from mmengine.registry import DATASETS as ROOT_DATASETS
    from mmengine.registry import HOOKS as ROOT_HOOKS
    from mmengine.registry import LOOPS as ROOT_LOOPS
    from mmengine.registry import MODEL_WRAPPERS as ROOT_MODEL_WRAPPERS
    from mmengine.registry import MODELS as ROOT_MODELS
    from mmengine.registry import OPTIM_WRAPPERS as ROOT_OPTIM_WRAPPERS
    from mmengine.registry import Registry
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition('.')[0] != 'mmengine':
        raise  # something that MMEngine needs
    raise ModuleNotFoundError(
        'MMEngine is not installed, which configs, registries and hooks of mmprovpt need: pip install onedl-mmengine '
        '(or upstream, mmengine)', name=error.name) from error

MODELS = Registry(
    'model', parent=ROOT_MODELS, scope='mmprovpt',
    locations=['mmprovpt.backbones.registered', 'mmprovpt.backbones.timm_pooling', 'mmprovpt.backbones.simple_pyramid',
               'mmprovpt.tasks.model'])
MODEL_WRAPPERS = Registry(
    'model_wrapper', parent=ROOT_MODEL_WRAPPERS, scope='mmprovpt', locations=['mmprovpt.cli.cpu_wrapper'])
LOOPS = Registry('loop', parent=ROOT_LOOPS, scope='mmprovpt', locations=['mmprovpt.tasks.loops'])
HOOKS = Registry('hook', parent=ROOT_HOOKS, scope='mmprovpt', locations=['mmprovpt.hooks'])
OPTIM_WRAPPERS = Registry(
    'optim_wrapper', parent=ROOT_OPTIM_WRAPPERS, scope='mmprovpt', locations=['mmprovpt.hooks'])
DATASETS = Registry(
    'dataset', parent=ROOT_DATASETS, scope='mmprovpt', locations=['mmprovpt.datasets.vtab1k', 'mmprovpt.datasets.fgvc'])
