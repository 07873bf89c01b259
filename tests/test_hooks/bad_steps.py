"""Steps that are not finite, and what two runs must agree in."""
import torch
from test_hooks.toy_run import ToyModel

NAN = float('nan')


class BadGradient(ToyModel):
    """Iterations of which the loss is finite and the gradient is not."""
    bad = 3, 4, 9

    def forward(self, inputs, targets=None, mode='tensor'):
        result = super().forward(inputs, targets, mode)
        if mode == 'loss':
            self.count = getattr(self, 'count', 0) + 1
            if self.count in self.bad:
                weight = self.head.weight
                result['loss'] = result['loss'] + (weight - weight.detach()).abs().sum().sqrt()  # 0; its slope is NaN
        return result


def assert_equal_runs(one, other):
    for a, b in ((one.model.state_dict(), other.model.state_dict()),
                 *zip(one.optim_wrapper.optimizer.state.values(), other.optim_wrapper.optimizer.state.values())):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
