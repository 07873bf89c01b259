"""What MMEngine's tool counts: each prompt costs the same, beginning with the first, in every library."""
import pytest
from matrix import CASES, build, images
from mmengine.analysis import FlopAnalyzer


def flops(case, count):
    net = build(case, None if count is None else dict(type='StaticPrompts', num_tokens=count))
    net.eval()
    return FlopAnalyzer(net, (images(case, batch=1), )).total()


# Where heads share keys, ours norms each as often as it is read.
@pytest.mark.parametrize('name', [name for name in CASES if name != 'timm-rope-grouped'])
def test_each_prompt_adds_the_same(name):
    with_0, with_2, with_4 = (flops(CASES[name], count) for count in (0, 2, 4))
    # By then the counter is there: of timm and MMPretrain, upstream's attention is fused, too.
    assert flops(CASES[name], None) == with_0
    assert with_4 - with_2 == with_2 - with_0 > 0
