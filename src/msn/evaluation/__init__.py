"""Measure a representation with labels: on frozen features, or by fine-tuning."""
