"""The options of the commands, kept apart so that help loads none of the large libraries."""
