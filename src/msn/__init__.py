"""Masked Siamese Networks: label-efficient self-supervised pre-training of Vision Transformers."""
