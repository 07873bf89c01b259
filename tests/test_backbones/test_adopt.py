import copy
import pickle

import torch
from torch import nn

from mmprovpt.backbones.adopt import adopt


class Louder:

    def forward(self, x):
        return 2 * super().forward(x)


def test_adopt_changes_behaviour_and_nothing_else():
    linear = nn.Linear(2, 3)
    keys, x = list(linear.state_dict()), torch.ones(1, 2)
    expected = 2 * linear(x)
    adopt(linear, Louder)
    assert torch.equal(linear(x), expected) and isinstance(linear, nn.Linear)
    assert list(linear.state_dict()) == keys
    for twin in (copy.copy(linear), copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        assert type(twin) is type(linear) and torch.equal(twin(x), expected)
    other = nn.Linear(2, 3)
    adopt(other, Louder)
    assert type(other) is type(linear)
    assert type(nn.Linear(2, 3)) is nn.Linear
