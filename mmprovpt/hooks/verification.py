"""A few held batches and the loss on them, for the true idleness of candidates (``verify_top``)."""
import copy

import torch
from mmengine import dist
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from mmprovpt.relocation import RelocationSession, true_idleness

from .find import loss_of, unwrapped
from .randomness import fixed_randomness


class HeldBatches:
    """A few batches of the training data and the model's loss on them, the same at each call.

    They are drawn by ``seed`` and pass the training pipeline, so a resumed run draws the same and nothing has to be
    kept between periods. Each process draws its own. Training is not disturbed: no global generator moves.

    Args:
        runner (Runner): Its training dataset must be indexable, and its model an MMEngine ``BaseModel``.
        optim_wrapper (OptimWrapper): Its context (autocast) is that of the training forward.
        num_batches (int): Batches per process, of the training dataloader's size.
        seed (int): Another one for each period.

    Attributes:
        batches (list): As the loader collates them.

    Raises:
        TypeError: The training dataset cannot be indexed.
    """

    def __init__(self, runner: Runner, optim_wrapper: OptimWrapper, num_batches: int, seed: int) -> None:
        loader = runner.train_dataloader
        if not hasattr(loader.dataset, '__getitem__') or not hasattr(loader.dataset, '__len__'):
            raise TypeError(f'verify_top draws training images by number, but {type(loader.dataset).__name__} is not '
                            'indexable: leave it out, or use a map-style dataset')
        self._model = unwrapped(runner.model)
        self._optim_wrapper = optim_wrapper
        self._seed = seed, dist.get_rank()
        size = loader.batch_sampler.batch_size
        generator = torch.Generator().manual_seed(seed * dist.get_world_size() + dist.get_rank())
        chosen = torch.randperm(len(loader.dataset), generator=generator)[:num_batches * size].tolist()
        with fixed_randomness(*self._seed):
            self.batches = [loader.collate_fn([loader.dataset[i] for i in chosen[start:start + size]])
                             for start in range(0, len(chosen), size)]

    @torch.no_grad()
    def loss(self) -> Tensor:
        """Mean loss over the batches of all processes, (1,) float32; every process must call it."""
        training = self._model.training
        self._model.eval()
        with fixed_randomness(*self._seed), self._optim_wrapper.optim_context(self._model):
            # A preprocessor may write into what it is given.
            losses = [loss_of(self._model, copy.deepcopy(batch)).float() for batch in self.batches]
        self._model.train(training)
        mean = torch.stack(losses).mean().reshape(1)
        dist.all_reduce(mean, 'mean')
        return mean


def verify(runner: Runner, optim_wrapper: OptimWrapper, session: RelocationSession, seed: int) -> dict[int, float]:
    """True idleness of the session's candidates, by their numbers; every process must call it.

    The other arguments are those of :class:`HeldBatches`.
    """
    candidates = session.candidates()
    if not candidates:
        return {}
    batches = HeldBatches(runner, optim_wrapper, session.relocator.pruner.verify_batches, seed)
    return dict(zip(candidates, true_idleness(session.prompts, candidates, batches.loss).tolist()))
