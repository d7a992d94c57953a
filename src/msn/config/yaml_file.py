"""Read YAML with the line of each key, and explain errors by file and line."""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from msn.config.sections.msn import PRIOR_TAGS
from msn.config.sections.resnet import ENCODER_TAGS
from msn.runtime.errors import UserError
from msn.runtime.files import open_regular

MAX_BYTES = 64 * 1024
MAX_PROBLEMS = 10
EXTENDS = "extends"
"""Key of a file for another one, relative to its folder, whose keys it takes over."""
INT_TAG = "tag:yaml.org,2002:int"
INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$")
FLOAT_TAG = "tag:yaml.org,2002:float"
PLAIN_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
EXPONENT_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
"""Numbers such as 1e-3, which PyYAML by itself takes for text."""

TAGS = (*PRIOR_TAGS, *ENCODER_TAGS)
"""What pydantic puts into the path of a key that may be one of several things."""

RULES = {
    "missing": "is missing; set it",
    "int_type": "must be a whole number",
    "float_type": "must be a number, without quotes",
    "bool_type": "must be true or false",
    "string_type": "must be text; put it in quotes",
    "tuple_type": "must be a list, such as [0.3, 1.0]",
    "model_type": "must be a mapping of keys to values",
    "finite_number": "must be finite",
    "string_too_short": "must not be empty",
}
"""What the types of pydantic's errors mean to the author of a config file."""

KeyPath = tuple[str | int, ...]
Where = Callable[[yaml.Mark | None], str]


@dataclass
class Document:
    """The values of a config file and, by key path, the place (file:line, override) of each."""

    name: str
    values: dict[str, Any]
    places: dict[KeyPath, str]

    def place(self, path: KeyPath) -> str:
        """Tell where the key at `path`, or the nearest section around it, was given."""
        ends = range(len(path), 0, -1)
        return next(
            (self.places[path[:end]] for end in ends if path[:end] in self.places), self.name
        )

    def override(self, text: str) -> None:
        """Apply an override `section.key=value`, creating a section that is absent or null.

        Raises:
            UserError: not of that form, not YAML, or below a key that holds a plain value.
        """
        place = f"override '{text}'"
        dotted, equals, value = text.partition("=")
        path = tuple(part.strip() for part in dotted.split("."))
        if not equals or len(path) < 2 or not all(path):
            raise _error(place, "must have the form section.key=value")
        section = self.values
        for depth, key in enumerate(path[:-1], start=1):
            if section.get(key) is None:
                section[key] = {}
                self.places[path[:depth]] = place
            section = section[key]
            if not isinstance(section, dict):
                key = _dotted(path[:depth])
                raise _error(
                    place, f"{key} is {_shown(section)} in the file; override {key} itself"
                )
        self.places = {p: at for p, at in self.places.items() if p[: len(path)] != path}
        section[path[-1]] = _parse(value, path, lambda mark: place, self.places)


def read(path: str | Path) -> Document:
    """Read a YAML file whose top level is a mapping, and the file that it `extends`, if any.

    A section of the extended file keeps the keys that are not given anew.

    Raises:
        UserError: unreadable, too large, not UTF-8, not YAML, an alias, empty, a key given twice,
            a file that extends itself.
    """
    document, files = _read_alone(str(path)), [Path(path)]
    while EXTENDS in document.values:
        other, place = document.values.pop(EXTENDS), document.places.pop((EXTENDS,))
        if not isinstance(other, str) or not other:
            raise _error(place, f"{EXTENDS} = {_shown(other)}: must be the path of a YAML file")
        base = files[-1].parent / other
        if base.resolve() in [file.resolve() for file in files]:
            raise _error(place, f"{EXTENDS}: {other} is a file that this one extends; remove it")
        files.append(base)
        document = _overlaid(_read_alone(str(base), f"{place}: {EXTENDS}: "), document)
    return document


def _overlaid(base: Document, over: Document) -> Document:
    """Put the keys of a document over those of the one that it extends."""
    values, places = dict(base.values), dict(base.places)
    for section, keys in over.values.items():
        old = values.get(section)
        if isinstance(old, dict) and (isinstance(keys, dict) or keys is None):
            values[section] = {**old, **(keys or {})}
            gone: set[KeyPath] = {(section, key) for key in keys or ()}
        else:
            values[section] = keys
            gone = {(section,)}
        places = {path: at for path, at in places.items() if gone.isdisjoint((path[:1], path[:2]))}
    return Document(over.name, values, {**places, **over.places})


