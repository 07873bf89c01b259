"""Several tasks on one frozen backbone in an MMEngine Runner: the model, its loops, and configs of one and of many."""
from .configs import join_tasks, single_task, take_task
from .loops import TaskLoaders, loaders_by_task, sampler_of
from .model import MultiTaskModel

__all__ = ['MultiTaskModel', 'TaskLoaders', 'join_tasks', 'loaders_by_task', 'sampler_of', 'single_task',
           'take_task']
