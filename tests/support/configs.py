"""Config files written by tests."""

MINIMAL = """\
data:
  root_path: /images
logging:
  folder: runs/a
"""
