"""The parts of a config that matter here: prompts, backbones and hooks of relocation."""

HOOK = 'PromptRelocationHook'
BACKBONES = ('backbone', 'image_encoder')  # keys of a model; the second is MMSegmentation's for CLIP's


def type_name(node: dict) -> str:
    """The ``type`` of a dict in a config, without scopes: ``'ViT'`` of ``'mmpretrain.ViT'`` or of the class itself."""
    type_ = node.get('type')
    return getattr(type_, '__name__', str(type_)).split('.')[-1]


def scope_of(cfg: dict) -> str | None:
    """The library of a config: its default scope or, where it has none, the library of its model's class.

    MMEngine's pure Python configs, and dumps of them, have ``default_scope = None`` and name classes in full.
    """
    if cfg.get('default_scope'):
        return cfg['default_scope']
    type_ = (cfg.get('model') or {}).get('type')
    library = getattr(type_, '__module__', str(type_)).partition('.')[0]
    return library if library in ('mmdet', 'mmpretrain', 'mmseg') else None


def find_hooks(cfg: dict) -> list[dict]:
    """The relocation hooks among a config's custom hooks."""
    return [hook for hook in cfg.get('custom_hooks') or [] if type_name(hook) == HOOK]


def find_prompts_config(node) -> dict | None:
    """The first ``prompts=dict(type=...)`` in a model's config."""
    return next((found['prompts'] for found in _dicts(node).values()
                 if isinstance(found.get('prompts'), dict) and 'type' in found['prompts']), None)


def has_lora(model: dict) -> bool:
    """Whether anything in a model's config is wrapped in mmpretrain's LoRAModel."""
    return any(type_name(node) == 'LoRAModel' for node in _dicts(model).values())


def find_backbones(model: dict) -> dict[str, dict]:
    """The backbones in a model's config, by their path with dots, such as ``'detector.backbone'``; outer ones first."""
    found = {path: node for path, node in _dicts(model).items() if path.split('.')[-1] in BACKBONES and 'type' in node}
    return dict(sorted(found.items(), key=lambda item: item[0].count('.')))


def _dicts(node, path: str = '') -> dict[str, dict]:
    """All dicts in a node, itself included, by their path, in depth-first order."""
    found = {path: node} if isinstance(node, dict) else {}
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in inner:
        found.update(_dicts(value, f'{path}.{key}'.lstrip('.')))
    return found
