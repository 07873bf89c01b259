"""A training loop of one's own, with a session."""
import torch
from test_hooks.toy_run import ToyModel

from mmprovpt.relocation import RelocationSession

ANY = dict(pruner=dict(type='RandomPruner', criterion='taylor'), allocator=dict(type='UniformAllocator'))


class Loop:
    """A toy in training with a session; its data are random, and a period is three iterations."""

    def __init__(self, widths=(4, 4, 4), averages=(), **options):
        self.model = ToyModel(widths)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.02, momentum=0.9)
        self.averages = [make(self.model) for make in averages]
        self.session = RelocationSession(self.model.prompts, self.optimizer, averages=self.averages, **options)
        self.generator = torch.Generator().manual_seed(0)

    def batch(self):
        inputs = torch.randn(4, 6, generator=self.generator)
        return inputs, inputs.square().sum(1) / 6

    def train(self, iterations=3):
        for _ in range(iterations):
            self.session.begin_iteration()
            loss = self.model(*self.batch(), mode='loss')['loss']
            self.optimizer.zero_grad()
            loss.backward()
            self.session.end_iteration(loss)
            self.optimizer.step()
            for average in self.averages:
                update = getattr(average, 'update_parameters', None) or average.update
                update(self.model)

    def run(self, periods):
        closed = []
        for _ in range(periods):
            self.train()
            closed.append(self.session.close_period())
        return closed