def _read_alone(name: str, asked: str = "") -> Document:
    """Read a file without what it extends; `asked` tells in an error where its name stands."""
    try:
        with open_regular(name) as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _error(
            f"{asked}{name}", f"cannot be read ({reason}); give the path of a YAML file"
        ) from None
    if len(content) > MAX_BYTES:
        raise _error(name, f"is larger than {MAX_BYTES // 1024} KiB; give a config file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _error(f"{name}:{line}", "is not UTF-8 text; save the file as UTF-8") from None
    places: dict[KeyPath, str] = {}
    values = _parse(text, (), lambda mark: f"{name}:{mark.line + 1}" if mark else name, places)
    if values is None:
        raise _error(name, "is empty; start from one of the files in configs/")
    if not isinstance(values, dict):
        raise _error(places[()], "must be a mapping of sections (criterion, data, ...) at the top")
    del places[()]
    return Document(name, values, places)


def explain(
    error: ValidationError,
    document: Document,
    model: type[BaseModel],
    methods: Mapping[str, type[BaseModel]],
) -> str:
    """Describe in one line the problems pydantic found: place, key, value, rule and remedy.

    Args:
        error: what pydantic found.
        document: that it read.
        model: of such files.
        methods: models of the same files for each method, which may know a key that `model` does
            not.
    """
    problems = [
        line
        for details in error.errors(include_url=False)
        for line in _explain(details, document, model, methods)
    ]
    more = len(problems) - MAX_PROBLEMS
    return _printable("; ".join(problems[:MAX_PROBLEMS]) + (f"; and {more} more" * (more > 0)))


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, and without aliases (a bomb) and tags (types)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            problem = "aliases (*) and tags (!) are not supported; write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


# Without the numbers of YAML 1.1 that nobody means: 1:30 is 90 there, and 010 is 8.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (INT_TAG, FLOAT_TAG)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(INT_TAG, INT, list("-+0123456789"))
_Loader.add_implicit_resolver(FLOAT_TAG, PLAIN_FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver(FLOAT_TAG, EXPONENT_FLOAT, list("-+.0123456789"))


def _parse(text: str, path: KeyPath, where: Where, places: dict[KeyPath, str]) -> Any:
    """Parse a YAML text that stands at `path`, and fill `places` at and below that path."""
    try:
        node = _Loader(text).get_single_node()
        if node is None:
            places[path] = where(None)
            return None
        return _value(node, path, where, places)
    except yaml.MarkedYAMLError as error:
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise _error(where(error.problem_mark or error.context_mark), f"YAML: {problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        mark = yaml.Mark("", error.position, line, 0, None, 0)
        raise _error(where(mark), "YAML: an unprintable character; remove it") from None
    except RecursionError:
        raise _error(where(None), "YAML: nested too deeply") from None


def _value(node: yaml.Node, path: KeyPath, where: Where, places: dict[KeyPath, str]) -> Any:
    places.setdefault(path, where(node.start_mark))
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, i), where, places) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, where, places)
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except (ValueError, OverflowError):
        problem = f"{_dotted(path)} = {_shown(node.value)}: not a number or date; quote it if text"
        raise _error(places[path], problem) from None


def _mapping(
    node: yaml.MappingNode, path: KeyPath, where: Where, places: dict[KeyPath, str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = where(key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode):
            raise _error(place, "a key must be a plain word")
        inner = (*path, key_node.value)
        if key_node.value in values:
            raise _error(place, f"{_dotted(inner)}: given before, at {places[inner]}; remove one")
        places[inner] = place
        values[key_node.value] = _value(value_node, inner, where, places)
    return values


def _explain(
    details: ErrorDetails,
    document: Document,
    model: type[BaseModel],
    methods: Mapping[str, type[BaseModel]],
) -> Iterator[str]:
    path = tuple(part for part in details["loc"] if part not in TAGS)
    if details["type"] == "rules":
        for key, rule in details["ctx"]["problems"]:
            inner = (*path, *key.split("."))
            yield f"{document.place(inner)}: {_dotted(inner)}: {rule}"
        return
    key = f"{document.place(path)}: {_dotted(path)}"
    if details["type"] == "extra_forbidden":
        yield f"{key}: unknown key; {_owners(path, methods) or _suggestion(path, model)}"
    elif details["type"] == "missing":
        yield f"{key}: {RULES['missing']}"
    else:
        yield f"{key} = {_shown(details['input'])}: {_rule(details)}"


def _rule(details: ErrorDetails) -> str:
    if details["type"] in RULES:
        return RULES[details["type"]]
    if details["type"] == "literal_error":
        names = re.findall(r"'([^']*)'", details["ctx"]["expected"])
        close = difflib.get_close_matches(str(details["input"]), names, n=1)
        return f"did you mean '{close[0]}'?" if close else f"must be {details['ctx']['expected']}"
    rule = re.sub(r"^(Value error, |(Input|Tuple) should )", "", details["msg"])
    rule = rule.replace("greater than or equal to", "at least").replace(" after validation", "")
    rule = rule.replace("less than or equal to", "at most")
    rule = re.sub(r"(?<![.\w])[0-9]{4,}(?![.\w])", lambda number: f"{int(number[0]):,}", rule)
    return rule if rule.startswith("must") else f"must {rule}"


def _owners(path: KeyPath, methods: Mapping[str, type[BaseModel]]) -> str:
    """Tell which methods have the key at `path`, if one has."""
    section, key = map(str, path[:2]) if len(path) == 2 else ("", "")
    owners = [
        name
        for name, model in methods.items()
        if section in model.model_fields
        and key in next(_models(model.model_fields[section].annotation)).model_fields
    ]
    return f"it is one of meta.method: {' and '.join(owners)}; remove it" if owners else ""


def _suggestion(path: KeyPath, model: type[BaseModel]) -> str:
    """Suggest what the author of the unknown key at `path` may have meant."""
    unknown = str(path[-1])
    sections = {name: next(_models(f.annotation)) for name, f in model.model_fields.items()}
    elsewhere = [f"{name}.{unknown}" for name, s in sections.items() if unknown in s.model_fields]
    if elsewhere:
        return f"did you mean '{elsewhere[0]}'?"
    models = [model]
    for part in map(str, path[:-1]):
        fields = [each.model_fields[part] for each in models if part in each.model_fields]
        models = [inner for field in fields for inner in _models(field.annotation)]
    names = list(dict.fromkeys(name for each in models for name in each.model_fields))
    close = difflib.get_close_matches(unknown, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models inside a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _dotted(path: KeyPath) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _error(place: str, problem: str) -> UserError:
    return UserError(_printable(f"{place}: {problem}"))
