"""From a YAML file to a checked, frozen config."""
