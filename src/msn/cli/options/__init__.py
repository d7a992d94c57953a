"""The options of the commands, apart from their work: help needs none of the large libraries."""
