"""Weights in, weights out: official files, Hugging Face, timm, portable graphs, releases."""
