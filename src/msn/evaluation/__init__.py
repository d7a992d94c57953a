"""What a frozen representation is worth: each module takes features and returns a result."""
