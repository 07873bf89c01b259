"""Put prompts into a built backbone: find its blocks, give each its rows, freeze the rest."""
import ast
import math

import torch
from torch import nn

from mmprovpt.attention import PromptedBlock, running
from mmprovpt.attention.block import TokenBlock, WindowTokenBlock
from mmprovpt.attention.choosing import ChoosingAttention, ChoosingTokenBlock, ChoosingWindowBlock
from mmprovpt.attention.support import SUPPORTED, Block, find_blocks, full_name
from mmprovpt.attention.window import PromptedWindowAttention
from mmprovpt.errors import ConfigError
from mmprovpt.log import log
from mmprovpt.prompts import FORMS, PromptSet, PromptSets

from .adopt import adopt
from .before import take_before
from .flops import count_attention
from .prompted import PromptedBackbone, PromptedModuleDict, PromptedTIMMModel, TIMMEntrance


def inject_prompts(backbone: nn.Module, prompts: dict) -> PromptSet:
    """Make a built backbone a prompted one, in place.

    Its parameters are frozen and stay in eval mode through ``.train()``; its forward, arguments and state-dict
    keys stay, to which come those of ``backbone.prompts``. With 0 prompts its outputs are bit for bit as before.

    Args:
        backbone: Any ViT or Swin that is supported (:data:`mmprovpt.attention.SUPPORTED`), on any device.
        prompts: Config, e.g. ``dict(type='StaticPrompts', num_tokens=10, dropout=0.1)``. Their rows are float32.

    Returns:
        The prompts, which are ``backbone.prompts`` from now on.

    Raises:
        ConfigError: If the backbone is not supported, or has prompts already, or ``prompts`` has keys or values that
            do not fit; a kind of ValueError.
    """
    if any(isinstance(module, PromptSet) for module in backbone.modules()):
        raise ConfigError(f'{type(backbone).__name__} has prompts already')
    blocks = find_blocks(backbone)
    built = build_prompts(backbone, blocks, prompts)
    become_prompted(backbone)
    own(backbone, blocks, built)
    return built


def become_prompted(backbone: nn.Module) -> None:
    """Put what fits a backbone in front of its class."""
    adopt(backbone, PromptedTIMMModel if hasattr(type(backbone), 'forward_features')
          else PromptedModuleDict if isinstance(backbone, nn.ModuleDict) else PromptedBackbone)


def own(backbone: PromptedBackbone, blocks: list[Block], prompts: PromptSet | PromptSets) -> None:
    """Connect prompts to the blocks of a backbone that is of a prompted class already, and freeze the rest."""
    before = take_before(backbone, blocks)
    backbone.requires_grad_(False)
    count_attention()
    connect(backbone, blocks, prompts)
    backbone.train(backbone.training)
    backbone._before = before
    frozen = sum(parameter.numel() for name, parameter in backbone.named_parameters() if name in before.requires_grad)
    log(f'{type(backbone).__name__}: {sum(len(each.tokens) for each in prompts.sets)} prompts in {prompts.num_blocks} '
        f'blocks, {sum(each.num_active for each in prompts.sets):,} trainable parameters beside {frozen:,} frozen ones')


def connect(backbone: PromptedBackbone, blocks: list[Block], prompts: PromptSet | PromptSets) -> None:
    """Have the blocks of a backbone, which are upstream's, read prompts."""
    # Without any, nothing reads them, and everything computes as upstream does.
    if isinstance(prompts, PromptSets) or len(prompts.tokens):
        for number, block in enumerate(blocks):
            _connect(block, running.Place(prompts, number))
        _take_over_checkpointing(backbone)
    backbone.prompts = prompts
    for inner in {id(block.backbone): block.backbone for block in blocks}.values():
        if inner is not backbone and hasattr(type(inner), 'forward_features'):
            inner.entrance_to = (prompts, )
            adopt(inner, TIMMEntrance)


def build_prompts(backbone: nn.Module, blocks: list[Block], prompts: dict) -> PromptSet:
    """The prompts of a config, for the blocks of a backbone and on its device.

    Raises:
        ConfigError: The config has keys or values that do not fit.
    """
    form, arguments = FORMS.check(prompts, runtime=('widths', 'mergings', 'patch_fan_in'))
    if 'num_tokens' not in arguments:
        raise ConfigError('prompts: num_tokens is missing: the number of prompts per block, an int or a list of '
                          f'{len(blocks)} ints')
    convolution = find_patch_embedding(blocks[0].backbone)
    if convolution is None:
        raise ConfigError(f'{full_name(type(blocks[0].backbone))} has no patch embedding with a convolution '
                          '(patch_embed.proj or patch_embed.projection), from which the initialisation of prompts '
                          f'follows{", and the map of patches that they see" if form.needs_grid else ""}')
    built = form(**arguments, widths=[block.width for block in blocks], mergings=find_mergings(backbone),
                 patch_fan_in=convolution.in_channels * math.prod(convolution.kernel_size))  # 3 · patch² for RGB
    built.config = _plain(dict(arguments, type=form.__name__))
    if built.needs_grid and running.note_grid not in convolution._forward_hooks.values():
        convolution.register_forward_hook(running.note_grid)
    device = next((parameter.device for parameter in backbone.parameters()), torch.device('cpu'))
    return built.to(device)


def _plain(config: dict) -> dict | None:
    """A copy in plain Python types; None if there are others, which are not to be read from checkpoints."""
    try:
        return ast.literal_eval(repr(config))
    except ValueError:
        return None


def find_patch_embedding(backbone: nn.Module) -> nn.Conv2d | None:
    """The convolution whose output is the map of patches; a hybrid's stem comes before it."""
    embedding = getattr(backbone, 'patch_embed', None)
    if embedding is None and isinstance(backbone, nn.ModuleDict) and 'patch_embed' in backbone:
        embedding = backbone['patch_embed']
    for name in ('proj', 'projection'):  # timm's and OpenMMLab's
        if isinstance(getattr(embedding, name, None), nn.Conv2d):
            return getattr(embedding, name)
    return None


def find_mergings(backbone: nn.Module) -> list[nn.Module]:
    """The patch mergings of a Swin, in order: a linear map of four neighbours' channels."""
    return [module for module in backbone.modules() if type(module).__name__ == 'PatchMerging'
            and isinstance(getattr(module, 'reduction', None), nn.Linear)]


def _connect(block: Block, place: running.Place) -> None:
    """Have a block hand its prompts to its attention, or keep what it makes of them, as its form wants it."""
    reads = SUPPORTED[full_name(type(block.attention))].reads
    windows = issubclass(reads, PromptedWindowAttention)
    several = isinstance(place.prompts, PromptSets)
    keeps = not several and place.prompts.keeps_outputs
    if windows or not keeps or reads.has_positions:
        block.attention.place = place
        adopt(block.attention, reads)
    was_checkpointed = vars(block.module).pop('with_cp', False)
    block.module.place = place
    block.module.norm_first = block.norm_first
    if several:
        adopt(block.attention, ChoosingAttention)
        adopt(block.module, ChoosingWindowBlock if windows else ChoosingTokenBlock)
    else:
        adopt(block.module, (WindowTokenBlock if windows else TokenBlock) if keeps else PromptedBlock)
    block.module.checkpointed = was_checkpointed


def _take_over_checkpointing(backbone: PromptedBackbone) -> None:
    """Where a timm model was told to checkpoint its blocks, we do it."""
    found = [module for module in backbone.modules() if getattr(module, 'grad_checkpointing', False) is True]
    for module in found:
        module.grad_checkpointing = False
    if found:
        backbone.set_grad_checkpointing()
