"""ResNets of any size in a config file."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from msn.config import sizes
from msn.config.kinds import ConfigFile
from msn.config.load import load
from msn.config.sections.base import Section
from msn.config.sections.meta import EncoderSize
from msn.config.sections.resnet import AnyEncoder, ResNetSize
from msn.runtime.errors import UserError


class Meta(Section):
    encoder: AnyEncoder | None = None


class File(ConfigFile):
    NO_EFFECT: ClassVar[dict[str, tuple[str, ...]]] = {}
    meta: Meta = Meta()  # type: ignore[assignment]


def loaded(folder: Path, encoder: str) -> Any:
    (folder / "a.yaml").write_text(f"meta: {{encoder: {encoder}}}\n", encoding="utf-8")
    return load(File, folder / "a.yaml", [])


def test_either_kind_is_recognized_by_its_keys(tmp_path: Path) -> None:
    file = loaded(tmp_path, "{layers: [1, 2, 1, 1], width: 16}")
    assert isinstance(file.meta.encoder, ResNetSize)
    assert file.meta.encoder.size == sizes.ResNetSize("bottleneck", (1, 2, 1, 1), 16)
    (tmp_path / "b.yaml").write_text(file.dump_yaml(), encoding="utf-8")
    assert load(File, tmp_path / "b.yaml", []) == file
    file = loaded(tmp_path, "{patch_size: 4, embed_dim: 8, depth: 1, num_heads: 2}")
    assert isinstance(file.meta.encoder, EncoderSize)


@pytest.mark.parametrize(
    ("encoder", "said"),
    [
        ("{width: 16}", r"meta\.encoder\.layers: is missing; set it"),
        ("{layers: [1, 1, 1]}", r"meta\.encoder\.layers"),
        ("{layers: [1, 1, 1, 0]}", r"meta\.encoder\.layers\[3\] = 0: must be at least 1"),
        ("{layers: [1, 1, 1, 1], block: big}", r"meta\.encoder\.block = \"big\""),
        ("{layers: [1, 1, 1, 1], widht: 8}", r"unknown key; did you mean 'width'"),
        ("{layers: [1, 1, 1, 1], block: basic, groups: 2}", "are for block: bottleneck"),
        (
            "{layers: [1, 1, 1, 1], width: 8, group_width: 4}",
            "4 leaves a group no channel at width 8; use at least 8",
        ),
        ("{layers: [1, 1, 1, 1000], width: 65536}", "makes about .* weights; lower it"),
        ("{depth: 1}", r"meta\.encoder\.patch_size: is missing"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, encoder: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        loaded(tmp_path, encoder)
