"""Masked Siamese Networks: label-efficient self-supervised pre-training of Vision Transformers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msn.frozen import load_encoder

__all__ = ["load_encoder"]


def __getattr__(name: str) -> Any:
    # Looked up when it is used: `import msn` by itself loads no PyTorch.
    if name == "load_encoder":
        from msn.frozen import load_encoder

        return load_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
