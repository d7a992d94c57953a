import contextlib
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from msn.config.kinds import FinetuneConfig, LinearConfig, MSNConfig
from msn.config.load import load_config
from msn.config.sections.logging import Probe
from msn.config.sections.meta import CONV_STEMS, MODEL_NAMES, PATCH_SIZES
from msn.config.sections.msn import PowerLaw
from tests.support.configs import MINIMAL

CONFIGS = Path(__file__).parents[2] / "configs"

# Keys and values of the config file that the official code ships for ViT-S/16 (facts).
OFFICIAL: dict[str, dict[str, Any]] = {
    "criterion": {
        "ent_weight": 0.0,
        "final_sharpen": 0.25,
        "me_max": True,
        "memax_weight": 1.0,
        "num_proto": 1024,
        "start_sharpen": 0.25,
        "temperature": 0.1,
        "batch_size": 64,
        "use_ent": True,
        "use_sinkhorn": True,
    },
    "data": {
        "color_jitter_strength": 0.5,
        "pin_mem": True,
        "num_workers": 10,
        "image_folder": "imagenet_full_size/061417/",
        "label_smoothing": 0.0,
        "patch_drop": 0.15,
        "rand_size": 224,
        "focal_size": 96,
        "rand_views": 1,
        "focal_views": 10,
        "root_path": "/datasets01/",
    },
    "logging": {"folder": "/checkpoint/msn/", "write_tag": "msn-experiment-1"},
    "meta": {
        "bottleneck": 1,
        "copy_data": False,
        "drop_path_rate": 0.0,
        "hidden_dim": 2048,
        "load_checkpoint": False,
        "model_name": "deit_small",
        "output_dim": 256,
        "read_checkpoint": None,
        "use_bn": True,
        "use_fp16": False,
        "use_pred_head": False,
    },
    "optimization": {
        "clip_grad": 3.0,
        "epochs": 800,
        "final_lr": 1e-6,
        "final_weight_decay": 0.4,
        "lr": 0.001,
        "start_lr": 0.0002,
        "warmup": 15,
        "weight_decay": 0.04,
    },
}

# Keys of ours, with the constants of the official code as defaults.
NEW_KEYS: dict[str, dict[str, Any]] = {
    "criterion": {
        "global_batch_size": None,
        "sinkhorn_iterations": 3,
        "prior": "uniform",
        "freeze_proto": False,
        "ensemble": 1,
        "ensemble_temperature": 0.05,
    },
    "data": {
        "source": "folder",
        "image_list": None,
        "image_key": None,
        "download": False,
        "scratch": None,
        "max_bad": 0.1,
        "mask_scope": "batch",
        "rand_crop_scale": (0.3, 1.0),
        "focal_crop_scale": (0.05, 0.3),
        "flip": 0.5,
        "color_jitter": 0.8,
        "grayscale": 0.2,
        "blur": 0.5,
        "augment_on": "cpu",
        "interpolation": "bilinear",
        "channels": None,
        "mean": None,
        "std": None,
    },
    "logging": {
        "checkpoint_freq": 25,
        "checkpoint_freq_itr": 2500,
        "keep": 1,
        "async_save": False,
        "log_freq": 10,
        "tensorboard": True,
        "probe": None,
    },
    "meta": {
        "method": "msn",
        "encoder": None,
        "precision": "auto",
        "seed": 0,
        "init_from": None,
        "allow_batch_change": False,
        "checkpoint_activations": False,
        "compile": False,
        "shard": False,
        "collective_timeout": 900.0,
        "two_layer": False,
    },
    "optimization": {"ema": (0.996, 1.0), "schedule_stretch": 1.25, "accumulate": 1},
}


def built(section: str = "data", /, **keys: Any) -> MSNConfig:
    values: dict[str, dict[str, Any]] = {"data": {"root_path": "r"}, "logging": {"folder": "f"}}
    values[section] = {**values.get(section, {}), **keys}
    return MSNConfig.model_validate(values)


def schema_facts(schema: dict[str, Any]) -> dict[str, Any]:
    """What the models state; how pydantic wraps it differs between its versions."""
    stated = ("description", "default", "enum", "minimum", "exclusiveMinimum", "maximum")
    return {
        f"{section}.{key}": {word: facts.get(word) for word in stated}
        for section, definition in schema["$defs"].items()
        for key, facts in definition["properties"].items()
    }


