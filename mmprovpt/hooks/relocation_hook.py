"""Prompt relocation inside an MMEngine Runner."""
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from mmprovpt.errors import ConfigError
from mmprovpt.kinds import check_types
from mmprovpt.registry import HOOKS
from mmprovpt.relocation import RelocationSession
from mmprovpt.relocation.session import check_session_options

from .find import check_schedule, find_optim_wrapper, find_relocating_prompts, loss_factor
from .iteration_seed_hook import IterationSeedHook
from .randomness import fixed_randomness
from .records import Records
from .score_pass import score_pass
from .verification import verify

CHECKPOINT_KEY = 'prompt_relocation'
REMOVED = dict(
    draw_interval='the picture is drawn after training; until then, `mmprovpt plot-relocation` draws '
    'relocations.jsonl',
    feature_stability='benchmarks/feature_stability.py of the repository measures it on checkpoints')


@HOOKS.register_module()
class PromptRelocationHook(Hook):
    """Prune the idlest prompt and give it to another block, once per period (PRO-VPT § 3.3).

    What is done is in :class:`~mmprovpt.relocation.RelocationSession`; this says when. The relocation that follows a
    period is carried out when the *next* one starts. So checkpoints, validation and averaged weights see tuned prompts
    only, and training does not end on a prompt that was just moved. Averages of EMAHook move along.

    Rank 0 logs to ``relocations.jsonl`` in the log directory (see :class:`~mmprovpt.relocation.RelocationLog`), to the
    log, and as scalars ``train/relocation/*`` to every visualisation backend (TensorBoard gets the picture, too); after
    training it draws ``prompt_distribution.png`` beside the file. Checkpoints carry all that decides; the log of a
    resumed run begins with that of the run before. No global random generator moves. So that training itself draws
    again what it would have drawn, add :class:`~mmprovpt.hooks.IterationSeedHook`; without it, a warning says so.

    Args:
        interval (int): Length of a period, >= 1.
        by_epoch (bool): Count periods in epochs, else in iterations.
        pruner, allocator: See ``RelocationSession``; their seeds default to the runner's.
        score_pass (bool): Whether idleness and loss come from a pass of their own when a period ends, as in the
            authors' code, see :func:`~mmprovpt.hooks.score_pass.score_pass`; else from training's own backward passes.
        score_clip (float, optional): The norm that this pass clips gradients to.
        **options: Of ``RelocationSession``: ``arrival``, ``relocate_per_period``, ``loss_tail``, …

    Attributes:
        session (RelocationSession, optional): From ``before_run`` on.

    Raises:
        ConfigError: An argument is invalid or was removed (when built); or (before the first iteration) the model has
            not exactly one set of prompts that an optimizer trains, or none can ever move, or there is a second hook
            of this kind, or periods are counted in epochs in a loop that has none, or epochs of several processes are
            not equally long, or parameters may be sharded (FSDP, DeepSpeed, ColossalAI).
    """

    # Before CheckpointHook, which saves what this hook has measured.
    priority = 'NORMAL'

    def __init__(self,
                 interval: int = 1,
                 by_epoch: bool = True,
                 pruner: dict = dict(type='IdlenessPruner', criterion='gate_fisher'),  # noqa: B006
                 allocator: dict = dict(type='PPOAllocator'),  # noqa: B006
                 score_pass: bool = False,
                 score_clip: float | None = None,
                 **options) -> None:
        for name in set(options) & set(REMOVED):
            raise ConfigError(f'PromptRelocationHook has no {name} any more: {REMOVED[name]}')
        if type(interval) is not int or interval < 1:
            raise ConfigError(f'interval must be an int >= 1, but is {interval!r}')
        check_types(PromptRelocationHook, dict(by_epoch=by_epoch, score_pass=score_pass, score_clip=score_clip))
        # Built once for nothing, of any number of blocks: what is wrong shows before models and data are built.
        self._options = check_session_options(pruner, allocator, **options)
        self.interval = interval
        self.by_epoch = by_epoch
        self._score_pass, self._score_clip = score_pass, score_clip
        self._boundary = 0  # epoch or iteration at which the running period began
        self.session: RelocationSession | None = None

    # When

    def before_run(self, runner: Runner) -> None:
        """Find the prompts and begin a session, before a checkpoint is loaded."""
        training = runner._train_loop is not None and not isinstance(runner._train_loop, dict)
        if not training or self.session is not None:
            return
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ConfigError('PromptRelocationHook(by_epoch=True) needs a loop of epochs, but '
                              f'{type(runner.train_loop).__name__} counts iterations: set '
                              'by_epoch=False and interval to a number of iterations')
        if sum(isinstance(hook, PromptRelocationHook) for hook in runner.hooks) > 1:
            raise ConfigError('custom_hooks has more than one PromptRelocationHook, and each would move the prompts: '
                              'leave one')
        prompts = find_relocating_prompts(runner.model)
        self._optim_wrapper = find_optim_wrapper(runner.optim_wrapper, prompts.tokens)
        self.session = RelocationSession(prompts, self._optim_wrapper.optimizer, seed=runner.seed, **self._options)
        self.records = Records(runner)
        if not any(isinstance(hook, IterationSeedHook) for hook in runner.hooks):
            runner.logger.warning('A resumed run will not be bit for bit the uninterrupted one, nor draw what a run '
                                  "without relocation draws: set default_hooks = dict(seed=dict(type='mmprovpt."
                                  "IterationSeedHook')), in both")

    def before_train(self, runner: Runner) -> None:
        """Check the schedule, and find the averages, which their hooks have made by now."""
        check_schedule(runner, self.interval, self.by_epoch)
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                self.session.add_average(hook.ema_model)

    def before_train_epoch(self, runner: Runner) -> None:
        """Relocate where a period of epochs starts."""
        if self.by_epoch and self._period_is_over(runner):
            self._relocate(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Relocate where a period of iterations starts; then open the iteration."""
        if not self.by_epoch and self._period_is_over(runner):
            self._relocate(runner)
        if not self._score_pass:
            self.session.begin_iteration(loss_factor(self._optim_wrapper, self.session.prompts.tokens.device))

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        """Close the iteration with its loss."""
        if outputs is None or 'loss' not in outputs:
            raise KeyError("PromptRelocationHook needs the total loss, but train_step returned "
                           f"{None if outputs is None else list(outputs)} without 'loss'")
        if self._score_pass:
            return
        self.session.end_iteration(outputs['loss'], *self._place_in_period(runner, batch_idx))
        if self._checkpoint_is_due(runner):
            self.session.gather()

    def before_val(self, runner: Runner) -> None:
        """Have rank 0 know all before it saves the best checkpoint, which may be within a period."""
        if self.session is not None:
            self.session.gather()

    def after_train_epoch(self, runner: Runner) -> None:
        """Have rank 0 know all of the epoch before it saves a checkpoint."""
        self.session.gather()

    def after_train(self, runner: Runner) -> None:
        """Give the last relocation its reward, if its period is complete; draw the log."""
        self.session.gather()  # for a checkpoint within a period
        period = self.session.finish() if self._period_is_over(runner) else None
        if period is not None:
            self.records.write(runner, period)
        self.records.draw(runner)

    def _period_is_over(self, runner: Runner) -> bool:
        """Whether a whole period lies between the last boundary and now.

        An epoch that a resumed run starts over closes no period a second time.
        """
        progress = runner.epoch if self.by_epoch else runner.iter
        return progress % self.interval == 0 and progress != self._boundary

    def _place_in_period(self, runner: Runner, batch_idx: int) -> tuple[int, int]:
        """Iterations of the period before this one, and all of them, on this rank."""
        if not self.by_epoch:
            return runner.iter % self.interval, self.interval
        epoch = len(runner.train_dataloader)
        return runner.epoch % self.interval * epoch + batch_idx, self.interval * epoch

    def _checkpoint_is_due(self, runner: Runner) -> bool:
        """Whether this iteration ends in a checkpoint, which every rank knows alike."""
        return any(
            hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
            or (hook.save_last and self.is_last_train_iter(runner)) for hook in runner.hooks
            if isinstance(hook, CheckpointHook) and not hook.by_epoch)

    def _relocate(self, runner: Runner) -> None:
        """Close the period, the same on every rank."""
        self._boundary = runner.epoch if self.by_epoch else runner.iter
        if self._score_pass:
            score_pass(runner, self._optim_wrapper, self.session, self._score_clip, runner.seed, self._boundary)
        verified = verify(runner, self._optim_wrapper, self.session, runner.seed + self._boundary)
        with fixed_randomness(runner.seed, self._boundary):  # a row may be drawn anew
            period = self.session.close_period(verified)
        if period is not None:
            self.records.write(runner, period)

    # Checkpoints

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add all that decides, as plain tensors and Python types."""
        if self.session is not None:
            checkpoint[CHECKPOINT_KEY] = dict(boundary=self._boundary, log=self.records.name(runner),
                                              options=self._plain_options(), session=self.session.state_dict())

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Continue where the checkpoint stopped, if the run is resumed."""
        self.before_run(runner)  # FlexibleRunner loads before it says that a run begins
        if self.session is None or not runner._resume:
            return
        if CHECKPOINT_KEY not in checkpoint:
            runner.logger.warning('The checkpoint is of a run without PromptRelocationHook: '
                                  'relocation starts anew')
            return
        state = checkpoint[CHECKPOINT_KEY]
        self.session.load_state_dict(state.get('session', state))
        mine = self._plain_options()
        for name, theirs in state.get('options', mine).items():
            if theirs != mine.get(name, theirs):
                runner.logger.warning(f'The checkpoint is of a run whose PromptRelocationHook has {name}={theirs}. '
                                      f'From here on it is {mine[name]}, so this is not that run any more: set the '
                                      'former back, unless you mean it')
        self._boundary = state['boundary']
        self.records.resume(runner, state, self.session.period)

    def _plain_options(self) -> dict[str, str]:
        options = dict(self._options, interval=self.interval, by_epoch=self.by_epoch, score_pass=self._score_pass)
        return {name: str(dict(sorted(value.items())) if isinstance(value, dict) else value)
                for name, value in options.items()}
