import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from msn.config.kinds import FinetuneConfig, LinearConfig, MSNConfig
from msn.config.load import load, load_config
from msn.config.sections.base import Section
from msn.config.sections.evaluation import AugmentedImages
from msn.config.yaml_file import read
from msn.runtime.errors import UserError
from tests.support.configs import MINIMAL


def refusal(path: Path, *overrides: str) -> str:
    """The one-line message, with the folder of the file cut off."""
    with pytest.raises(UserError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert message.isprintable()
    return message.replace(f"{path.parent}/", "")


def outcome(path: Path, *overrides: str) -> str:
    try:
        load_config(path, overrides)
    except UserError as error:
        return str(error)
    return ""


class TestReading:
    @pytest.mark.parametrize("number", ["1e-3", "1E-3", "+1e-3", ".1e-2", "10e-4", "1.e-3"])
    def test_exponents_without_a_point_are_numbers(self, write: Any, number: str) -> None:
        assert yaml.safe_load("1e-3") == "1e-3"  # why this needs care
        config = load_config(write(f"{MINIMAL}optimization: {{lr: {number}, warmup: 2}}"))
        assert config.optimization.lr == 0.001
        assert isinstance(config.optimization.warmup, float)

    def test_overrides(self, write: Any) -> None:
        config = load(
            MSNConfig,
            write(MINIMAL + "meta:\n"),
            [
                "optimization.lr=1e-4",
                "logging.probe.every=2",
                "logging.probe.k=5",
                "meta.encoder={patch_size: 4, embed_dim: 64, depth: 3, num_heads: 4}",
                "meta.encoder.depth=4",
                "data.rand_crop_scale=[0.5, 1]",
                "data.root_path=/a=b",
                "optimization.clip_grad=null",
                "criterion.num_proto=8",
                "criterion.num_proto=16",
            ],
        )
        assert config.optimization.lr == 1e-4
        assert config.logging.probe is not None
        assert (config.logging.probe.every, config.logging.probe.k) == (2, 5)
        assert config.meta.encoder is not None
        assert config.meta.encoder.depth == 4
        assert config.data.rand_crop_scale == (0.5, 1.0)
        assert config.data.root_path == "/a=b"
        assert config.optimization.clip_grad is None
        assert config.criterion.num_proto == 16

    def test_override_is_named_for_what_it_creates(self, write: Any) -> None:
        path = write(MINIMAL)
        assert refusal(path, "dta.flip=1").startswith("override 'dta.flip=1': dta: unknown key")
        size = "meta.encoder.depth=4"
        assert refusal(path, size).startswith(f"override '{size}': meta.encoder.patch_size: is mis")

    def test_override_mends_a_wrong_value(self, write: Any) -> None:
        path = write(MINIMAL + "criterion: {num_proto: 1}")
        assert load(MSNConfig, path, ["criterion.num_proto=2"]).criterion.num_proto == 2

    def test_byte_order_mark_and_crlf(self, write: Any) -> None:
        text = b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode()
        assert load_config(write(text)).logging.folder == "runs/a"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "a.yaml: is empty; start from one of the files in configs/"),
            ("# nothing\n", "a.yaml: is empty; start from one of the files in configs/"),
            ("- 1", "a.yaml:1: must be a mapping of sections (criterion, data, ...) at the top"),
            ("\n5", "a.yaml:2: must be a mapping of sections (criterion, data, ...) at the top"),
            (
                "a: 1\nb: c: d",
                "a.yaml:2: YAML: mapping values are not allowed here",
            ),
            ("a: 1\n---\nb: 1", "a.yaml:2: YAML: expected a single document in the stream, "),
            ("a: &x 1\nb: *x", "a.yaml:2: YAML: aliases (*) and tags (!) are not supported; "),
            ("\nb: !!python/name:os.system", "a.yaml:2: YAML: aliases (*) and tags (!) are not "),
            ("a: 1\nb: \x07", "a.yaml:2: YAML: an unprintable character; remove it"),
            ("a: 1\n? [1]\n: 2", "a.yaml:2: a key must be a plain word"),
            ("data:\n  t: 2024-13-45", 'a.yaml:2: data.t = "2024-13-45": not a number or date'),
            ("data: " + "9" * 5000, 'a.yaml:1: data = "9999'),
            ("[" * 9000, "a.yaml: YAML: nested too deeply"),
            ("a: " * 30000, "a.yaml: is larger than 64 KiB; give a config file"),
            (b"a: 1\nb: \xe9", "a.yaml:2: is not UTF-8 text; save the file as UTF-8"),
            (
                "data:\n  flip: 0.1\n  blur: 0\n  flip: 0.2",
                "a.yaml:4: data.flip: given before, at a.yaml:2; remove one",
            ),
        ],
    )
    @pytest.mark.slow
    def test_unreadable(self, write: Any, content: str | bytes, message: str) -> None:
        assert refusal(write(content)).startswith(message)

    def test_alias_bomb_is_refused_at_once(self, write: Any) -> None:
        lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 64)]
        assert "aliases" in refusal(write("\n".join(lines)))

    def test_numbers_as_people_mean_them(self, write: Any) -> None:
        written = ["1_000", "0x10", "0b11", "-0", "+5", "1.", ".5", "1:30", "010", "08", "1:0.5"]
        values = [1000, 16, 3, 0, 5, 1.0, 0.5, "1:30", "010", "08", "1:0.5"]
        assert read(write(f"a: [{', '.join(written)}]")).values["a"] == values
        config = load_config(write(MINIMAL), ["logging.write_tag=12:30"])
        assert config.logging.write_tag == "12:30"

    def test_only_regular_files_are_read(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path / "pipe", Path("/dev/zero")):
            with pytest.raises(UserError, match=r"cannot be read \(not a regular file\); give"):
                load_config(path)

    def test_missing_file_and_directory(self, tmp_path: Path) -> None:
        path = tmp_path / "no.yaml"
        assert refusal(path).startswith("no.yaml: cannot be read (No such file or directory); give")
        with pytest.raises(UserError, match=r"cannot be read \(Is a directory\)"):
            load_config(tmp_path)
        with pytest.raises(UserError, match=r"cannot be read \(embedded null byte\)"):
            load_config("a\0b")