class TestDefaults:
    def test_official_file_loads_and_keeps_every_value(self, write: Any) -> None:
        config = load_config(write(yaml.safe_dump(OFFICIAL)))
        dumped = config.model_dump()
        for section, keys in OFFICIAL.items():
            assert {key: dumped[section][key] for key in keys} == keys

    def test_official_file_gets_the_official_constants(self, write: Any) -> None:
        dumped = load_config(write(yaml.safe_dump(OFFICIAL))).model_dump()
        for section, keys in NEW_KEYS.items():
            assert {key: dumped[section][key] for key in keys} == keys
            assert set(dumped[section]) == set(keys) | set(OFFICIAL[section])

    def test_defaults_are_the_official_values(self) -> None:
        dumped = built().model_dump()
        theirs = {s: dict(keys) for s, keys in OFFICIAL.items()}
        del theirs["data"]["image_folder"], theirs["data"]["root_path"]
        theirs["logging"] = {"write_tag": "msn"}
        theirs["criterion"]["use_ent"] = False  # with weight 0 either way
        for section, keys in theirs.items():
            assert {key: dumped[section][key] for key in keys} == keys

    def test_official_file_is_told_once_what_is_idle(self, write: Any) -> None:
        assert load_config(write(yaml.safe_dump(OFFICIAL))).notices() == [
            "without effect, as in the official code: "
            "meta.bottleneck, meta.use_pred_head, meta.use_fp16",
            "criterion.use_ent has no effect on the loss while criterion.ent_weight is 0",
        ]

    def test_shipped_pretraining_file_is_the_official_run(self) -> None:
        config = load_config(CONFIGS / "pretrain" / "msn_vits16.yaml")
        dumped = config.model_dump()
        for section in ("criterion", "data", "meta", "optimization"):
            keys = set(OFFICIAL[section]) - {"root_path", "image_folder", "use_ent"}
            assert {k: dumped[section][k] for k in keys} == {k: OFFICIAL[section][k] for k in keys}
        assert config.notices() == []

    def test_every_key_is_documented(self) -> None:
        def undocumented(model: type[BaseModel]) -> list[str]:
            return [n for n, field in model.model_fields.items() if not field.description]

        definitions = MSNConfig.json_schema()["$defs"]
        assert len(definitions) == 8
        for name, definition in definitions.items():
            assert definition["properties"], name
            for key, schema in definition["properties"].items():
                assert schema.get("description"), f"{name}.{key}"
        assert undocumented(PowerLaw) == []

    def test_schema_file_is_current(self) -> None:
        shipped = json.loads((CONFIGS / "schema.json").read_text())
        how = "run: python -m msn.config > configs/schema.json"
        assert schema_facts(shipped) == schema_facts(MSNConfig.json_schema()), how

    def test_import_needs_no_torch(self) -> None:
        heavy = "'torch' in sys.modules or 'numpy' in sys.modules"
        code = f"import sys, msn.config.load; sys.exit({heavy})"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_frozen_and_picklable(self) -> None:
        config = built()
        with pytest.raises(ValidationError, match="frozen"):
            config.data.flip = 0.1
        assert pickle.loads(pickle.dumps(config)) == config


class TestPaths:
    def test_all_keys_that_name_files_expand_the_home_folder(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", "/home/of/me")
        sections: list[Any] = [
            field.annotation
            for kind in (MSNConfig, LinearConfig, FinetuneConfig)
            for field in kind.model_fields.values()
        ]
        found: dict[str, set[str]] = {}
        for section in [*sections, Probe]:
            for name, field in section.model_fields.items():
                kind: Any = Annotated[(field.annotation, field)]
                with contextlib.suppress(ValidationError):
                    found.setdefault(TypeAdapter(kind).validate_python("~/x"), set()).add(name)
        assert found == {
            "~/x": {"device", "image_key"},
            "/home/of/me/x": {
                *("root_path", "image_folder", "image_list", "scratch", "subset", "folder"),
                *("pretrain_path", "read_checkpoint", "init_from", "prior"),
            },
        }

    def test_a_home_of_nobody_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="must be in the home folder of a user"):
            built("logging", folder="~nosuchuser/x")
        assert built("logging", folder="./~nosuchuser/x").logging.folder == "./~nosuchuser/x"


