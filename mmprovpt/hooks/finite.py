"""Steps and checkpoints that are finite, or are not made."""
import inspect
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from mmengine import dist
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from torch import Tensor, nn

from mmprovpt.errors import ConfigError, DivergedError
from mmprovpt.older_torch import total_norm
from mmprovpt.registry import OPTIM_WRAPPERS

from .find import optim_wrappers

LAG = 8  # steps after which the host asks a GPU whether one was finite, which it then knows


class _Guarded:
    """What leaves steps out; in front of a class of MMEngine in a class's bases."""

    def __init__(self, *args, max_skipped: int = 10, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if all(each.is_cuda for group in self.optimizer.param_groups for each in group['params']):
            self.optimizer = fused_twin(self.optimizer)
        if type(max_skipped) is not int or max_skipped < 1:
            raise ConfigError(f'max_skipped must be an int >= 1, but is {max_skipped!r}')
        self.max_skipped = max_skipped
        self.skipped = 0
        self._in_a_row = 0
        self._unseen: deque = deque()  # of the last steps: iteration, whether it was finite, event of the device

    def backward(self, loss: Tensor, **kwargs) -> None:
        """As upstream; all gradients are NaN if the loss is not finite, a scalar."""
        seed = torch.where(loss.detach().isfinite(), 1., torch.nan).to(loss.dtype)
        super().backward(loss, gradient=seed, **kwargs)

    def step(self, **kwargs) -> None:
        """As upstream, if all gradients are finite."""
        finite = self._is_finite()
        # The first step makes the optimizer's state; left out by the kernel, it would leave memory that is not set.
        if not finite.is_cuda or not self.optimizer.state or not _skips_by_itself(self.optimizer):
            self._note(bool(finite))
            if finite:
                super().step(**kwargs)
            else:
                self._leave_out()
            return
        copy = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._note(copy, event)
        with self._left_out_by_kernel(finite.logical_not().float()):
            super().step(**kwargs)

    def state_dict(self) -> dict:
        """As upstream, once all steps so far are known, for saving waits for the device in any case."""
        while self._unseen:
            self._see(*self._unseen.popleft())
        return super().state_dict()

    def _leave_out(self) -> None:
        """What else there is to do in place of a step."""

    @contextmanager
    def _left_out_by_kernel(self, found_inf: Tensor) -> Iterator[None]:
        """Have the optimizer leave out its step if this is 1."""
        self.optimizer.grad_scale, self.optimizer.found_inf = None, found_inf
        try:
            yield
        finally:
            del self.optimizer.grad_scale, self.optimizer.found_inf

    def _is_hopeless(self) -> bool:
        """Whether steps are left out for another reason than a loss scale that is still too large."""
        return True

    def _is_finite(self) -> Tensor:
        """Whether all gradients are, one element on their device."""
        grads = [parameter.grad for group in self.optimizer.param_groups for parameter in group['params']
                 if parameter.grad is not None]
        return total_norm(grads, torch.inf).isfinite() if grads else torch.tensor(True)

    def _note(self, finite: bool | Tensor, event: torch.cuda.Event | None = None) -> None:
        self._unseen.append((self.message_hub.get_info('iter', -1) + 1, finite, event))
        while self._unseen and (self._unseen[0][2] is None or len(self._unseen) > LAG):
            self._see(*self._unseen.popleft())

    def _see(self, iteration: int, finite: bool | Tensor, event: torch.cuda.Event | None) -> None:
        if event is not None:
            event.synchronize()  # of a step long done
        if finite:
            self._in_a_row = 0
        else:
            self._in_a_row += 1
            self.skipped += 1
            print_log(f'The step of iteration {iteration} is left out: its loss or gradient is not finite ('
                      f'{self._in_a_row} in a row, {self.skipped} in all)', logger='current', level=30)
        if self.skipped:
            self.message_hub.update_scalar('train/skipped_steps', self.skipped)
        if self._in_a_row >= self.max_skipped and self._is_hopeless():
            raise DivergedError(
                f'the loss or gradient of {self._in_a_row} steps in a row was not finite, the last that of iteration '
                f'{iteration}. Resume from the last checkpoint with a lower learning rate or clip_grad, or find the '
                'data that do this')


@OPTIM_WRAPPERS.register_module()
class FiniteOptimWrapper(_Guarded, OptimWrapper):
    """MMEngine's OptimWrapper, but a step whose loss or gradient is not finite is left out, on all ranks alike.

    Parameters and the optimizer's state stay as they were. A loss that is not finite makes every gradient NaN, which
    the ranks exchange in any case, so nothing more is sent. With accumulation, the whole step is left out.

    On a GPU nobody waits for the device: the optimizer becomes ``fused=True``, if it is one of PyTorch's that can be,
    and its kernel leaves the step out; the host learns of it 8 steps later. For any other, or with ``foreach`` or
    ``fused`` set, each step waits. (``clip_grad`` waits, too: MMEngine logs the norm.)

    The log names each step that was left out, and from the first one on has their number as ``skipped_steps``.

    Statistics of batch norms are written in the forward pass, before anybody knows; see
    :class:`~mmprovpt.hooks.PromptCheckpointHook` for what becomes of those.

    Args:
        max_skipped (int): Training stops when so many steps in a row were left out, >= 1.
        args, kwargs: Of :class:`mmengine.optim.OptimWrapper`.

    Attributes:
        skipped (int): Steps left out so far in this process; on a GPU, those of the last 8 steps are added later, or
            when a checkpoint is saved.

    Raises:
        ConfigError: ``max_skipped`` is no int >= 1.
        DivergedError: In training, on all ranks: ``max_skipped`` steps in a row were left out.
    """


@OPTIM_WRAPPERS.register_module()
class FiniteAmpOptimWrapper(_Guarded, AmpOptimWrapper):
    """The same of MMEngine's AmpOptimWrapper, for mixed precision.

    Its loss scaler halves a dynamic scale after each step that is left out, since the scale may be the reason: training
    stops after ``max_skipped`` in a row only once the scale has come down to 1, or if it is fixed.

    Args:
        max_skipped (int): As of :class:`FiniteOptimWrapper`.
        args, kwargs: Of :class:`mmengine.optim.AmpOptimWrapper`.
    """

    def _leave_out(self) -> None:
        if self.loss_scaler.is_enabled():  # it is not for a CPU
            self.loss_scaler.unscale_(self.optimizer)  # finds what is not finite, and update takes that into account
            self.loss_scaler.update(self._scale_update_param)

    def _left_out_by_kernel(self, found_inf: Tensor) -> AbstractContextManager:
        return nullcontext() if self.loss_scaler.is_enabled() else super()._left_out_by_kernel(found_inf)

    def _is_hopeless(self) -> bool:
        return self._scale_update_param is not None or self.loss_scaler.get_scale() <= 1


def fused_twin(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same optimizer with ``fused=True``, before its first step; itself if it cannot be, or says how it steps."""
    groups, defaults = optimizer.param_groups, optimizer.defaults
    is_open = all(group.get('fused', False) is None and group.get('foreach') is None for group in groups)
    if not is_open or optimizer.state or type(optimizer).__module__.partition('.')[0] != 'torch':
        return optimizer
    known = inspect.signature(type(optimizer)).parameters
    options = {name: value for name, value in defaults.items() if name in known}
    try:
        return type(optimizer)([dict(group, fused=True) for group in groups], **dict(options, fused=True))
    except (RuntimeError, TypeError, ValueError):  # this device, type of numbers or release of PyTorch cannot
        return optimizer


def _skips_by_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its kernels leave a step out by ``found_inf``, as PyTorch's loss scaler has them do."""
    return getattr(optimizer, '_step_supports_amp_scaling', False) and \
        all(group.get('fused') for group in optimizer.param_groups)


def require_finite(model: nn.Module, optim_wrapper: OptimWrapper | OptimWrapperDict, averages: list[nn.Module],
                   place: str) -> None:
    """Check what a checkpoint would hold of training; every rank must call it. It waits for the device once.

    Args:
        model: Trained parameters and statistics of norms are looked at.
        optim_wrapper: And the states of the optimizers.
        averages: And averages of the model, as the model.
        place: For the message: when, and what is there still.

    Raises:
        DivergedError: On all ranks, if anything on any is not finite.
    """
    found = dict(_of_training(model, optim_wrapper, averages))
    if not found:
        return
    device = next(iter(found.values())).device
    bad = torch.stack([value.isfinite().all().to(device) for value in found.values()]).logical_not().to(torch.int32)
    dist.all_reduce(bad, 'max')
    names = [name for name, is_bad in zip(found, bad.tolist()) if is_bad]
    if names:
        more = f' and {len(names) - 5} more' if len(names) > 5 else ''
        raise DivergedError(f'not finite {place}: {", ".join(names[:5])}{more}. Resume from there with a lower '
                            'learning rate or clip_grad; mmprovpt.FiniteOptimWrapper leaves out such steps')


def _of_training(model, optim_wrapper, averages) -> Iterator[tuple[str, Tensor]]:
    for number, module in enumerate([model, *averages]):
        prefix = 'average: ' if number else ''
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        for name, value in module.named_parameters():
            if name.removeprefix('module.' if number else '') in trained:
                yield prefix + name, value.detach()
        for name, value in module.named_buffers():
            if name.rpartition('.')[2] in ('running_mean', 'running_var'):
                yield prefix + name, value
    for wrapper in optim_wrappers(optim_wrapper):
        for number, state in enumerate(wrapper.optimizer.state.values()):
            for key, value in state.items():
                if torch.is_tensor(value) and value.is_floating_point():
                    yield f'optimizer: {key} of parameter {number}', value
