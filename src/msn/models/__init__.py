"""Vision Transformers, the projection head, patch masks and MSN itself."""
