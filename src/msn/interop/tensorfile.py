"""Read files and folders of tensors from elsewhere, without running code from them."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from msn.interop import valid
from msn.interop.weights import Tensors
from msn.runtime import checkpoint
from msn.runtime.errors import UserError

MAX_JSON_BYTES = 16 * 2**20
SINGLE = ("model.safetensors", "pytorch_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def require_file(path: Path) -> None:
    """Refuse a path that exists but is not a file, such as a pipe, which would be waited for.

    Raises:
        UserError: it is.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is neither a file nor a folder; give one that holds weights")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserError: missing, too large, or not that.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
        value = json.loads(content) if len(content) <= MAX_JSON_BYTES else None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object; check that the file is whole")
    return value


def read_tensors(folder: Path) -> Tensors:
    """Read the tensors of a model folder: one file, or shards with an index.

    Raises:
        UserError: there are none, a shard is missing or damaged.
    """
    for name in SINGLE:
        if (folder / name).exists():
            return read_file(folder / name)
    for name in INDICES:
        if (folder / name).exists():
            return _read_shards(folder, read_json(folder / name).get("weight_map"), name)
    raise UserError(f"{folder}: holds no weights; {' or '.join(SINGLE)} is expected there")


def read_file(path: Path) -> Tensors:
    """Read the tensors of one file, of safetensors or torch.

    Raises:
        UserError: missing, damaged, holding code, or not tensors by name.
    """
    require_file(path)
    if path.suffix != ".safetensors":
        return valid.dense(checkpoint.load(path, None), str(path))
    try:
        # Not mapped into memory: a file replaced while in use would end the process.
        return load(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except KeyError as error:
        raise UserError(f"{path}: holds numbers of a type that torch has not ({error})") from None
    except (SafetensorError, OSError, ValueError, RuntimeError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: truncated, damaged, or not safetensors ({reason})") from None


def _read_shards(folder: Path, weight_map: Any, index: str) -> Tensors:
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise UserError(f"{folder / index}: has no weight_map of names to files")
    tensors: Tensors = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise UserError(f"{folder / index}: names a file outside the folder ({file!r})")
        tensors |= read_file(folder / file)
    missing = [name for name in weight_map if name not in tensors]
    if missing:
        lacking = checkpoint.listed([checkpoint.shown(name) for name in missing])
        raise UserError(f"{folder}: the shards lack {lacking}; download the folder again")
    return tensors
