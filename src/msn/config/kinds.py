"""The kinds of config files: a pre-training by each method, a linear evaluation, a fine-tuning."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from msn.config.sections.base import Section
from msn.config.sections.criterion import Criterion
from msn.config.sections.data import Data, ImageData
from msn.config.sections.evaluation import (
    AugmentedImages,
    EvaluationLogging,
    EvaluationMeta,
    FinetuneCriterion,
    FinetuneMeta,
    FinetuneOptimization,
    LabeledImages,
    LinearMeta,
    LinearOptimization,
)
from msn.config.sections.logging import Logging, RunLogging
from msn.config.sections.mae import MAECriterion, MAEData, MAEMeta, MAEOptimization
from msn.config.sections.meta import CONV_STEMS, Meta, RunMeta
from msn.config.sections.msn import MSNCriterion, MSNData, MSNMeta, MSNOptimization
from msn.config.sections.optimization import Optimization
from msn.config.sections.simmim import (
    SimMIMCriterion,
    SimMIMMeta,
    SimMIMOptimization,
    mask_problems,
)
from msn.config.yaml_file import EXPONENT_FLOAT, EXTENDS, FLOAT_TAG


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line, quotes text that looks like 1e-3, and never writes an alias."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Dumper.add_implicit_resolver(FLOAT_TAG, EXPONENT_FLOAT, list("-+.0123456789"))
_Dumper.add_representer(
    tuple, lambda dumper, t: dumper.represent_sequence("tag:yaml.org,2002:seq", t, flow_style=True)
)
_Dumper.add_representer(  # PyYAML by itself loses U+0085, a line break to it
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)


class ConfigFile(Section):
    """A whole file: a mapping of sections."""

    NO_EFFECT: ClassVar[dict[str, tuple[str, ...]]] = {}
    """By section, keys that official files hold and that change nothing."""

    if TYPE_CHECKING:
        meta: RunMeta

    @classmethod
    def section(cls, name: str) -> type[Section]:
        """Find the class of a section."""
        found = cls.model_fields[name].annotation
        assert isinstance(found, type)
        return found

    def dump_yaml(self) -> str:
        """Serialize the resolved config as YAML that `load` reads back to an equal config.

        Keys without effect are left out unless they were given.
        """
        unused = {
            section: set(keys) - getattr(self, section).model_fields_set
            for section, keys in self.NO_EFFECT.items()
        }
        values = self.model_dump(exclude=unused)
        return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def notices(self) -> list[str]:
        """List what a user may not expect, one line each, to be shown once at the start."""
        return []

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Build the JSON schema of this kind of config file, for editors."""
        schema = cls.model_json_schema()
        schema["properties"][EXTENDS] = {
            "description": "Another config file, relative to this one, whose keys it takes over.",
            "type": "string",
        }
        schema.pop("required", None)  # of a file alone: what is missing may be in the other
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


class RunFile(ConfigFile):
    """A file that describes a run, whatever it trains."""

    logging: RunLogging


class Config(RunFile):
    """What every pre-training has, by whatever method; methods add their keys."""

    data: Data
    logging: Logging
    criterion: Criterion = Criterion()
    meta: Meta = Meta()
    optimization: Optimization = Optimization()

    @property
    def image_size(self) -> int:
        """Side of the whole images that the encoder sees, px."""
        raise NotImplementedError

    def _problems(self) -> Iterator[tuple[str, str]]:
        probe = self.logging.probe
        if probe and probe.source == "folder" and not (probe.root_path or self.data.root_path):
            rule = "the folder source needs it"
            yield "logging.probe.root_path", f"{rule}; set it, or logging.probe.source: digits"

    def notices(self) -> list[str]:
        return [*self._idle_keys(), *self._surprises()]

    def _idle_keys(self) -> Iterator[str]:
        meta = self.meta
        if meta.copy_data and not self.data.root_path:
            yield "meta.copy_data has no effect without data.root_path"
        if meta.read_checkpoint and not meta.load_checkpoint:
            yield "meta.read_checkpoint has no effect while meta.load_checkpoint is false"

    def _surprises(self) -> Iterator[str]:
        yield from ()


