"""The methods of pre-training."""
