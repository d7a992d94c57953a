"""The sections of a config file: every key, its default, its range and its meaning.

Sections and key names are those of the official MSN code; keys that are new here default to the
official behavior. `msn.config.load.Config` is the whole file.
"""