class TestModels:
    def test_patch_sizes_follow_the_names(self) -> None:
        assert len(MODEL_NAMES) == len(PATCH_SIZES) == 18
        for name, patch in PATCH_SIZES.items():
            assert patch == (int(name.split("_p")[1]) if "_p" in name else 16)
            assert built("meta", model_name=name).meta.patch_size == patch
        assert built("meta", model_name="vit_base_p8").meta.model_name == "deit_base_p8"

    def test_patch_size_of_a_sized_encoder(self) -> None:
        size = {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 4}
        meta = built("meta", encoder=size).meta
        assert (meta.patch_size, meta.model_name) == (4, None)
        assert meta.encoder is not None
        assert meta.encoder.mlp_ratio == 4.0

    @pytest.mark.parametrize("name", sorted(CONV_STEMS))
    def test_conv_stem_keeps_the_border(self, name: str) -> None:
        # Four convolutions of stride 2, kernel 3, padding 1: n -> floor((n - 1) / 2) + 1.
        for size in range(1, 100):
            side = size
            for _ in range(4):
                side = (side - 1) // 2 + 1
            assert built("meta", model_name=name).meta.grid(size) == side

    def test_patch_embedding_drops_the_border(self) -> None:
        assert built("meta", model_name="deit_large_p7").meta.grid(96) == 13

    @pytest.mark.parametrize(
        ("prior", "parsed"),
        [
            ("uniform", "uniform"),
            ("weights.txt", "weights.txt"),
            ("power_law", PowerLaw(power_law=0.25)),
            ({"power_law": 1}, PowerLaw(power_law=1.0)),
        ],
    )
    def test_prior(self, prior: object, parsed: object) -> None:
        assert built("criterion", prior=prior).criterion.prior == parsed


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.focal_views=0", "data.focal_size=3"],
        ["data.focal_size=224"],
        ["data.patch_drop=0.994"],
        ["data.patch_drop=0"],
        ["criterion.batch_size=1", "meta.use_bn=false"],
        ["optimization.warmup=800"],
        ["data.rand_crop_scale=[1, 1]"],
        ["data.color_jitter_strength=2.5"],
        ["data.source=digits", "data.root_path="],
        ["meta.load_checkpoint=true"],
        ["criterion.me_max=yes"],
        ["data.mean=[0]", "data.std=[1]"],
        ["data.source=list", "data.image_list=a.csv", "data.root_path="],
        ["data.source=cifar10", "data.download=true"],
        ["data.rand_size=3", "data.focal_size=1", "data.patch_drop=0", "meta.model_name=vitc_4gf"],
    ],
)
def test_allowed_at_the_edge(write: Any, overrides: list[str]) -> None:
    config = load_config(write(MINIMAL), overrides)
    for override in overrides:
        name, _, text = override.partition("=")
        section, key = name.split(".")
        value = yaml.safe_load(text)
        expected = tuple(value) if isinstance(value, list) else value
        assert getattr(getattr(config, section), key) == expected


@given(patches=st.integers(1, 60), drop=st.floats(0, 1, exclude_max=True))
def test_patch_drop_must_leave_a_patch(patches: int, drop: float) -> None:
    size = {"patch_size": 2, "embed_dim": 4, "depth": 1, "num_heads": 1}
    values: dict[str, Any] = {
        "data": {"root_path": "r", "rand_size": 2 * patches + 1, "patch_drop": drop},
        "logging": {"folder": "f"},
        "meta": {"encoder": size},
    }
    kept = math.floor(patches**2 * (1.0 - drop))
    if kept >= 1:
        MSNConfig.model_validate(values)
        return
    with pytest.raises(ValidationError, match="keeps 0 of") as caught:
        MSNConfig.model_validate(values)
    values["data"]["patch_drop"] = float(str(caught.value).split("at most ")[1].split()[0])
    MSNConfig.model_validate(values)  # the remedy works


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"source": "idx", "root_path": None}, "root_path: the idx source needs it"),
        ({"source": "list"}, "image_list: the list source needs it"),
        ({"source": "folder", "download": True}, "download: only for cifar10, cifar100, stl10"),
        ({"source": "imagenet"}, "'folder', 'list', 'tar'"),
    ],
)
def test_sources_say_what_they_need(keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        built("data", **keys)
    assert problem in str(caught.value)


def test_shipped_fashion_mnist_file_is_whole() -> None:
    config = load_config(CONFIGS / "pretrain" / "fashion_mnist.yaml")
    assert (config.data.source, config.notices()) == ("idx", [])


@pytest.mark.parametrize(
    ("overrides", "notice"),
    [
        (["meta.bottleneck=1"], "without effect, as in the official code: meta.bottleneck"),
        (["meta.two_layer=true"], "without effect, as in the official code: meta.two_layer"),
        (["meta.use_fp16=true"], "meta.use_fp16 is true but has no effect; use meta.precision"),
        (
            ["meta.copy_data=true", "data.source=digits", "data.root_path=null"],
            "meta.copy_data has no eff",
        ),
        (["meta.read_checkpoint=a"], "meta.read_checkpoint has no effect while"),
        (["criterion.use_ent=true"], "criterion.use_ent has no effect on the loss"),
        (["criterion.ent_weight=1"], "criterion.ent_weight has no effect"),
        (["criterion.prior=power_law"], "criterion.use_sinkhorn draws the targets to uniform use"),
        (["criterion.prior=p", "criterion.me_max=false"], "criterion.prior has no effect"),
        (["meta.model_name=deit_large_p7"], "data.focal_size 96 is not a multiple of the patch si"),
        (["data.rand_size=230"], "data.rand_size 230 is not a multiple of the patch size 16: the "),
    ],
)
def test_notice(write: Any, overrides: list[str], notice: str) -> None:
    notices = load_config(write(MINIMAL), overrides).notices()
    assert sum(line.startswith(notice) for line in notices) == 1
    assert all(line.isprintable() for line in notices)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["meta.copy_data=true"],
        ["meta.load_checkpoint=true", "meta.read_checkpoint=a"],
        ["criterion.prior=power_law", "criterion.use_sinkhorn=false"],
        ["meta.model_name=deit_large_p7", "data.focal_views=0"],
        ["meta.model_name=vitc_4gf", "data.rand_size=230"],
    ],
)
def test_no_notice(write: Any, overrides: list[str]) -> None:
    assert load_config(write(MINIMAL), overrides).notices() == []


