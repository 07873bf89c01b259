"""The protocol of relocation, for any training loop."""
import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmprovpt.errors import ConfigError
from mmprovpt.kinds import check_types

from . import ranks
from .allocator import ALLOCATORS, Signals
from .arrival import build_arrival
from .criteria import CRITERIA
from .history import Period
from .pruners import PRUNERS
from .relocator import Move, Relocator
from .reward import PeriodLoss

if TYPE_CHECKING:
    from mmprovpt.prompts import PromptSet

VERSION = 2  # of the state; 1 had no number
SIGNALS = ('need', )
RELOCATOR_OPTIONS = ('relocate_per_period', 'reward_baseline', 'reward_idleness', 'reward_loss_scale', 'state')


class RelocationSession:
    """Prompts that change their blocks while they are trained: what a training loop has to call.

    A period is some training, of any length that the loop chooses::

        session = RelocationSession(prompts, optimizer)
        for period in range(periods):
            for batch in batches:
                session.begin_iteration()
                loss = model(batch)
                loss.backward()
                session.end_iteration(loss)
                ...                             # step the optimizer
            if period + 1 < periods:            # a prompt that moves last would never be tuned
                session.close_period()
        session.finish()                        # the reward of the last moves

    A loop without a loss scaler, accumulation or clipping may leave an iteration to ``step``. Gradients are read in the
    backward pass, so it does not matter when the optimizer steps and zeroes them. Nothing within a period waits for the
    device.

    Where torch.distributed is initialised, every rank has a session and calls the same methods; rank 0 decides with the
    sums of all and tells the others. Parameters must be whole on each rank. If rank 0 fails to decide, all ranks raise.

    Args:
        prompts (PromptSet): Of the model, on their final device.
        optimizers (Optimizer or Sequence[Optimizer]): Those that train the model; one of them has ``prompts.tokens``.
        pruner (dict): Type and arguments of a class in ``PRUNERS``: who leaves.
        allocator (dict): Type and arguments of a class in ``ALLOCATORS``: where to.
        relocate_per_period (int): The most prompts that move after one period, >= 1; see
            :class:`~mmprovpt.relocation.Relocator` for their reward. 1 is the paper.
        loss_tail (float): In (0, 1]: the last part of a period's iterations whose mean loss enters the reward; see
            :class:`~mmprovpt.relocation.PeriodLoss`. 1 is the paper.
        arrival (str or dict): What becomes of the row of a prompt that moves, a key of ``ARRIVALS`` or type and
            arguments of it: ``'keep'``, ``'shrink'``. It acts on what ``cross_stage`` made of the row.
        reward_baseline (str, optional): ``'mean'`` takes the fall of the loss that is due anyway off the reward before
            the allocator gets it; see :class:`~mmprovpt.relocation.RewardBaseline`. None is the paper.
        reward_idleness, reward_loss_scale, state: See :class:`~mmprovpt.relocation.Relocator`; the defaults are the
            paper's, other values the authors' code's.
        seed (int): Of pruner and allocator, unless they have their own.
        averages (Sequence[nn.Module]): Averaged copies of the model; see ``add_average``.

    Attributes:
        period (int): Number of closed periods.
        criterion (Criterion): Measures idleness.
        relocator (Relocator): Decides; has ``pruner`` and ``allocator``.

    Raises:
        ConfigError: An argument is invalid, the prompts are not trained by an optimizer, or none can ever move.
    """

    def __init__(self,
                 prompts: 'PromptSet',
                 optimizers: Optimizer | Sequence[Optimizer],
                 pruner: dict = dict(type='IdlenessPruner'),  # noqa: B006
                 allocator: dict = dict(type='PPOAllocator'),  # noqa: B006
                 relocate_per_period: int = 1,
                 loss_tail: float = 1.0,
                 arrival: str | dict = 'keep',
                 reward_baseline: str | None = None,
                 reward_idleness: str = 'moved',
                 reward_loss_scale: float = 1.0,
                 state: str = 'scaled',
                 seed: int = 0,
                 averages: Sequence[nn.Module] = ()) -> None:
        options: dict[str, Any] = dict(relocate_per_period=relocate_per_period, reward_baseline=reward_baseline,
                       reward_idleness=reward_idleness, reward_loss_scale=reward_loss_scale, state=state)
        check_types(RelocationSession, dict(options, loss_tail=loss_tail, seed=seed))
        self.arrival = build_arrival(arrival)
        self.prompts = prompts
        self.optimizers = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
        if not prompts.tokens.requires_grad or not any(trains(each, prompts.tokens) for each in self.optimizers):
            raise ConfigError('relocation needs trained prompts, but no optimizer has the parameter `tokens` of the '
                              'PromptSet, or it needs no gradient')
        pruner_ = PRUNERS.build(pruner, seed=seed)
        if len(pruner_.eligible(prompts.block_index)) == 0:
            raise ConfigError(f'{pruner} can never choose a prompt here: blocks own {int(prompts.distribution.sum())} '
                              f'prompts, and {int((prompts.block_index < 0).sum())} belong to none')
        allocator_ = ALLOCATORS.build(allocator, num_blocks=prompts.num_blocks, seed=seed)
        unknown = sorted(set(allocator_.signals) - set(SIGNALS))
        if unknown:
            raise ConfigError(f'{type(allocator_).__name__} asks for the signals {", ".join(unknown)}; known are '
                              f'{", ".join(SIGNALS)}')
        self.relocator = (allocator_.relocator_type or Relocator)(
            prompts.num_blocks, pruner_, allocator_, **options)
        self.criterion = CRITERIA[pruner_.criterion](prompts, pruner_.score_interval)
        self.loss = PeriodLoss(loss_tail, prompts.tokens.device)
        self.period = 0
        self._has_gradient = self._is_gathered = False
        self._handle = prompts.tokens.register_hook(self._see_gradient)
        self._averages: list[PromptSet] = []  # their prompts
        for average in averages:
            self.add_average(average)

    # What the model has beside the trained prompts

    def add_average(self, average: nn.Module) -> None:
        """Have the prompts of an averaged copy of the model (EMA, SWA) move along.

        An average cannot do it alone: MMEngine's skips integers, torch's averages them. Its update stays the loop's.

        Args:
            average (nn.Module): The copy, or whatever module holds it; a second call with it does nothing.

        Raises:
            ConfigError: It does not have as many prompts, in one set of the same class.
        """
        found = [module for module in average.modules() if isinstance(module, type(self.prompts))]
        if len(found) != 1 or found[0] is self.prompts or found[0].tokens.shape != self.prompts.tokens.shape:
            raise ConfigError('an average must be a copy of the model, with prompts '
                              f'{tuple(self.prompts.tokens.shape)}, but this {type(average).__name__} has '
                              f'{len(found)} sets of prompts: {[tuple(each.tokens.shape) for each in found]}')
        if not any(found[0] is known for known in self._averages):
            self._averages.append(found[0])
            self._share_owners()

    # Iterations

    def begin_iteration(self, scale: float | Tensor = 1.0) -> None:
        """Open an iteration, before its forward.

        Args:
            scale (float or Tensor): Factor between the loss given to ``end_iteration`` and the one that is
                differentiated: a loss scaler's, 1 / number of accumulated iterations. A tensor has one element.
        """
        self._has_gradient = False
        self.criterion.begin(scale)

    def end_iteration(self, loss: float | Tensor, position: int | None = None,
                      length: int | None = None, clip: float | Tensor = 1.0) -> None:
        """Close an iteration, any time after its backward pass.

        Args:
            loss (float or Tensor): Its unscaled loss, one element.
            position (int, optional): Iterations of the period before it; only ``loss_tail`` < 1 needs it.
            length (int, optional): Iterations of the period; the same.
            clip (float or Tensor): What gradients are multiplied by before scores are read off them, one element. 1 is
                the paper; in the authors' code a norm is clipped before.

        Raises:
            RuntimeError: No prompt has got a gradient, so nothing is trained nor measured; or no iteration is open.
            ConfigError: ``loss_tail`` is less than 1, but the position is not given.
        """
        if not self._has_gradient and bool((self.prompts.block_index >= 0).any()):
            raise RuntimeError(
                'no prompt has got a gradient in this iteration. Activation checkpointing of the whole backbone does '
                'that (re-entrant, with an input that needs no gradient): use use_reentrant=False, or checkpoint the '
                'blocks alone. So does a backbone that runs under torch.no_grad(), and a loss that does not depend on '
                'it')
        if position is None or length is None:
            if self.loss.tail < 1:
                raise ConfigError(f'loss_tail={self.loss.tail} needs to know where in the period an iteration is: '
                                  'end_iteration(loss, position, length)')
            position, length = 0, 1
        self._is_gathered = False
        self.criterion.update(loss, clip)
        self.loss.add(loss, position, length)

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """A whole iteration: the forward, the backward, and a step of each optimizer.

        Args:
            closure (Callable): Runs the forward and returns the loss, one element.

        Returns:
            Tensor: The loss, detached.

        Raises:
            RuntimeError: As ``end_iteration``.
            ConfigError: The same.
        """
        self.begin_iteration()
        loss = closure()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        self.end_iteration(loss)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()

    def _see_gradient(self, grad: Tensor) -> None:
        self._has_gradient = True

    # Periods

    def gather(self) -> None:
        """Have rank 0 know what all ranks have measured, before it saves ``state_dict``; every rank must call it."""
        if self._is_gathered:
            return
        self._is_gathered = True
        ranks.add_up(self.criterion.sums)
        ranks.add_up(self.loss.sums)

    def candidates(self) -> list[int]:
        """The prompts to be verified before ``close_period``, the same on every rank; every rank must call it.

        Returns:
            list[int]: The ``verify_top`` idlest of the pruner, whose true idleness
            (:func:`~mmprovpt.relocation.true_idleness`) is to be given to ``close_period``; empty where it verifies
            none.
        """
        size = self.relocator.pruner.verify_top
        if size == 0:
            return []
        self.gather()

        def choose() -> Tensor:
            chosen = torch.full((size, ), -1)
            idleness = self.criterion.compute()[0]
            if bool(idleness.isfinite().all()):
                found = self.relocator.pruner.candidates(idleness, self.prompts.block_index.cpu())
                chosen[:len(found)] = found
            return chosen

        chosen = ranks.from_first(choose, size, self.prompts.tokens.device)
        return [prompt for prompt in chosen.tolist() if prompt >= 0]

    def close_period(self, verified: dict[int, float] | None = None) -> Period | None:
        """Reward the moves that opened the period, decide on the next and carry them out; every rank must call it.

        Args:
            verified (dict, optional): True idleness, in units of the loss, by number of a prompt of ``candidates()``;
                only these may move then, and of them those whose idleness is finite. Empty or None: the estimate
                decides.

        Returns:
            Period or None: What happened, on rank 0; None on other ranks, and where nothing had been measured.

        Raises:
            RuntimeError: Rank 0 could not decide, for the reason in the message. On rank 0 it is that error itself.
        """
        self.gather()
        closed: list[Period] = []

        def decide() -> Tensor:
            decision = torch.full((self.relocator.relocate_per_period, 2), -1)
            if self._has_measured():
                period = self._close(verified)
                closed.append(period)
                for row, move in zip(decision, period.moves):
                    row[0], row[1] = move.prompt, move.target
            return decision.flatten()

        size = 2 * self.relocator.relocate_per_period
        decision = ranks.from_first(decide, size, self.prompts.tokens.device).view(-1, 2).tolist()
        self.apply([(prompt, block) for prompt, block in decision if prompt >= 0])
        self.criterion.reset()
        self.loss.reset()
        return closed[0] if closed else None

    def finish(self) -> Period | None:
        """Close the last period, if it is complete: moves get their reward, and none follow; every rank must call it.

        Returns:
            Period or None: As ``close_period``.
        """
        self.gather()
        if not ranks.is_first() or not self._has_measured():
            return None
        loss, _ = self.loss.compute()
        return self._period(loss, [], self.relocator.finish(
            loss, self.criterion.compute()[0], self.prompts.block_index))

    def _has_measured(self) -> bool:
        """Whether an iteration has been closed since the last period."""
        return self.criterion.compute()[2] + self.criterion.num_dropped > 0

    def _close(self, verified: dict[int, float] | None) -> Period:
        finite = {prompt: score for prompt, score in verified.items() if math.isfinite(score)} if verified else None
        loss, _ = self.loss.compute()
        moves = self.relocator.step(
            loss, self.criterion.compute()[0], self.prompts.block_index, self._signals(), finite)
        return self._period(loss, moves, self.relocator.last_reward)

    def _signals(self) -> Signals:
        wanted = self.relocator.allocator.signals
        return {'need': self.criterion.need(self.prompts.block_index, self.prompts.num_blocks)} if wanted else {}

    def _period(self, loss: float, moves: list[Move], previous_reward: float | None) -> Period:
        self.period += 1
        idleness, index = self.criterion.compute()[0], self.prompts.block_index.cpu().clone()
        means = [float(idleness[index == block].mean()) for block in range(self.prompts.num_blocks)]
        for move in moves:
            index[move.prompt] = move.target
        counts = torch.bincount(index[index >= 0], minlength=self.prompts.num_blocks).tolist()
        return Period(self.period, loss, moves, previous_reward, counts,
                      [mean if math.isfinite(mean) else None for mean in means],
                      dict(self.relocator.allocator.diagnostics), self.criterion.num_dropped)

    # Moving

    @torch.no_grad()
    def apply(self, moves: Sequence[Sequence[int]]) -> None:
        """Carry out moves, the same on every rank, wherever a prompt leaves traces.

        Its accumulated gradient is that of the old block, and is zeroed. Where its row was rewritten, by another width
        or by ``arrival``, every average begins with the new row; what optimizers remember of it is void at another
        width, and else what ``arrival`` says.

        Args:
            moves: Pairs of a prompt, in [0, N), and its new block, in [0, L).
        """
        tokens = self.prompts.tokens
        for prompt, block in moves:
            arrives = block >= 0 and (self.arrival.in_place or int(self.prompts.block_index[prompt]) != block)
            is_void = self.prompts.relocate(prompt, block)
            row = self.arrival.row(self.prompts, prompt, block) if arrives else None
            if tokens.grad is not None:
                tokens.grad[prompt] = 0
            if row is not None:
                tokens[prompt, :len(row)] = row.to(tokens)
            elif not is_void:
                continue
            ranks.broadcast(tokens[prompt])  # it may have been drawn at random
            if is_void or self.arrival.forgets:
                self._forget(prompt)
            for average in self._averages:
                average.tokens[prompt] = tokens[prompt].to(average.tokens)
        if moves:
            self._share_owners()

    def _forget(self, prompt: int) -> None:
        """Zero what optimizers remember of a row."""
        tokens = self.prompts.tokens
        for optimizer in self.optimizers:
            for value in optimizer.state.get(tokens, {}).values():
                if isinstance(value, Tensor) and value.shape[:1] == tokens.shape[:1]:
                    value[prompt] = 0

    @torch.no_grad()
    def _share_owners(self) -> None:
        for average in self._averages:
            average.block_index.copy_(self.prompts.block_index)
            average.owners_changed()
        self.prompts.owners_changed()

    # Checkpoints

    def state_dict(self) -> dict:
        """dict: All that decides from here on, as plain tensors and Python types.

        It is as large after many periods as after one. Of several ranks, rank 0's after ``gather()`` is that of all.
        """
        return dict(
            version=VERSION,
            types=self._types(),
            period=self.period,
            criterion=self.criterion.state_dict(),
            loss=self.loss.state_dict(),
            relocator=self.relocator.state_dict())

    def load_state_dict(self, state: dict) -> None:
        """Continue from a ``state_dict()`` of rank 0, on every rank; one of earlier releases is converted.

        Raises:
            ConfigError: It is of another pruner, allocator or criterion, of one with other options, of other blocks or
                prompts, or of a later release.
        """
        if 'version' not in state and 'relocator' in state:
            state = _converted(state)
        if state.get('version') != VERSION:
            raise ConfigError(f'the state of relocation has version {state.get("version")}, but this release knows '
                              f'{VERSION} and what came before: resume with the release that wrote it')
        for what, mine in self._types().items():
            theirs = state['types'].get(what, mine)
            if theirs != mine:
                raise ConfigError(f'the checkpoint is of a run with the {what} {theirs}, but this one has {mine}: '
                                  f'resume with {theirs}, or start relocation anew by load_from, without resume')
        try:
            self.relocator.load_state_dict(state['relocator'])
            self.criterion.load_state_dict(state['criterion'])
        except (KeyError, RuntimeError) as error:
            raise ConfigError(f'the checkpoint is of a run with another pruner or allocator than {self._types()}, or '
                              f'other options of theirs ({error}): resume with the config that wrote it, or start '
                              'relocation anew by load_from, without resume') from error
        self.loss.load_state_dict(state['loss'])
        self.period = state['period']
        if not ranks.is_first():  # rank 0 has the sums of all
            self.criterion.reset()
            self.loss.reset()

    def _types(self) -> dict[str, str]:
        pruner = self.relocator.pruner
        return dict(pruner=type(pruner).__name__, allocator=type(self.relocator.allocator).__name__,
                    criterion=pruner.criterion)

    def close(self) -> None:
        """Stop measuring; the prompts are as they were without a session."""
        self.criterion.close()
        self._handle.remove()


