"""Pre-training methods, a module or folder each."""

from importlib import import_module

from msn.config.kinds import Config
from msn.methods.base import Cost, Fact, Method, Output

__all__ = ["Cost", "Fact", "Method", "Output", "method_of"]


def method_of(config: Config) -> type[Method]:
    """Find the method that `meta.method` names: `METHOD` in the module `msn.methods.NAME`."""
    method: type[Method] = import_module(f"msn.methods.{config.meta.method}").METHOD
    return method
