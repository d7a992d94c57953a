"""Views of MSN with settings of a test's own."""

from typing import Any

from msn.config.sections.msn import MSNData
from msn.data.draws import ViewSpec
from msn.methods.msn.model import view_kinds


def data_section(**settings: Any) -> MSNData:
    """A `data` section; what is left out is as in the official config."""
    return MSNData(source="digits", **settings)


def view_spec(**settings: Any) -> ViewSpec:
    """The views that such a section asks for."""
    data = data_section(**settings)
    return ViewSpec(view_kinds(data), data)
