"""Processes, files and the machine."""
