"""Checkpoints of what was tuned, and checkpoints that survive a kill."""
import os.path as osp
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmprovpt.backbones import prompted_backbones, share_frozen, tuned_state_dict
from mmprovpt.errors import ConfigError
from mmprovpt.files import write_atomically
from mmprovpt.registry import HOOKS

from .find import require_replicas, unwrapped
from .finite import require_finite

ATOMIC = 'mmprovpt_atomic'


@HOOKS.register_module()
class PromptCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, but small and safe.

    Small: the frozen weights of prompted backbones stay out of ``state_dict`` (and ``ema_state_dict``); a fingerprint
    of them goes in, which loading checks (see :func:`mmprovpt.tuned_state_dict`). All else is there: optimizer,
    schedulers, states of hooks. So ``resume``, ``load_from``, testing and inferencers take such a file as any other.

    Safe: killed at whatever moment, a run leaves ``last_checkpoint`` naming a whole checkpoint, and the best one so
    far. Files are written under another name and renamed; old ones are removed when the new are there. This holds
    for local files; other storage is written as MMEngine does. What is not finite is not saved: training ends with an
    error, and the last checkpoint and the best one stay.

    It is a kind of CheckpointHook and no hook beside it, because it replaces how files are written, and because it
    must come after EMAHook, which swaps the two state dicts when they are saved, by keys that both must have.

    Args:
        save_only_tuned (bool): False saves full checkpoints.
        **kwargs: Of :class:`mmengine.hooks.CheckpointHook`.

    Raises:
        ConfigError: Before training, if the model has no backbone with prompts, or its parameters may be sharded.
        DivergedError: When saving, on all ranks, if trained weights, statistics of norms, averages or the optimizer's
            state are not finite.
    """

    def __init__(self, *args, save_only_tuned: bool = True, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.save_only_tuned = save_only_tuned

    def before_run(self, runner: Runner) -> None:
        """Have averaged models share the frozen weights.

        EMAHook has copied the model just now, before it is initialised, and relies on resume for all the rest.
        """
        if not self.save_only_tuned:
            return
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                share_frozen(unwrapped(runner.model), hook.ema_model.module)
                _leave_shared_alone(hook.ema_model)

    def before_train(self, runner: Runner) -> None:
        """As upstream; then choose how to write."""
        if self.save_only_tuned:
            require_replicas(runner.model, 'PromptCheckpointHook')
            try:
                prompted_backbones(unwrapped(runner.model))
            except ValueError as error:
                raise ConfigError(f'{error}: give PromptCheckpointHook save_only_tuned=False') from None
        kept = runner.message_hub.runtime_info.get('keep_ckpt_ids')
        if kept and self.max_keep_ckpts > 0 and self.filename_tmpl.format(0) == self.filename_tmpl.format(1):
            # Of more steps than are kept, upstream would now remove the only file, which all of them have.
            runner.message_hub.update_info('keep_ckpt_ids', kept[-self.max_keep_ckpts:])
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend:
            self.backend_args = dict(backend=ATOMIC)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Leave out what is frozen; no other hook changes the state dicts after this one."""
        if not self.save_only_tuned:
            return
        model = unwrapped(runner.model)
        checkpoint['state_dict'] = tuned_state_dict(model, checkpoint['state_dict'])
        if 'ema_state_dict' in checkpoint:
            checkpoint['ema_state_dict'] = tuned_state_dict(model, checkpoint['ema_state_dict'], prefix='module.')

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """As upstream, which however removes the outdated checkpoint before the new one is there."""
        self._require_finite(runner)
        outdated = self._note(runner, step)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir, name, self.file_client_args, save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler, meta=meta, by_epoch=self.by_epoch,
            backend_args=self.backend_args, **self.args)
        if not is_main_process():
            return
        write_atomically(self.last_ckpt.encode(), osp.join(runner.work_dir, 'last_checkpoint'))
        for path in outdated:
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)

    def _note(self, runner: Runner, step: int) -> list:
        """Add a step to those that are kept; returns the paths of those that no longer are."""
        if self.max_keep_ckpts <= 0 or step in list(self.keep_ckpt_ids)[-1:]:
            return []
        kept = [*self.keep_ckpt_ids, step]
        self.keep_ckpt_ids.append(step)  # it is as long as max_keep_ckpts, and forgets the first
        runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        paths = [self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)) for old in kept]
        # Without a number in filename_tmpl they are all the same.
        return [path for path in paths[:-self.max_keep_ckpts] if path not in paths[-self.max_keep_ckpts:]]

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        self._require_finite(runner)
        with _removing_last(self.file_backend) as outdated:
            super()._save_best_checkpoint(runner, metrics)
            # The new one may have the name of the former: filename_tmpl without a number, two validations in one epoch.
            written = [getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()]
            outdated[:] = [path for path in outdated if path not in written]

    def _require_finite(self, runner: Runner) -> None:
        averages = [hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook)]
        require_finite(
            unwrapped(runner.model), runner.optim_wrapper, averages,
            f'in iteration {runner.iter}, so nothing is saved, and '
            f'{self.last_ckpt or "no earlier checkpoint of this run"} is the last')


@register_backend(ATOMIC, force=True)
class AtomicBackend(LocalBackend):
    """Local files that are whole or not there."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file; see :func:`write_atomically`."""
        write_atomically(obj, filepath)


@contextmanager
def _removing_last(backend) -> Iterator[list]:
    """For the time of a ``with``, a file backend only notes what it is to remove; it does so if all goes well."""
    noted: list = []
    backend.remove = noted.append
    try:
        yield noted
    finally:
        del backend.remove
    for path in noted:
        backend.remove(path)


def _leave_shared_alone(average: nn.Module) -> None:
    """Have an average not touch what it shares with the model: x + m (x - x) makes -0.0 another zero.

    A fingerprint is over bits, so the run could not be resumed.
    """
    mean = average.avg_func

    def unless_shared(averaged: Tensor, source: Tensor, steps: int) -> None:
        if averaged.data_ptr() != source.data_ptr():
            mean(averaged, source, steps)

    average.avg_func = unless_shared