class MSNConfig(Config):
    """A whole pre-training by MSN."""

    NO_EFFECT: ClassVar[dict[str, tuple[str, ...]]] = {
        "meta": ("bottleneck", "two_layer", "use_pred_head", "use_fp16")
    }

    data: MSNData
    criterion: MSNCriterion = MSNCriterion()
    meta: MSNMeta = MSNMeta()
    optimization: MSNOptimization = MSNOptimization()

    @property
    def image_size(self) -> int:
        return self.data.rand_size

    def _problems(self) -> Iterator[tuple[str, str]]:
        yield from super()._problems()
        data, meta, patch = self.data, self.meta, self.meta.patch_size
        for key, size in self._view_sizes():
            if not meta.grid(size):
                yield key, f"{size} px is smaller than a patch; use at least {patch}"
        patches = meta.grid(data.rand_size) ** 2
        if patches and math.floor(patches * (1.0 - data.patch_drop)) < 1:
            most = math.floor(100 * (1 - 1 / patches)) / 100
            rule = f"{data.patch_drop} keeps 0 of the {patches} patches of a random view"
            yield "data.patch_drop", f"{rule}; use at most {most:g}"
        for batch in ("batch_size", "global_batch_size"):
            if meta.use_bn and getattr(self.criterion, batch) == 1:
                rule = "1 gives the head's BatchNorm a single target view"
                yield f"criterion.{batch}", f"{rule}; use at least 2, or meta.use_bn: false"

    def _view_sizes(self) -> Iterator[tuple[str, int]]:
        yield "data.rand_size", self.data.rand_size
        if self.data.focal_views:
            yield "data.focal_size", self.data.focal_size

    def _idle_keys(self) -> Iterator[str]:
        meta, criterion = self.meta, self.criterion
        idle = [f"meta.{key}" for key in self.NO_EFFECT["meta"] if key in meta.model_fields_set]
        if idle:
            yield f"without effect, as in the official code: {', '.join(idle)}"
        if meta.use_fp16:
            yield "meta.use_fp16 is true but has no effect; use meta.precision: bf16"
        yield from super()._idle_keys()
        if criterion.use_ent and not criterion.ent_weight:
            yield "criterion.use_ent has no effect on the loss while criterion.ent_weight is 0"
        if criterion.ent_weight and not criterion.use_ent:
            yield "criterion.ent_weight has no effect while criterion.use_ent is false"
        if criterion.prior != "uniform" and not (criterion.me_max and criterion.memax_weight):
            yield "criterion.prior has no effect without criterion.me_max and a memax_weight"

    def _surprises(self) -> Iterator[str]:
        if self.criterion.prior != "uniform" and self.criterion.use_sinkhorn:
            rule = "criterion.use_sinkhorn draws the targets to uniform use, against"
            yield f"{rule} criterion.prior; consider criterion.use_sinkhorn: false"
        patch = self.meta.patch_size
        for key, size in self._view_sizes():
            if size % patch and self.meta.model_name not in CONV_STEMS:
                rule = f"{key} {size} is not a multiple of the patch size {patch}"
                yield f"{rule}: the last {size % patch} rows and columns of pixels are not seen"


class ImageConfig(Config):
    """A pre-training with one view of each image."""

    data: ImageData

    @property
    def image_size(self) -> int:
        return self.data.image_size


class SimMIMConfig(ImageConfig):
    """A whole pre-training by SimMIM."""

    criterion: SimMIMCriterion = SimMIMCriterion()
    meta: SimMIMMeta = SimMIMMeta()
    optimization: SimMIMOptimization = SimMIMOptimization()

    def _problems(self) -> Iterator[tuple[str, str]]:
        yield from super()._problems()
        yield from mask_problems(self.data, self.criterion, self.meta)


class MAEConfig(ImageConfig):
    """A whole pre-training by MAE."""

    data: MAEData
    criterion: MAECriterion = MAECriterion()
    meta: MAEMeta = MAEMeta()
    optimization: MAEOptimization = MAEOptimization()

    def _problems(self) -> Iterator[tuple[str, str]]:
        yield from super()._problems()
        criterion, meta, side = self.criterion, self.meta, self.data.image_size
        if meta.model_name in CONV_STEMS:
            yield "meta.model_name", f"{meta.model_name} has no patches to mask; use one with them"
        if side % meta.patch_size:
            rule = f"{side} is not a multiple of the patch size {meta.patch_size}"
            yield "data.image_size", f"{rule}; change it"
        if criterion.decoder_dim % criterion.decoder_heads:
            rule = f"{criterion.decoder_dim} is not a multiple of criterion.decoder_heads"
            yield "criterion.decoder_dim", f"{rule} {criterion.decoder_heads}; change either"


METHODS: dict[str, type[Config]] = {"msn": MSNConfig, "mae": MAEConfig, "simmim": SimMIMConfig}
"""By meta.method, what describes its files; a method that is not listed has the keys of MSN."""


class EvaluationFile(RunFile):
    """What linear evaluation and fine-tuning have in common."""

    NO_EFFECT: ClassVar[dict[str, tuple[str, ...]]] = {
        "meta": ("master_port", "device", "copy_data")
    }

    data: LabeledImages
    logging: EvaluationLogging
    meta: EvaluationMeta = EvaluationMeta()

    def notices(self) -> list[str]:
        idle = [key for key in self.NO_EFFECT["meta"] if key in self.meta.model_fields_set]
        return [f"without effect: {', '.join(f'meta.{key}' for key in idle)}"] if idle else []


class LinearConfig(EvaluationFile):
    """A linear evaluation."""

    meta: LinearMeta = LinearMeta()
    optimization: LinearOptimization = LinearOptimization()

    def notices(self) -> list[str]:
        unread = self.meta.protocol == "mae" and "normalize" in self.optimization.model_fields_set
        note = "without effect in meta.protocol: mae: optimization.normalize"
        return [*super().notices(), *([note] if unread else [])]


class FinetuneConfig(EvaluationFile):
    """A fine-tuning."""

    data: AugmentedImages
    criterion: FinetuneCriterion = FinetuneCriterion()
    meta: FinetuneMeta = FinetuneMeta()
    optimization: FinetuneOptimization = FinetuneOptimization()

    def _problems(self) -> Iterator[tuple[str, str]]:
        mixes = self.criterion.mixup or self.criterion.cutmix
        if mixes and self.optimization.batch_size % 2:
            rule = f"{self.optimization.batch_size} is odd, but images are mixed in pairs"
            yield "optimization.batch_size", f"{rule}; use an even number"
