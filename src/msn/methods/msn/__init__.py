"""Masked Siamese Networks."""