def trains(optimizer: Optimizer, parameter: nn.Parameter) -> bool:
    """Whether an optimizer has a parameter."""
    return any(each is parameter for group in optimizer.param_groups for each in group['params'])


def _converted(state: dict) -> dict:
    """A state of releases without a version, which kept the whole history and no types."""
    rows = state['history']['rows']
    return dict(version=VERSION, types={}, period=rows[-1]['period'] if rows else 0, criterion=state['idleness'],
                loss=state['loss'], relocator=state['relocator'])


def check_session_options(pruner: dict, allocator: dict, **options) -> dict:
    """Check options of a :class:`RelocationSession` where there are no prompts yet.

    Args:
        pruner, allocator: Its arguments.
        **options: Others of its arguments, but for prompts, optimizers, seed and averages.

    Returns:
        dict: All of them, those that are not given with their defaults.

    Raises:
        ConfigError: One is unknown, of the wrong type or out of its range.
    """
    parameters = inspect.signature(RelocationSession).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()
                if name not in ('prompts', 'optimizers', 'seed', 'averages')}
    unknown = sorted(set(options) - set(defaults))
    if unknown:
        raise ConfigError(f'PromptRelocationHook has no argument {", ".join(map(repr, unknown))}; beside its own it '
                          f'takes {", ".join(sorted(defaults))}')
    check_types(RelocationSession, options)
    whole = dict(defaults, **options)
    build_arrival(whole['arrival'])
    chosen, pruner_ = ALLOCATORS.build(allocator, num_blocks=2, seed=0), PRUNERS.build(pruner, seed=0)
    decides = {name: whole[name] for name in RELOCATOR_OPTIONS}
    (chosen.relocator_type or Relocator)(2, pruner_, chosen, **decides)
    PeriodLoss(whole['loss_tail'], torch.device('cpu'))
    return dict(whole, pruner=dict(pruner), allocator=dict(allocator))
