"""Prompt relocation inside an MMEngine Runner."""
import logging
import math
import os.path as osp
from functools import partial
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from mmengine import dist
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import Tensor

from mmprovpt.registry import HOOKS
from mmprovpt.relocation import (
    ALLOCATORS,
    CRITERIA,
    PRUNERS,
    Move,
    PeriodLoss,
    RelocationHistory,
    Relocator,
    build,
    check_config,
    true_idleness,
)
from mmprovpt.visualization import plot_relocation, run_of

from .find import find_optim_wrapper, find_pool
from .randomness import seed_everything
from .stability import FeatureStability
from .verification import HeldBatches

CHECKPOINT_KEY = 'prompt_relocation'
VIRTUAL_BATCHES = 2  # of each process, forward and backward, per pruned prompt


@HOOKS.register_module()
class PromptRelocationHook(Hook):
    """Prune the idlest prompt and give it to another block, once per period (001 § 3.3).

    The relocation that follows a period is carried out when the *next* one starts. So checkpoints,
    validation and averaged weights see tuned prompts only, and training does not end on a prompt
    that was just moved.

    Rank 0 decides and tells the others. Its choices go to ``relocations.jsonl`` (see
    :class:`~mmprovpt.relocation.RelocationHistory`) in the log directory, to the log, and as
    scalars ``train/relocation/*`` to every visualisation backend. ``prompt_distribution.png`` beside
    it shows distribution, idleness, reward and the policy's entropy over the periods. Checkpoints
    carry all that decides; a resumed run continues as if never interrupted. For that, the global random
    generators are seeded anew before each iteration, by the runner's seed, the rank and the iteration.

    Args:
        interval (int): Length of a period, >= 1.
        by_epoch (bool): Count periods in epochs, else in iterations.
        pruner (dict): Type and arguments of a class in ``mmprovpt.relocation.PRUNERS``.
        allocator (dict): Type and arguments of a class in ``mmprovpt.relocation.ALLOCATORS``; its
            ``seed``, as that of the pruner, defaults to the runner's.
        relocate_per_period (int): The most prompts that move in one period, >= 1; see
            :class:`~mmprovpt.relocation.Relocator` for their reward. 1 is the paper.
        loss_tail (float): In (0, 1]: the last part of a period's iterations whose mean loss enters
            the reward; see :class:`~mmprovpt.relocation.PeriodLoss`. 1 is the paper.
        reward_baseline (str, optional): ``'mean'`` or ``'trend'`` takes the fall of the loss that
            is due anyway off the reward before the allocator gets it; see
            :class:`~mmprovpt.relocation.RewardBaseline`. None is the paper.
        draw_interval (int): Draw the figure every so many periods, >= 1, and after training; 0:
            only then. A drawing takes about two seconds.
        feature_stability (int): Images, at most one batch, on which rank 0 measures how much pruning, allocation
            and tuning change each block's features (001 Fig. 6): three forwards per period. 0: none.

    Raises:
        ValueError: ``interval``, ``draw_interval``, ``pruner`` or ``allocator`` is invalid (when built); or (before
            the first iteration) the model has not exactly one pool of prompts that an optimizer
            trains, or the pruner can never choose one of them, or periods are counted in epochs in a
            loop that has none, or epochs of several processes are not equally long, or parameters may be sharded
            (FSDP, DeepSpeed, ColossalAI).
    """

    # Before CheckpointHook, which saves what this hook has measured.
    priority = 'NORMAL'

    def __init__(self,
                 interval: int = 1,
                 by_epoch: bool = True,
                 pruner: dict = dict(type='IdlenessPruner', criterion='gate_fisher'),  # noqa: B006
                 allocator: dict = dict(type='PPOAllocator'),  # noqa: B006
                 relocate_per_period: int = 1,
                 loss_tail: float = 1.0,
                 reward_baseline: Optional[str] = None,
                 draw_interval: int = 10,
                 feature_stability: int = 0) -> None:
        if not isinstance(interval, int) or interval < 1:
            raise ValueError(f'interval must be an int >= 1, but is {interval!r}')
        if not isinstance(draw_interval, int) or draw_interval < 0:
            raise ValueError(f'draw_interval must be an int >= 0, but is {draw_interval!r}')
        if not isinstance(feature_stability, int) or feature_stability < 0:
            raise ValueError(f'feature_stability must be an int >= 0, but is {feature_stability!r}')
        check_config(allocator, ALLOCATORS)
        self._num_images = feature_stability
        self.draw_interval = draw_interval
        self.interval = interval
        self.by_epoch = by_epoch
        self.history = RelocationHistory()
        self._pruner_config = dict(pruner)
        self._pruner = build(pruner, PRUNERS)
        self._loss_tail = loss_tail
        self._relocator_options = dict(relocate_per_period=relocate_per_period, reward_baseline=reward_baseline)
        self._allocator = dict(allocator)
        self._boundary = 0  # epoch or iteration at which the running period began
        self.relocator: Optional[Relocator] = None  # built by before_run

    # Timing

    def before_run(self, runner: Runner) -> None:
        """Find the prompts and build the relocator, before a checkpoint is loaded."""
        training = runner._train_loop is not None and not isinstance(runner._train_loop, dict)
        if not training or self.relocator is not None:
            return
        if self.by_epoch and isinstance(runner.train_loop, IterBasedTrainLoop):
            raise ValueError('PromptRelocationHook(by_epoch=True) needs a loop of epochs, but '
                             f'{type(runner.train_loop).__name__} counts iterations: set '
                             'by_epoch=False and interval to a number of iterations')
        self._pool = find_pool(runner.model)
        self._optim_wrapper = find_optim_wrapper(runner.optim_wrapper, self._pool.tokens)
        self._pruner = build(self._pruner_config, PRUNERS, seed=runner.seed)
        if len(self._pruner.candidates(self._pool.block_index)) == 0:
            raise ValueError(f'{self._pruner_config} can never choose a prompt here: blocks own '
                             f'{int(self._pool.distribution.sum())} prompts, and {(self._pool.block_index < 0).sum()} '
                             'are spare (prompts=dict(num_spare=...))')
        self._idleness = CRITERIA[self._pruner.criterion](self._pool, self._pruner.score_interval)
        self._loss = PeriodLoss(self._loss_tail, self._pool.tokens.device)
        self._stability = None
        if self._num_images and dist.is_main_process():
            self._stability = FeatureStability(runner, self._optim_wrapper, self._pool, self._num_images)
        num_blocks = self._pool.num_blocks
        allocator = build(self._allocator, ALLOCATORS, num_blocks=num_blocks, seed=runner.seed)
        self.relocator = Relocator(num_blocks, self._pruner, allocator, **self._relocator_options)
        # Starting to load data draws a seed for worker processes: not from the stream of the iterations.
        runner.train_dataloader.generator = torch.Generator().manual_seed(runner.seed)

    def before_train(self, runner: Runner) -> None:
        """Note the first distribution, once the weights are loaded."""
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            _check_epochs(runner)
        if self.history.initial is None:
            self.history.initial = self._pool.distribution.tolist()

    def before_train_epoch(self, runner: Runner) -> None:
        """Relocate where a period of epochs starts."""
        self._seed(runner, runner.iter)
        if self.by_epoch and self._period_is_over(runner):
            self._relocate(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Relocate where a period of iterations starts; then open the iteration's score."""
        if not self.by_epoch and self._period_is_over(runner):
            self._relocate(runner)
        self._idleness.begin(self._loss_factor())

    def after_train_iter(self,
                         runner: Runner,
                         batch_idx: int,
                         data_batch=None,
                         outputs: Optional[dict] = None) -> None:
        """Close the iteration's score with its loss."""
        if outputs is None or 'loss' not in outputs:
            raise KeyError("PromptRelocationHook needs the total loss, but train_step returned "
                           f"{None if outputs is None else list(outputs)} without 'loss'")
        self._idleness.update(outputs['loss'])
        self._loss.add(outputs['loss'], *self._place_in_period(runner, batch_idx))
        self._seed(runner, runner.iter + 1)
        if self._checkpoint_is_due(runner):
            self._merge_ranks()

    def after_val(self, runner: Runner) -> None:
        """Let training go on as if nothing had been validated."""
        if self.relocator is not None:
            self._seed(runner, runner.iter)

    def after_train_epoch(self, runner: Runner) -> None:
        """Have rank 0 know all of the epoch before it saves a checkpoint."""
        self._merge_ranks()

    def after_train(self, runner: Runner) -> None:
        """Give the last relocation its reward, if its period is complete; draw the history."""
        complete = self._period_is_over(runner)
        self._merge_ranks()
        if not dist.is_main_process():
            return
        if complete:
            idleness, (loss, _) = self._idleness.compute()[0], self._loss.compute()
            self.history.reward(self.relocator.finish(loss))
            self._record(runner, loss, [], self._block_means(idleness), self._tuned())
        path = self._draw(runner)
        runner.logger.info(f'The prompt distribution of every period is drawn in {path}')

    @staticmethod
    def _seed(runner: Runner, iteration: int) -> None:
        """What loading and training an iteration draws follows from its number, so resuming has nothing to restore."""
        seed_everything(runner.seed, dist.get_rank(), iteration)

    def _period_is_over(self, runner: Runner) -> bool:
        """Whether a whole period lies between the last boundary and now.

        An epoch that a resumed run starts over closes no period a second time.
        """
        progress = runner.epoch if self.by_epoch else runner.iter
        return progress % self.interval == 0 and progress != self._boundary

    def _place_in_period(self, runner: Runner, batch_idx: int) -> Tuple[int, int]:
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

    # Measuring

    def _loss_factor(self) -> Tensor:
        """What the coming loss is multiplied by before backward; never waits for the device."""
        factor = self._optim_wrapper.scale_loss(torch.ones(()))
        scaler = getattr(self._optim_wrapper, 'loss_scaler', None)
        if scaler is not None:
            factor = scaler.scale(torch.ones(1, device=self._pool.tokens.device)) * factor
        return factor

    def _merge_ranks(self) -> None:
        """Move every rank's sums to rank 0, which alone saves and decides; may be repeated."""
        if dist.get_world_size() > 1:
            for sums in (self._idleness.sums, self._loss.sums):
                dist.all_reduce(sums)
                if not dist.is_main_process():
                    sums.zero_()

    # Relocating

    def _relocate(self, runner: Runner) -> None:
        """Close the period: decide on rank 0, move on every rank, record."""
        self._boundary = runner.epoch if self.by_epoch else runner.iter
        self._merge_ranks()
        idleness, _, count = self._idleness.compute()  # NaN but on rank 0, which has the sums of all
        verified = self._verify(runner, idleness)
        decision = torch.full((self.relocator.relocate_per_period, 2), -1)
        measured, loss, moves, means, stability = False, float('nan'), [], [], {}
        if dist.is_main_process():
            loss, _ = self._loss.compute()
            # Nothing at all was measured if the checkpoint is of a run without this hook.
            measured = count + self._idleness.num_dropped > 0
            if measured:
                means = self._block_means(idleness)
                moves = self.relocator.step(loss, idleness, self._pool.block_index,
                                            partial(self._signals, runner), verified)
                self.history.reward(self.relocator.last_reward)
                stability = self._tuned()
            for row, move in zip(decision, moves):
                row[0], row[1] = move.prompt, move.target
            if stability and moves:
                with self._pool.without(*(move.prompt for move in moves)):
                    stability['pruning'] = self._stability.changed()
        if 'virtual' in self.relocator.allocator.signals:
            # Until rank 0, which is done here, names no prompt.
            while self._virtual_gain(runner) is not None:
                continue
        dist.broadcast(decision)
        for prompt, block in decision.tolist():
            if prompt >= 0:
                self._move(prompt, block)
        if stability and moves:
            stability['allocation'] = self._stability.changed()
        if measured:
            self._record(runner, loss, moves, means, stability)
        self._idleness.reset()
        self._loss.reset()

    def _verify(self, runner: Runner, idleness: Tensor) -> Dict[int, float]:
        """True idleness of the nominated prompts; every rank must call it."""
        if self._pruner.verify_top == 0:
            return {}
        nominated = torch.full((self._pruner.verify_top, ), -1)
        if idleness.isfinite().all():
            candidates = self._pruner.candidates(self._pool.block_index.cpu())
            top = idleness[candidates].topk(min(len(nominated), len(candidates))).indices
            nominated[:len(top)] = candidates[top]
        dist.broadcast(nominated)
        prompts = [prompt for prompt in nominated.tolist() if prompt >= 0]
        if not prompts:
            return {}
        batches = HeldBatches(runner, self._optim_wrapper, self._pruner.verify_batches, runner.seed + self._boundary)
        scores = true_idleness(self._pool, prompts, batches.loss).tolist()
        return {prompt: score for prompt, score in zip(prompts, scores) if math.isfinite(score)}

    def _signals(self, runner: Runner, prompt: Optional[int]) -> Dict[str, Tensor]:
        """What the allocator wants to know of every block, each (L,); only rank 0 is asked."""
        wanted, num_blocks = self.relocator.allocator.signals, self._pool.num_blocks
        signals = {}
        if 'need' in wanted:
            signals['need'] = self._idleness.need(self._pool.block_index, num_blocks)
        if 'virtual' in wanted:
            signals['virtual'] = torch.full((num_blocks, ), float('nan'))
            if prompt is not None:
                signals['virtual'] = self._virtual_gain(runner, prompt)
        return signals

    def _virtual_gain(self, runner: Runner, prompt: int = -1) -> Optional[Tensor]:
        """Virtual gains (L,) of the prompt that rank 0 names, None if it names none (-1); every rank must call it.

        Rank 0 could not do it alone: the losses of some heads communicate.
        """
        named = torch.tensor([prompt])
        dist.broadcast(named)
        if named < 0:
            return None
        batches = HeldBatches(runner, self._optim_wrapper, VIRTUAL_BATCHES, runner.seed + self._boundary)
        gains = batches.virtual_gain(self._pool, int(named))
        dist.all_reduce(gains, 'mean')
        return gains

    def _move(self, prompt: int, block: int) -> None:
        """Carry out a decision, the same on every rank."""
        tokens = self._pool.tokens
        rewritten = self._pool.relocate(prompt, block)
        if tokens.grad is not None:
            tokens.grad[prompt] = 0  # accumulated in the old block
        if not rewritten:
            return
        row = tokens.detach()[prompt].clone()
        dist.broadcast(row)  # it may have been drawn at random
        with torch.no_grad():
            tokens[prompt] = row
        for value in self._optim_wrapper.optimizer.state.get(tokens, {}).values():
            if isinstance(value, Tensor) and value.shape == tokens.shape:
                value[prompt] = 0

    def _block_means(self, idleness: Tensor) -> List[Optional[float]]:
        """Mean idleness of each block's prompts; None where it has none or it is not finite."""
        index = self._pool.block_index.cpu()
        means = [float(idleness[index == block].mean()) for block in range(self._pool.num_blocks)]
        return [mean if math.isfinite(mean) else None for mean in means]

    def _tuned(self) -> dict:
        """``feature_stability`` of a period that just closed, before anything moves; empty where it is off."""
        return {} if self._stability is None else dict(tuning=self._stability.tuned(), pruning=None, allocation=None)

    def _draw(self, runner: Runner) -> str:
        """Draw the periods so far; returns the file."""
        path = osp.join(runner.log_dir, 'prompt_distribution.png')
        plot_relocation([run_of(self.history.initial, self.history.periods)], path)
        return path

    def _record(self, runner: Runner, loss: float, moves: Sequence[Move],
                means: List[Optional[float]], stability: dict) -> None:
        """Write the period to relocations.jsonl, the log and the visualisation backends."""
        reward = self.relocator.last_reward
        rows = self.history.add(runner.iter, loss, moves, self._pool.distribution.tolist())
        for row in rows:
            row['block_idleness'] = means
            row['entropy'] = self.relocator.allocator.diagnostics.get('entropy') if moves else None
            if stability:
                row['feature_stability'] = stability
        self.history.write(osp.join(runner.log_dir, 'relocations.jsonl'))
        if self.draw_interval and row['period'] % self.draw_interval == 0:
            self._draw(runner)
        scalars = dict(loss=loss, reward=reward, **self.relocator.allocator.diagnostics)
        if moves:  # of several, what Eq. 8 takes off
            scalars['idleness'] = sum(move.idleness for move in moves)
        runner.visualizer.add_scalars(
            {f'train/relocation/{name}': value for name, value in scalars.items()
             if value is not None and math.isfinite(value)}, step=runner.iter)
        text = f'Relocation, period {row["period"]}: loss {loss:.4f}, '
        skipped = not math.isfinite(loss) or not any(mean is not None for mean in means)
        text += ', '.join(map(_sentence, moves)) or ('the period is skipped' if skipped else 'nothing moves')
        if self._idleness.num_dropped:
            text += f' ({self._idleness.num_dropped} iterations were not finite)'
        if reward is not None:
            text += f'; reward of the relocation before: {reward:.3g}'
        runner.logger.log(logging.WARNING if skipped else logging.INFO, text)

    # Checkpoints

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add all that decides, as plain tensors and Python types."""
        if self.relocator is not None:
            checkpoint[CHECKPOINT_KEY] = dict(
                boundary=self._boundary,
                idleness=self._idleness.state_dict(),
                loss=self._loss.state_dict(),
                features=self._stability and self._stability.reference,
                relocator=self.relocator.state_dict(),
                history=self.history.state_dict())

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Continue where the checkpoint stopped, if the run is resumed."""
        self.before_run(runner)  # FlexibleRunner loads before it says that a run begins
        if self.relocator is None or not runner._resume:
            return
        if CHECKPOINT_KEY not in checkpoint:
            runner.logger.warning('The checkpoint is of a run without PromptRelocationHook: '
                                  'relocation starts anew')
            return
        state = checkpoint[CHECKPOINT_KEY]
        self.relocator.load_state_dict(state['relocator'])
        self._idleness.load_state_dict(state['idleness'])
        self._loss.load_state_dict(state['loss'])
        if not dist.is_main_process():  # rank 0 has the sums of all
            self._idleness.reset()
            self._loss.reset()
        if self._stability is not None:
            self._stability.reference = state['features']
        self.history.load_state_dict(state['history'])
        self._boundary = state['boundary']


def _check_epochs(runner: Runner) -> None:
    """Processes that are not done with an epoch at once would wait for each other for ever."""
    lengths = [int(length) for length in dist.all_gather(torch.tensor([len(runner.train_dataloader)]))]
    if len(set(lengths)) > 1:
        raise ValueError(f'The processes have epochs of {lengths} batches, but must have equal ones: set round_up=True '
                         'in the sampler of train_dataloader')


def _sentence(move: Move) -> str:
    if move.source < 0:
        return f'a new prompt, {move.prompt}, comes to block {move.target}'
    where = 'is taken out of' if move.target < 0 else f'goes to block {move.target} from'
    return f'prompt {move.prompt} {where} block {move.source} (idleness {move.idleness:.3g})'