def test_notice_counts_the_lost_pixels() -> None:
    [notice] = built("meta", model_name="deit_large_p7").notices()
    assert "patch size 7: the last 5 rows" in notice  # 96 = 13 * 7 + 5


POSITIVE = st.floats(1e-300, 1000)
DIVISOR = st.floats(0.0001, 1000)
FRACTION = st.floats(0, 1)
COUNT = st.integers(1, 10**9)
# A leading ~ names the home folder of a user, who may not be there.
TEXT = st.text(min_size=1).filter(lambda text: text[0] != "~") | st.sampled_from(
    ["1e-3", "yes", "null", "*a", "!x", "2024-01-01", "1:30", "0x1", "=", "<<", "#", "a:", "\x85"]
)


def section(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


CONFIG = st.fixed_dictionaries(
    {
        "data": st.fixed_dictionaries(
            {"root_path": TEXT},
            optional={
                "image_folder": TEXT,
                "rand_crop_scale": st.lists(st.floats(1e-300, 1), min_size=2, max_size=2).map(
                    sorted
                ),
                "mean": st.none() | st.just([0.5, 0.5, 0.5]),
                "std": st.none() | st.lists(DIVISOR, min_size=3, max_size=3),
                "flip": FRACTION,
                "mask_scope": st.sampled_from(["batch", "global", "image"]),
                "rand_size": st.integers(48, 1000),
            },
        ),
        "logging": st.fixed_dictionaries(
            {"folder": TEXT},
            optional={
                "tensorboard": st.booleans(),
                "log_freq": COUNT,
                "probe": st.none() | section(every=COUNT, k=COUNT, max_images=st.none() | COUNT),
            },
        ),
        "criterion": section(
            num_proto=st.integers(2, 10**6),
            temperature=DIVISOR,
            prior=TEXT | section(power_law=st.floats(-9, 9)).filter(bool),
            use_ent=st.booleans(),
            ent_weight=FRACTION,
        ),
        "meta": section(
            model_name=st.sampled_from(MODEL_NAMES), use_fp16=st.booleans(), bottleneck=COUNT
        )
        | st.fixed_dictionaries(
            {
                "encoder": st.fixed_dictionaries(
                    {"patch_size": st.integers(1, 24), "embed_dim": st.integers(1, 9999)}
                    | {"depth": st.integers(1, 7), "num_heads": st.just(1)},
                    optional={"mlp_ratio": st.floats(1, 64)},
                )
            }
        ),
        "optimization": section(
            lr=POSITIVE | st.integers(0, 9),
            clip_grad=st.none() | POSITIVE,
            ema=st.tuples(FRACTION, FRACTION),
        ),
    }
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(values=CONFIG)
@pytest.mark.slow
def test_dump_is_read_back(values: dict[str, Any], tmp_path: Path) -> None:
    config = MSNConfig.model_validate(values)
    path = tmp_path / "dump.yaml"
    path.write_bytes(config.dump_yaml().encode())
    again = load_config(path)
    assert again == config
    assert again.notices() == config.notices()


def test_dump_has_every_key_that_has_an_effect() -> None:
    dumped = yaml.safe_load(built().dump_yaml())
    idle = {"bottleneck", "two_layer", "use_pred_head", "use_fp16"}
    for name, keys in dumped.items():
        assert set(keys) == (set(OFFICIAL[name]) | set(NEW_KEYS[name])) - idle
