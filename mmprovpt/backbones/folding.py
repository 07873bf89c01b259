"""What depends on prompts alone, computed once for many forwards (docs/how-to/deployment.md)."""
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmprovpt.attention import Given, PromptedAttention, PromptedBlock, running
from mmprovpt.attention.block import TokenBlock, first_norm
from mmprovpt.errors import ConfigError
from mmprovpt.older_torch import is_compiling, mark_unbacked
from mmprovpt.prompts import PromptSet

from .checkpoints import prompted_backbones


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """For the time of a ``with``, forwards in this thread read prompts' keys and values that are computed once; nests.

    For inference: the values are those without it. Other threads compute as before, and after the ``with`` so does this
    one, for nothing in the model changes. Prompts that follow from the input (VAPT's but for static blocks,
    VPT-Shallow's behind the first block), and batches whose samples read different sets, are computed as always.

    Args:
        model: In eval mode, on its device and in its precision; holds prompted backbones, or is one. Under autocast,
            enter that first.

    Raises:
        ConfigError: Nothing in the model has prompts, or it is in training mode. And of a forward within: prompts,
            their owners, or the weights that project them have changed since; prompts would have to get a gradient;
            others are hidden than at the beginning; it computes in another precision.
    """
    try:
        backbones = prompted_backbones(model).values()
    except ValueError as error:
        raise ConfigError(f'folded(): {error}') from error
    with ExitStack() as notes:
        for backbone in backbones:
            for prompts in backbone.prompts.sets:
                if len(prompts.tokens):
                    notes.enter_context(running.folding(prompts, Fold(backbone, prompts)))
        yield


class Fold:
    """Keys and values of one set of prompts, and what they follow from.

    Args:
        backbone: Reads the prompts.
        prompts: With at least one row.
    """

    def __init__(self, backbone: nn.Module, prompts: PromptSet) -> None:
        self.prompts = prompts
        self._hidden = running.hidden(prompts)
        self._refuse_training(wants_grad=False)
        owners = prompts.owners()
        self._projected: list[running.Projected | None] = [None] * len(owners)
        followed: list[nn.Module] = [prompts]
        for block in [module for module in backbone.modules() if isinstance(module, PromptedBlock)]:
            number = block.place.number
            attention = next((module for module in block.modules() if isinstance(module, PromptedAttention)), None)
            tokens = isinstance(block, TokenBlock) and prompts.keeps_outputs
            if attention is not None and not tokens and not prompts.depends_on_input(number):
                if hasattr(block, 'unshard'):  # torch.distributed.fsdp.FSDPModule, which not all versions have
                    raise ConfigError(f'the weights of block {number} are sharded (fully_shard), and whole in its '
                                      'forward alone: leave folded(model) out')
                self._projected[number] = _project(block, attention, owners[number], prompts)
                followed += [block, *first_norm(block).modules(), *attention.modules()]
        self._followed = _contents(followed)
        self._versions = [_version(value) for _, _, value in self._followed]

    @torch._dynamo.disable
    def of_forward(self) -> list[running.Projected | None]:
        """Per block what its attention makes of the prompts, for a forward that begins now; None: to be computed."""
        if not is_compiling():  # an export replaces parameters by others while it traces
            self._refuse_training(wants_grad=self.prompts.wants_grad and torch.is_grad_enabled())
            if running.hidden(self.prompts) != self._hidden:
                raise ConfigError('other prompts are hidden now (prompts.without) than when folded(model) was entered: '
                                  'enter it within')
            if any(values.get(name) is not value or _version(value) != version for (values, name, value), version
                   in zip(self._followed, self._versions)):
                raise ConfigError(
                    'prompts, their owners, or weights that project them have changed since folded(model) was entered '
                    '(trained, relocated, loaded, cast or moved): leave it, and enter it again')
        return self._projected

    def _refuse_training(self, wants_grad: bool) -> None:
        if self.prompts.training or wants_grad:
            raise ConfigError('folded(model) is for inference, but prompts are in training mode or would have to get a '
                              'gradient: call model.eval(), and enter torch.no_grad()')


@torch.no_grad()
def _project(block: PromptedBlock, attention: PromptedAttention, owned: Tensor,
             prompts: PromptSet) -> running.Projected:
    """What the attention of a block makes of its prompts, which are the same for any input."""
    any_input, norm = prompts.tokens.new_zeros(1, 1, 1), first_norm(block)
    rows = prompts.read(block.place.number, any_input, Given(owned, None, None)).to(norm.weight.dtype)  # type: ignore
    projected = attention.project_prompts(running.Handed(block.normed(rows), wants_outputs=prompts.keeps_outputs))
    q, k, v = (None if each is None else each[0].transpose(0, 1).clone(memory_format=torch.contiguous_format)
               for each in projected)
    assert k is not None and v is not None
    for each in (k, v) if q is None else (q, k, v):
        mark_unbacked(each, 0)
    return q, k, v


def _contents(modules: list[nn.Module]) -> list[tuple[dict, str, Any]]:
    """All that modules hold: where, by which name, what. Identity of the places is that of the modules."""
    return [(values, name, value) for module in modules
            for values in (module._parameters, module._buffers, module._modules)
            for name, value in values.items()]


def _version(value: Any) -> tuple | None:
    """Of a tensor: changes with its values, precision and device. Not with what is written by ``.data``."""
    if not isinstance(value, Tensor):
        return None
    return 0 if value.is_inference() else value._version, value.dtype, value.device
