"""Masked Siamese Networks: label-efficient self-supervised pre-training of Vision Transformers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msn.evaluation.frozen import load_encoder
    from msn.interop.pretraining import MSNForPreTraining
    from msn.train.api import evaluate, pretrain, reconstruct

__version__ = "0.1.0"
__all__ = ["MSNForPreTraining", "evaluate", "load_encoder", "pretrain", "reconstruct"]

_HOMES = {
    "MSNForPreTraining": "msn.interop.pretraining",
    "evaluate": "msn.train.api",
    "load_encoder": "msn.evaluation.frozen",
    "pretrain": "msn.train.api",
    "reconstruct": "msn.train.api",
}


def __getattr__(name: str) -> Any:
    # Looked up when it is used: `import msn` by itself loads no PyTorch.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
