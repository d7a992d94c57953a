"""Neural networks: encoder, projection head, classifiers, and patch masks."""
