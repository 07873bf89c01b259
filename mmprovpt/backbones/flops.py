"""FLOPs of fused attention, which MMEngine's counter does not know."""
import sys


def count_attention() -> None:
    """Teach ``mmengine.analysis`` PyTorch's fused attention, where MMEngine is in use.

    Prompted attention is fused, and upstream's (of Swin, of MMSegmentation's ViT) is not: without this, adding prompts
    would seem to save FLOPs. Upstream has no other place for that than its table of operators.
    """
    if 'mmengine' not in sys.modules:
        return
    try:
        from mmengine.analysis.complexity_analysis import _DEFAULT_SUPPORTED_FLOP_OPS
    except ImportError:  # another version, or without the packages that its tables need
        return
    _DEFAULT_SUPPORTED_FLOP_OPS.setdefault('aten::scaled_dot_product_attention', _count)


def _count(inputs: list, outputs: list) -> int:
    """Multiplications (as MMEngine counts them) of q kᵀ and of the weights with v, values of a traced graph."""
    query, key, value = (each.type().sizes() for each in inputs[:3])
    rows = 1
    for size in query[:-1]:
        rows *= size
    return rows * key[-2] * (query[-1] + value[-1])
