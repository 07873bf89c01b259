"""Several tasks on one frozen backbone in an MMEngine Runner: the model, its loops, and configs of one and of many."""
from .configs import join_tasks, single_task, take_task
from .loops import TaskLoaders
from .model import MultiTaskModel

__all__ = ['MultiTaskModel', 'TaskLoaders', 'join_tasks', 'single_task', 'take_task']
