"""What a picture is: pixels for people, and the numbers that keep it honest."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image

from msn.runtime.files import replacing, write_json


class Picture(Protocol):
    """Arrays that can be drawn."""

    def picture(self) -> np.ndarray:
        """Draw them: uint8 (height, width, 3), RGB."""
        ...

    def numbers(self) -> dict[str, Any]:
        """List the numbers of the picture, as JSON values."""
        ...


def write(path: Path, found: Picture, **about: Any) -> Path:
    """Write a picture as PNG to `path` and its numbers as JSON beside it, and give that path.

    Args:
        path: of the picture.
        found: what it shows.
        about: further entries for the JSON file.

    Raises:
        UserError: a file cannot be written.
    """
    with replacing(path) as temporary:
        PIL.Image.fromarray(found.picture()).save(temporary, format="PNG")
    numbers = path.with_suffix(".json")
    write_json(numbers, about | found.numbers())
    return numbers
