"""Weights in and out: official files, Hugging Face, timm, portable graphs, releases."""
