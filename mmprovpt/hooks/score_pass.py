"""Scores and losses of a pass of their own over the training data, as in the authors' code (``score_pass``)."""
import torch
from mmengine import dist
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from mmprovpt.errors import ConfigError
from mmprovpt.older_torch import total_norm
from mmprovpt.relocation import RelocationSession

from .find import loss_factor, loss_of, unwrapped
from .randomness import fixed_randomness


def score_pass(runner: Runner, optim_wrapper: OptimWrapper, session: RelocationSession, clip: float | None,
               *seed: int) -> None:
    """Measure idleness and loss of all training data with the weights as they are, dropout on; nothing is trained.

    It costs about what an epoch of training costs (docs/method/authors_code.md). Each process takes its part of the
    data. Neither gradients that wait for a step nor a global generator is touched.

    Args:
        runner (Runner): Its training dataset must be indexable.
        optim_wrapper (OptimWrapper): Its context (autocast) and loss scale are those of training.
        session (RelocationSession): Its period holds this pass alone afterwards.
        clip (float, optional): Norm over all trained parameters that a batch's gradients are clipped to before scores
            are read off them.
        *seed (int): Of dropout and augmentation, >= 0; others for each run and period.

    Raises:
        ConfigError: The training dataset cannot be indexed.
    """
    loader, model = runner.train_dataloader, unwrapped(runner.model)
    if not hasattr(loader.dataset, '__getitem__') or not hasattr(loader.dataset, '__len__'):
        raise ConfigError(f'score_pass reads all training images by number, but {type(loader.dataset).__name__} is not '
                          'indexable: leave it out, or use a map-style dataset')
    mine = list(range(dist.get_rank(), len(loader.dataset), dist.get_world_size()))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    waiting = [parameter.grad for parameter in trained]
    session.criterion.reset()
    session.loss.reset()
    with fixed_randomness(*seed, dist.get_rank()):
        batches = DataLoader(loader.dataset, loader.batch_sampler.batch_size, sampler=mine,
                             num_workers=loader.num_workers, collate_fn=loader.collate_fn,
                             worker_init_fn=loader.worker_init_fn)
        for batch in batches:
            for parameter in trained:
                parameter.grad = None
            factor = loss_factor(optim_wrapper, session.prompts.tokens.device)
            session.begin_iteration(factor)
            with optim_wrapper.optim_context(model):
                loss = loss_of(model, batch)
            (loss * factor.to(loss)).sum().backward()
            session.end_iteration(loss, 0, 1, 1.0 if clip is None else clip_factor(trained, factor, clip))
    for parameter, grad in zip(trained, waiting):
        parameter.grad = grad


def clip_factor(parameters: list[torch.nn.Parameter], scale: Tensor, clip: float) -> Tensor:
    """What a clipped norm would multiply gradients by, one element in (0, 1]; they are not changed.

    Args:
        parameters: With gradients, or without.
        scale: One element: what the loss was multiplied by.
        clip: Largest norm over all of them.
    """
    norm = total_norm([parameter.grad.float() for parameter in parameters if parameter.grad is not None])
    norm = norm / scale.to(norm.device)
    return (clip / (norm + 1e-6)).clamp(max=1.0)
