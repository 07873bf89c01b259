"""MMEngine's wrapper of models in several processes, for CPUs."""
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from torch import nn

from mmprovpt.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """Without ``device_ids``, and with BN in place of SyncBN, which works on GPUs alone.

    In one process MMEngine makes them BN itself. In the built model and not in the config, for classes have SyncBN as
    their default, too.

    Args:
        module: The model; it is changed.
        **kwargs: Of MMDistributedDataParallel.
    """

    def __init__(self, module: nn.Module, **kwargs) -> None:
        super().__init__(revert_sync_batchnorm(module), **dict(kwargs, device_ids=None))