def unbounded(section: type[Section]) -> Iterator[str]:
    """Numeric keys of a section, and of those in it, that lack a lower or an upper bound."""
    schema = section.model_json_schema()
    for name, definition in {section.__name__: schema, **schema.get("$defs", {})}.items():
        for key, facts in definition.get("properties", {}).items():
            for number in numbers(facts):
                low = {"minimum", "exclusiveMinimum"} & set(number)
                if not (low and {"maximum", "exclusiveMaximum"} & set(number)):
                    yield f"{name}.{key}"


def numbers(facts: Any) -> Iterator[dict[str, Any]]:
    if isinstance(facts, list):
        for item in facts:
            yield from numbers(item)
    if isinstance(facts, dict):
        if facts.get("type") in ("integer", "number"):
            yield facts
        for key in ("anyOf", "oneOf", "items", "prefixItems"):
            yield from numbers(facts.get(key))


def test_every_number_has_a_range() -> None:
    idle = {"MSNMeta.bottleneck", "LinearMeta.master_port", "FinetuneMeta.master_port"}
    checked_by_hand = {f"{name}.num_workers" for name in ("MSNData", "LabeledImages")}
    checked_by_hand.add("AugmentedImages.num_workers")
    for kind in (MSNConfig, LinearConfig, FinetuneConfig):
        assert set(unbounded(kind)) <= idle | checked_by_hand


def test_rand_augment_takes_what_timm_takes(tmp_path: Path) -> None:
    check = AugmentedImages.model_fields["auto_augment"].metadata[-1].func
    for text in ("", "rand-m9-mstd0.5-inc1", "rand-m10-p1-n30-inc1", "rand-m9-p0.25-mmax12"):
        assert check(text) == text
    for text in ("rand-p1.2.3", "rand-n100000000", "rand-m٩", "rand-mstd1.2.3", "rand-p7"):
        with pytest.raises(ValueError, match="must be such as"):
            check(text)


