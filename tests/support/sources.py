"""Open a data set by some keys of its `data` section."""

from collections.abc import Mapping
from typing import Any

from msn.config.sections.data import Images
from msn.data.sources import Source, open_source


def opened(place: Mapping[str, Any], split: str = "train", **more: Any) -> Source:
    """Open a split; what the section would refuse reaches the source, as a probe's may."""
    return open_source(Images.model_construct(**{**place, **more}), split)
