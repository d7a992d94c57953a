"""Images: where they come from, the views made of them, the order they are read in."""
