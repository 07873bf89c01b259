"""Random numbers of training that follow from where it stands."""
from collections.abc import Iterator

from mmengine import dist
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import Sampler

from mmprovpt.registry import HOOKS
from mmprovpt.tasks import loaders_by_task

from .find import optim_wrappers
from .randomness import seed_everything, seed_loading

CHECKPOINT_KEY = 'iteration_seed'
EPOCH, ITERATION = 1, 2  # each draws its own numbers


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seed each iteration, and each image that is loaded for it, by the place in training.

    A resumed run then draws what the uninterrupted one drew, and two runs of one seed that differ in relocation alone
    see the same images, equally augmented, and the same dropout. Seeded are the global generators of Python, NumPy and
    torch:

    - before each epoch and each iteration, by the runner's seed, the rank and the number of the epoch or iteration;
    - before each image, wherever it is loaded, by the seed, the rank, the epoch and the number of the image in it. So
      it matters neither how many worker processes there are, nor whether they persist from one epoch to the next.

    A transform that keeps a generator of its own is not reached. Checkpoints carry the sampler's seed, so that a run
    without ``randomness.seed`` can be resumed, too; and one that is written in validation (``save_best``) gets the
    number of the next iteration, which MMEngine gives as one too many.

    What cannot be resumed bit for bit is warned of when the first run starts: checkpoints by iterations in a loop of
    epochs, checkpoints between two accumulated steps, no checkpoint but the best, ``fast_forward_on_resume=True``.

    Raises:
        ConfigError: Before training, if images of the training data have no numbers (an IterableDataset), or their
            batches do not come from a sampler.
    """

    # Before all hooks that draw in an iteration.
    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._samplers: list[Sampler] = []  # of a MultiTaskModel, one for each task
        self._resumed: dict | None = None
        self._is_validating = False

    def before_train(self, runner: Runner) -> None:
        """Number the images, by the seeds of the run that is resumed."""
        self._samplers = [seed_loading(loader) for loader in loaders_by_task(runner.train_dataloader).values()]
        for sampler in self._samplers:
            if self._resumed and self._resumed['sampler_seed'] is not None:
                sampler.seed = self._resumed['sampler_seed']
        self._number_from_0(runner)
        if isinstance(runner.train_loop, IterBasedTrainLoop):
            _start_loading_anew(runner.train_loop, self._samplers)
        for reason in _unrepeatable(runner):
            runner.logger.warning(f'A resumed run will not be bit for bit the uninterrupted one: {reason}')

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed what draws before the first iteration, and number the epoch's images."""
        if not isinstance(runner.train_loop, IterBasedTrainLoop):  # there, some may be loaded already
            self._number_from_0(runner)
        seed_everything(runner.seed, dist.get_rank(), runner.epoch, EPOCH)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Seed an iteration, whatever was drawn before it."""
        seed_everything(runner.seed, dist.get_rank(), runner.iter, ITERATION)

    def _number_from_0(self, runner: Runner) -> None:
        for sampler in self._samplers:
            sampler.begin_epoch(runner.seed, dist.get_rank(), runner.epoch)

    def before_val(self, runner: Runner) -> None:
        """Note that checkpoints are now written between two iterations."""
        self._is_validating = True

    def after_val(self, runner: Runner) -> None:
        """Note that they no longer are."""
        self._is_validating = False

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the sampler's seed, and say where to go on."""
        if not self._samplers:
            return
        checkpoint[CHECKPOINT_KEY] = dict(sampler_seed=getattr(self._samplers[0], 'seed', None))
        if self._is_validating:
            checkpoint['meta'].update(epoch=runner.epoch, iter=runner.iter)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Note the seed of the run that is resumed."""
        if not runner._resume:
            return
        if 'optimizer' not in checkpoint:
            runner.logger.warning('The checkpoint has no state of the optimizer, as none that save_best wrote: the '
                                  'resumed run will not be the uninterrupted one. Resume from the last checkpoint')
        self._resumed = checkpoint.get(CHECKPOINT_KEY)
        if self._resumed is None:
            runner.logger.warning('The checkpoint is of a run without IterationSeedHook: the resumed run will not draw '
                                  'what that one would have drawn')


def _start_loading_anew(loop: IterBasedTrainLoop, samplers: list[Sampler]) -> None:
    """Some releases of MMEngine start the workers of a loop of iterations when it is built, before images have numbers.

    Such workers have drawn from the sampler already.
    """
    if getattr(loop.dataloader_iterator, '_iterator', None) is not None:
        loop.dataloader._iterator = None  # what persistent workers would keep
        for sampler in samplers:
            if hasattr(sampler, '_indices_of_rank'):
                sampler.indices = sampler._indices_of_rank()
        loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)


def _unrepeatable(runner: Runner) -> Iterator[str]:
    """What of a run's config keeps a resumed run from being the uninterrupted one, and what to set."""
    loop, in_epochs = runner.train_loop, isinstance(runner.train_loop, EpochBasedTrainLoop)
    epoch = len(runner.train_dataloader) if in_epochs else 1
    distances = set()  # iterations from one checkpoint to the next
    for hook in runner.hooks:
        if not isinstance(hook, CheckpointHook):
            continue
        if in_epochs and not hook.by_epoch and hook.interval > 0:
            yield ('checkpoints are written by iterations, but training counts epochs, and an interrupted one '
                   'starts over. Set default_hooks.checkpoint.by_epoch=True, or train by iterations')
        elif hook.interval > 0 and hook.by_epoch == in_epochs:
            distances.add(hook.interval * epoch)
        if hook.save_best is not None and hook.interval <= 0:
            yield ('only the best checkpoint is written, and MMEngine leaves the optimizer out of it. Set '
                   'default_hooks.checkpoint.interval')
    for steps in sorted({getattr(each, '_accumulative_counts', 1) for each in optim_wrappers(runner.optim_wrapper)}):
        for distance in sorted(distances):
            if distance % steps:
                yield (f'a checkpoint is written each {distance} iterations, but {steps} are accumulated for a step, '
                       'and gradients in between are not saved. Set optim_wrapper.accumulative_counts to a divisor of '
                       f'{distance}, or the interval of checkpoints so that its iterations are a multiple of {steps}')
    if getattr(loop, 'fast_forward_on_resume', False):
        yield 'it would see the first images again. Set train_cfg.fast_forward_on_resume=False'
