"""Read and check a config file: it becomes one typed, immutable object.

Config files of the official MSN code load unchanged. `python -m msn.config > configs/schema.json`
writes the JSON schema for editors.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from msn.config.kinds import METHODS, Config, ConfigFile, MSNConfig
from msn.config.sections.data import Images
from msn.config.yaml_file import Document, explain, read
from msn.runtime.errors import UserError

File = TypeVar("File", bound=ConfigFile)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the config file of a pre-training experiment, see `load`."""
    return load(Config, path, overrides)


def stated_config(values: Mapping[str, Any], where: str) -> Config:
    """Check the config of a pre-training that a file states.

    Raises:
        UserError: as `load` does, naming `where` it stands.
    """
    return _validated(kind_of(Config, values), Document(where, dict(values), {}))


def kind_of(kind: type[File], values: Mapping[str, Any]) -> type[File]:
    """Find the class of a pre-training's file by the method that it names, MSN where none is."""
    meta = values.get("meta")
    name = meta.get("method") if isinstance(meta, dict) else None
    own = METHODS.get(name, MSNConfig) if isinstance(name, str) else MSNConfig
    return own if issubclass(own, kind) else kind


def load(kind: type[File], path: str | Path, overrides: Sequence[str] = ()) -> File:
    """Read a config file of the given kind, apply the overrides and check the result.

    Args:
        kind: what the file describes.
        path: a YAML file.
        overrides: `section.key=value` texts, the value in YAML; the last one of a key counts.

    Raises:
        UserError: one line with file and line (or override), key, value, rule and remedy of every
            problem found.
    """
    document = read(path)
    for text in overrides:
        document.override(text)
    kind = kind_of(kind, document.values)
    for name in kind.model_fields:
        if document.values.get(name) is None:  # absent or empty: what is required in it says so
            document.values[name] = {}
    return _validated(kind, document)


class _ImagesFile(ConfigFile):
    data: Images


def load_views(path: str | Path, overrides: Sequence[str]) -> Config:
    """Read the settings of the views from a config file; ignore other known keys, valid or not.

    Raises:
        UserError: as `load` does; of the file only the keys that views depend on are looked at,
            and those that no section has.
    """
    document = read(path)
    for text in overrides:
        document.override(text)
    kind = kind_of(Config, document.values)
    views = kind.section("data").model_fields.keys() - Images.model_fields.keys()
    values = {}
    for name, wanted in (
        ("data", views | {"channels"}),
        ("meta", {"method", "model_name", "encoder", "seed"}),
        ("criterion", {"mask_unit"}),
    ):
        given = document.values.get(name) or {}
        if isinstance(given, dict):
            aside = kind.section(name).model_fields.keys() - wanted
            given = {key: value for key, value in given.items() if key not in aside}
        values[name] = given
    if isinstance(values["data"], dict):
        values["data"]["source"] = "digits"  # which needs no place
    document.values = {**values, "logging": {"folder": "views"}}
    return _validated(kind, document)


def load_images(
    path: str | Path | None, overrides: Sequence[str], default: Mapping[str, Any]
) -> Images:
    """Read where images come from: the `data` section of a config file of any kind.

    Args:
        path: a YAML file; None starts from `default`.
        overrides: `data.key=value` texts.
        default: keys and values of the section.

    Raises:
        UserError: as `load` does; of the file only the keys of `Images` are looked at.
    """
    document = Document("data", {"data": dict(default)}, {}) if path is None else read(path)
    data = document.values.get("data") or {}
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key in Images.model_fields}
    document.values = {"data": data}
    for text in overrides:
        document.override(text)
    return _validated(_ImagesFile, document).data


def _validated(kind: type[File], document: Document) -> File:
    methods = METHODS if issubclass(kind, Config) else {}
    try:
        return kind.model_validate(document.values)
    except ValidationError as error:
        raise UserError(explain(error, document, kind, methods)) from None
