"""The commands, a module each; `main` finds the one that is asked for."""
