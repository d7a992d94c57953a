"""Masked Siamese Networks (arXiv 2204.07141), and PMSN, which differs in its prior."""

from msn.methods.msn.model import MSN as METHOD

__all__ = ["METHOD"]
