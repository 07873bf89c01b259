"""Models and Runners of configs for GPUs, on CPU too."""
import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, RUNNERS, init_default_scope
from mmengine.runner import Runner, load_checkpoint

from mmprovpt.errors import ConfigError
from mmprovpt.files import remove_empty, removing_empty
from mmprovpt.hooks import ClassCheckHook, PromptCheckHook

from .config_parts import scope_of, type_name


def build_model(cfg: Config) -> torch.nn.Module:
    """The model of a config, for one process, without weights; sets the default scope."""
    init_default_scope(scope_of(cfg) or 'mmengine')
    if cfg.get('data_preprocessor'):  # MMPretrain and MMSegmentation keep it outside of the model
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return revert_sync_batchnorm(MODELS.build(cfg.model))


def load_weights(model: torch.nn.Module, checkpoint: str) -> None:
    """Load a checkpoint, full or small, into a model on the CPU.

    Raises:
        ConfigError: The model has other keys or shapes.
    """
    try:
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    except RuntimeError as error:
        raise ConfigError(f'{checkpoint} does not fit the config: {error}') from error


def build_runner(cfg: Config) -> Runner:
    """Build the Runner, on CPU too; where that fails, take away what it has begun, and nothing of anybody else's."""
    if cfg.get('env_cfg') is None:
        cfg.env_cfg = dict(dist_cfg=dict(backend='nccl'))  # Runner's default; FlexibleRunner fails without
    if get_device() == 'cpu':
        adapt_to_cpu(cfg)
    # None says that heads and data differ on purpose. MMEngine allows that for its own hooks alone.
    checks_classes = (cfg.get('default_hooks') or {}).pop('classes', {})
    if checks_classes:
        cfg.default_hooks.classes = checks_classes
    with _nothing_left(cfg):
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    if not any(isinstance(hook, PromptCheckHook) for hook in runner.hooks):
        runner.register_hook(PromptCheckHook())
    if checks_classes == {} and not hasattr(runner.model, 'language_model'):
        runner.register_hook(ClassCheckHook(heads_only=True))
    return runner


class _Begun(Hook):
    """Whether an iteration has."""

    def __init__(self) -> None:
        self.is_so = False

    def _before_iter(self, runner: Runner, batch_idx: int, data_batch=None, mode: str = 'train') -> None:
        self.is_so = True


def run(cfg: Config, what: str, latest: str | None = None) -> None:
    """Build a Runner and train or test. What is refused before the first iteration leaves nothing behind.

    Args:
        cfg: Of the Runner.
        what: 'train' or 'test'.
        latest: The checkpoint from which a config that resumes without ``load_from`` goes on. It is not in the config,
            which is kept in the work_dir, and by which a later run goes on from what is the latest then.

    Raises:
        ConfigError: The config, or weights that it names, do not fit.
    """
    begun = _Begun()
    with _nothing_left(cfg, lambda error: isinstance(error, ConfigError) and not begun.is_so):
        runner = build_runner(cfg)
        runner.register_hook(begun)
        runner._load_from = latest or runner._load_from
        getattr(runner, what)()


@contextmanager
def _nothing_left(cfg: Config, refused: Callable[[BaseException], bool] = lambda error: True) -> Iterator[None]:
    """Where the block raises what counts as refused, take away what its Runner has written, and empty folders."""
    copy = Path(cfg.work_dir, Path(cfg.filename).name) if getattr(cfg, 'filename', None) else None
    logs, copied = _log_files(), copy is not None and copy.exists()
    with removing_empty(cfg.work_dir):
        try:
            yield
        except BaseException as error:
            new = _log_files() - logs if refused(error) else set()
            for path in new:
                _remove_log(path)
                if copy is not None and not copied:
                    copy.unlink(missing_ok=True)
            raise


def _log_files() -> set[Path]:
    """Those that the current logger writes; only rank 0 has one."""
    return {Path(handler.baseFilename) for handler in MMLogger.get_current_instance().handlers
           if hasattr(handler, 'baseFilename')}


def _remove_log(path: Path) -> None:
    """Remove the log of a Runner that has not trained, what its visualizer keeps of the config, and their folders."""
    pictures = path.parent / 'vis_data'
    for file in (path, pictures / 'config.py'):
        file.unlink(missing_ok=True)
    remove_empty([folder for folder in (pictures, path.parent) if folder.exists()])


def adapt_to_cpu(cfg: Config) -> None:
    """Change, in place, what stops a config in several processes on CPU: NCCL and MMEngine's wrapper.

    Raises:
        ConfigError: For launchers other than torchrun.
    """
    if cfg.get('launcher', 'none') == 'none':
        return
    if cfg.launcher != 'pytorch':
        raise ConfigError(f'--launcher {cfg.launcher} needs GPUs, and none is available; '
                          'several processes on CPU: mmprovpt dist-train CONFIG NUMBER')
    # MMEngine would select a CUDA device first; it leaves alone what is started already.
    if not torch.distributed.is_initialized():
        cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
        torch.distributed.init_process_group(
            'gloo', timeout=timedelta(seconds=cfg.env_cfg.dist_cfg.get('timeout', 1800)))
        # Its threads, still running when the interpreter ends, now and then abort the process.
        atexit.register(torch.distributed.destroy_process_group)
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False))
    cfg.model_wrapper_cfg = _for_cpu(wrapper)
    # FlexibleRunner does not read that, but has the strategy wrap the model.
    if 'runner_type' in cfg:
        strategy = cfg.get('strategy') or dict(type='DDPStrategy')
        if type_name(strategy) == 'DDPStrategy':
            wrapper = strategy.get('model_wrapper') or dict(type='MMDistributedDataParallel', broadcast_buffers=False)
            cfg.strategy = dict(strategy, model_wrapper=_for_cpu(wrapper))


def _for_cpu(wrapper: dict) -> dict:
    """MMEngine's wrapper as ours; any other without the devices that it would be given."""
    if type_name(wrapper) == 'MMDistributedDataParallel':
        return dict(wrapper, type='mmprovpt.CPUDistributedDataParallel')
    return dict(wrapper, device_ids=None)