def test_several_problems_in_one_line(write: Any) -> None:
    text = """\
criterion:
  num_proto: 1
  temperature: warm
  memax_wieght: 5
meta:
  model_name: deit_smal
data: {root_path: /images}
"""
    assert refusal(write(text)).split("; a") == [
        "a.yaml: logging.folder: is missing; set it",
        ".yaml:2: criterion.num_proto = 1: must be at least 2",
        '.yaml:3: criterion.temperature = "warm": must be a number, without quotes',
        ".yaml:4: criterion.memax_wieght: unknown key; did you mean 'memax_weight'?",
        ".yaml:6: meta.model_name = \"deit_smal\": did you mean 'deit_small'?",
    ]


def test_many_problems_are_cut(write: Any) -> None:
    text = MINIMAL + "".join(f"key{i}: 0\n" for i in range(100))
    message = refusal(write(text))
    assert message.count("unknown key") == 10
    assert message.endswith("; and 90 more")


# Each line: an override (or several) of MINIMAL, and what the message must say after its place.
REFUSED: list[tuple[list[str] | str, str]] = [
    # keys
    ("data.rand_view=2", "data.rand_view: unknown key; did you mean 'rand_views'?"),
    ("dta.rand_views=2", "dta: unknown key; did you mean 'data'?"),
    ("data.batch_size=2", "data.batch_size: unknown key; did you mean 'criterion.batch_size'?"),
    ("logging.probe.evry=2", "logging.probe.evry: unknown key; did you mean 'every'?"),
    ("criterion.prior={x: 1, power_law: 1}", "criterion.prior.x: unknown key; known: power_law"),
    ("meta.encoder={patch_size: 4, embed_dim: 8, depth: 1}", "meta.encoder.num_heads: is missing"),
    # the form of overrides
    ("flip", "must have the form section.key=value"),
    ("data=1", "must have the form section.key=value"),
    ("data..flip=1", "must have the form section.key=value"),
    ("data.root_path.a=1", 'data.root_path is "/images" in the file; override data.root_path '),
    ("data.flip=[1", "YAML: while parsing a flow sequence"),
    ("data.flip=*a", "YAML: aliases"),
    # types
    ("criterion.num_proto=true", "criterion.num_proto = true: must be a whole number"),
    ("criterion.num_proto=8.0", "criterion.num_proto = 8.0: must be a whole number"),
    (
        "criterion.num_proto=9999999999",
        "criterion.num_proto = 9999999999: must be at most 1,0",
    ),
    ("criterion.temperature=true", "criterion.temperature = true: must be a number"),
    ("criterion.temperature='1e-3'", 'criterion.temperature = "1e-3": must be a number, without'),
    ("criterion.temperature=", "criterion.temperature = null: must be a number"),
    ("criterion.me_max=1", "criterion.me_max = 1: must be true or false"),
    ("criterion.me_max='yes'", 'criterion.me_max = "yes": must be true or false'),
    ("logging.folder=5", "logging.folder = 5: must be text; put it in quotes"),
    ("logging.folder=", "logging.folder = null: must be text"),
    ("logging.folder=''", 'logging.folder = "": must not be empty'),
    ("logging.probe=[1]", "logging.probe = [1]: must be a mapping of keys to values"),
    ("data.rand_crop_scale=0.3", "data.rand_crop_scale = 0.3: must be a list"),
    ("data.rand_crop_scale=[0.3]", "data.rand_crop_scale[1]: is missing; set it"),
    ("data.rand_crop_scale=[.3, 1, 1]", "data.rand_crop_scale = [0.3, 1, 1]: must have at most 2"),
    ("data.channels=true", "data.channels = true: must be a whole number"),
    ("data.mean=[.5, true, .5]", "data.mean[1] = true: must be a number"),
    ("criterion.prior=[1]", "criterion.prior = [1]: must be text"),
    ("criterion.prior.power_law=x", 'criterion.prior.power_law = "x": must be a number'),
    # not finite
    ("optimization.lr=.nan", "optimization.lr = NaN: must be finite"),
    ("optimization.lr=1e999", "optimization.lr = Infinity: must be finite"),
    ("optimization.ema=[.nan, 1]", "optimization.ema[0] = NaN: must be finite"),
    ("data.mean=[.inf, 0, 0]", "data.mean[0] = Infinity: must be finite"),
    ("criterion.prior.power_law=.inf", "criterion.prior.power_law = Infinity: must be finite"),
    # ranges
    ("criterion.batch_size=0", "criterion.batch_size = 0: must be at least 1"),
    ("criterion.num_proto=1", "criterion.num_proto = 1: must be at least 2"),
    ("criterion.temperature=0", "criterion.temperature = 0: must be at least 0.0001"),
    ("criterion.start_sharpen=0", "criterion.start_sharpen = 0: must be at least 0.0001"),
    ("criterion.final_sharpen=-1", "criterion.final_sharpen = -1: must be at least 0.0001"),
    ("criterion.memax_weight=-1", "criterion.memax_weight = -1: must be at least 0"),
    ("criterion.ent_weight=-1", "criterion.ent_weight = -1: must be at least 0"),
    ("criterion.sinkhorn_iterations=0", "criterion.sinkhorn_iterations = 0: must be at least 1"),
    ("data.label_smoothing=1", "data.label_smoothing = 1: must be less than 1"),
    ("data.patch_drop=1.0", "data.patch_drop = 1.0: must be less than 1"),
    ("data.patch_drop=-0.1", "data.patch_drop = -0.1: must be at least 0"),
    ("data.rand_views=0", "data.rand_views = 0: must be at least 1"),
    ("data.focal_views=-1", "data.focal_views = -1: must be at least 0"),
    (
        "data.num_workers=-1",
        'data.num_workers = -1: must be "auto" or a whole number from 0 to 1,000',
    ),
    ("data.rand_crop_scale=[0, 1]", "data.rand_crop_scale[0] = 0: must be greater than 0"),
    ("data.rand_crop_scale=[.3, 1.1]", "data.rand_crop_scale[1] = 1.1: must be at most 1"),
    ("data.focal_crop_scale=[.3, .1]", "data.focal_crop_scale = [0.3, 0.1]: must be [smallest, "),
    ("data.flip=1.1", "data.flip = 1.1: must be at most 1"),
    ("data.blur=-0.1", "data.blur = -0.1: must be at least 0"),
    ("data.grayscale=2", "data.grayscale = 2: must be at most 1"),
    ("data.color_jitter=2", "data.color_jitter = 2: must be at most 1"),
    ("data.color_jitter_strength=-1", "data.color_jitter_strength = -1: must be at least 0"),
    ("data.color_jitter_strength=2.6", "data.color_jitter_strength = 2.6: must be at most 2.5"),
    ("data.channels=0", "data.channels = 0: must be at least 1"),
    ("data.std=[1, 0, 1]", "data.std[1] = 0: must be at least 0.0001"),
    ("data.source=digit", "data.source = \"digit\": did you mean 'digits'?"),
    (
        "data.source=web",
        "data.source = \"web\": must be 'folder', 'list', 'tar', 'idx', 'cifar10', 'cifar100',"
        " 'stl10', 'stl10_unlabeled', 'digits' or 'huggingface'",
    ),
    ("logging.checkpoint_freq=0", "logging.checkpoint_freq = 0: must be at least 1"),
    ("logging.checkpoint_freq_itr=0", "logging.checkpoint_freq_itr = 0: must be at least 1"),
    ("logging.log_freq=0", "logging.log_freq = 0: must be at least 1"),
    ("logging.probe.every=-1", "logging.probe.every = -1: must be at least 0"),
    ("logging.probe.temperature=0", "logging.probe.temperature = 0: must be at least 0.0001"),
    ("logging.write_tag=''", 'logging.write_tag = "": must be a plain file name'),
    ("logging.write_tag=a/b", 'logging.write_tag = "a/b": must be a plain file name'),
    ("logging.write_tag=a\\b", 'logging.write_tag = "a\\\\b": must be a plain file name'),
    ("logging.write_tag=..", 'logging.write_tag = "..": must be a plain file name'),
    ('logging.write_tag="a\\0"', 'logging.write_tag = "a\\u0000": must be a plain file name'),
    ("meta.model_name=deit_base_p6", 'meta.model_name = "deit_base_p6": did you mean \'deit_base'),
    ("meta.model_name=convnext", "meta.model_name = \"convnext\": must be 'deit_tiny', "),
    ("meta.method=dino", "meta.method = \"dino\": must be 'msn'"),
    ("meta.drop_path_rate=1", "meta.drop_path_rate = 1: must be less than 1"),
    ("meta.seed=-1", "meta.seed = -1: must be at least 0"),
    ("optimization.epochs=0", "optimization.epochs = 0: must be at least 1"),
    ("optimization.lr=-1e-3", "optimization.lr = -0.001: must be at least 0"),
    ("optimization.clip_grad=0", "optimization.clip_grad = 0: must be greater than 0"),
    ("optimization.ema=[0.9, 1.1]", "optimization.ema[1] = 1.1: must be at most 1"),
    ("optimization.schedule_stretch=.9", "optimization.schedule_stretch = 0.9: must be at least 1"),
    ("optimization.accumulate=0", "optimization.accumulate = 0: must be at least 1"),
    ("data.rand_size=100000", "data.rand_size = 100000: must be at most 4,096"),
    ("data.mean=[0.5, 116.3, 0.5]", "data.mean[1] = 116.3: must be at most 1"),
    ("meta.hidden_dim=2147483647", "meta.hidden_dim = 2147483647: must be at most 65,536"),
    ("optimization.schedule_stretch=1e308", "optimization.schedule_stretch = 1e+308: must be at "),
    ("criterion.prior.power_law=1e9", "criterion.prior.power_law = 1000000000.0: must be at most"),
    # numbers of YAML 1.1 that nobody means
    ("optimization.epochs=1:30", 'optimization.epochs = "1:30": must be a whole number'),
    ("optimization.epochs=0100", 'optimization.epochs = "0100": must be a whole number'),
    ("data.flip=0:0.5", 'data.flip = "0:0.5": must be a number, without quotes'),
    # combinations
    (
        "meta.encoder={patch_size: 4, embed_dim: 8, depth: 100000000, num_heads: 1}",
        "meta.encoder.depth = 100000000: must be at most 1,000",
    ),
    (
        "meta.encoder={patch_size: 4, embed_dim: 65536, depth: 1000, num_heads: 1}",
        "meta.encoder.depth: 1000 blocks of embed_dim 65536 have 5.2e+13 weights; lower either",
    ),
    (
        "meta.encoder={patch_size: 4, embed_dim: 8, depth: 1, num_heads: 1, mlp_ratio: 0.1}",
        "meta.encoder.mlp_ratio: 0.1 leaves an MLP no unit at embed_dim 8; use at least 0.125",
    ),
    ("data.root_path=", "data.root_path: the folder source needs it; set it, or use data.source"),
    ("data.focal_size=15", "data.focal_size: 15 px is smaller than a patch; use at least 16"),
    ("data.rand_size=15", "data.rand_size: 15 px is smaller than a patch; use at least 16"),
    ("data.patch_drop=.995", "data.patch_drop: 0.995 keeps 0 of the 196 patches of a random view"),
    ("criterion.batch_size=1", "criterion.batch_size: 1 gives the head's BatchNorm a single"),
    ("optimization.epochs=9", "optimization.warmup: 15 epochs are longer than the run of 9; lower"),
    (["data.channels=1", "data.mean=[0, 0, 0]"], "data.mean: has 3 numbers; give one for each of"),
    ("data.std=[1, 1]", "data.std: has 2 numbers; give one for each of 1 or 3 channels"),
    (["data.mean=[0]", "data.std=[1, 1, 1]"], "data.std: has 3 numbers, mean 1; give as many"),
    ("meta.model_name=resnet50", 'meta.model_name = "resnet50": must be a ViT: patches are drop'),
    ("meta.model_name=", "meta.model_name: is null and there is no meta.encoder; give either"),
    (
        [
            "meta.encoder={patch_size: 4, embed_dim: 64, depth: 1, num_heads: 4}",
            "meta.model_name=deit_tiny",
        ],
        "meta.model_name: deit_tiny and meta.encoder are both given; drop either",
    ),
    (
        "meta.encoder={patch_size: 4, embed_dim: 64, depth: 1, num_heads: 3}",
        "meta.encoder.embed_dim: 64 is not a multiple of num_heads 3; change either",
    ),
    (
        ["data.source=digits", "data.root_path=", "logging.probe={source: folder}"],
        "logging.probe.root_path: the folder source needs it; set it, or logging.probe.source",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[str(o) for o, _ in REFUSED])
def test_refused(write: Any, overrides: list[str] | str, message: str) -> None:
    given = [overrides] if isinstance(overrides, str) else overrides
    text = refusal(write(MINIMAL), *given)
    place = text.partition(": " + message)[0]
    # A broken combination may be due to keys that no override gave.
    elsewhere = {"a.yaml", "a.yaml:1"} if " = " not in message else set()
    assert place in {f"override '{o}'" for o in given} | elsewhere, text
    assert text.count("a.yaml") + text.count("override '") == 1, text


YAMLISH = st.text(st.sampled_from("ab:[]{},-?!&*#|>'\"%@ \n\t.0e1~=<\0\x07é\ud800"), max_size=40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    content=st.binary(max_size=60)
    | YAMLISH.map(lambda t: t.encode(errors="surrogatepass"))
    | YAMLISH.map(lambda t: f"{MINIMAL}  write_tag: {t}".encode(errors="surrogatepass")),
    override=YAMLISH | YAMLISH.map(lambda t: f"data.flip={t}"),
)
def test_whatever_is_given_the_error_is_one_line(content: bytes, override: str, write: Any) -> None:
    path = write(content)
    assert outcome(path).isprintable()
    assert outcome(path, override).isprintable()


class TestExtends:
    """A file takes over the keys of another one, which its errors go on naming by file and line."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        (tmp_path / "below").mkdir()
        (tmp_path / "base.yaml").write_text(
            "data: {source: digits, flip: 0.25, rand_crop_scale: [0.5, 1.0]}\n"
            "logging: {folder: runs/base}\n"
            "meta:\n"
            "  encoder: {patch_size: 4, embed_dim: 8, depth: 1, num_heads: 2}\n"
            "optimization: {epochs: 7, warmup: 2, lr: 0.5}\n",
            encoding="utf-8",
        )
        (tmp_path / "below/middle.yaml").write_text(
            "extends: ../base.yaml\noptimization: {lr: 0.25}\n"
            "meta:\n  encoder: {patch_size: 2, embed_dim: 16, depth: 3, num_heads: 4}\n",
            encoding="utf-8",
        )
        return tmp_path

    def write(self, place: Path, text: str) -> Path:
        path = place / "own.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    def test_what_is_not_given_is_taken_over(self, place: Path) -> None:
        text = "extends: below/middle.yaml\nmeta:\ndata: {rand_crop_scale: [0.3, 1]}\n"
        config = load(MSNConfig, self.write(place, text), ["optimization.warmup=1"])
        assert config.optimization.epochs == 7  # from two files below
        assert config.optimization.lr == 0.25  # from one
        assert config.optimization.warmup == 1
        assert config.data.rand_crop_scale == (0.3, 1.0)
        assert config.data.flip == 0.25
        assert config.meta.encoder is not None
        assert config.meta.encoder.depth == 3  # a key replaces the whole of that key
        written = place / "written.yaml"
        written.write_text(config.dump_yaml(), encoding="utf-8")
        assert "extends" not in written.read_text("utf-8")
        assert load_config(written) == config

    def test_errors_name_the_file_of_the_key(self, place: Path) -> None:
        path = self.write(place, "extends: base.yaml\ndata: {focal_views: -1}\n")
        text = (place / "base.yaml").read_text("utf-8").replace("lr: 0.5", "lr: -1")
        (place / "base.yaml").write_text(text, encoding="utf-8")
        message = refusal(path)
        assert "own.yaml:2: data.focal_views = -1" in message
        assert "base.yaml:5: optimization.lr = -1" in message
        assert "base.yaml" not in refusal(path, "optimization.lr=1")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("extends: other.yaml", "own.yaml:1: extends: other.yaml: cannot be read (No such"),
            ("extends: own.yaml", "own.yaml:1: extends: own.yaml is a file that this one extends"),
            ("extends: [a]", 'own.yaml:1: extends = ["a"]: must be the path of a YAML file'),
            ("data: {extends: base.yaml}", "data.extends: unknown key"),
        ],
    )
    def test_what_cannot_be_extended(self, place: Path, text: str, said: str) -> None:
        assert said in refusal(self.write(place, text))

    def test_circle_over_two_files(self, place: Path) -> None:
        (place / "base.yaml").write_text("extends: below/middle.yaml\n", encoding="utf-8")
        said = "base.yaml:1: extends: below/middle.yaml is a file that this one extends; remove it"
        assert said in refusal(self.write(place, "extends: below/middle.yaml\n"))
