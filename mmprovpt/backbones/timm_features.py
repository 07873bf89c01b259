"""Maps of a timm model behind its last norm."""
from typing import Any

from timm.models._features import FeatureGetterNet


class NormedFeatures(FeatureGetterNet):
    """What ``features_only`` makes of a model with ``forward_intermediates``, whose own option no config reaches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs, norm=True)
