"""The paper's ablations in small, on Fashion-MNIST: what each choice of MSN is worth.

Tables 7 (masks), 8 (mask ratio), 9 (what differs between the views), 11 (Sinkhorn and the weight of
mean-entropy maximization), 12 (prototypes), 15 and 16 (patches dropped from images of a trained
encoder) of arXiv 2204.07141.
"""

import sys

import torch
from harness import Run, Study, main
from measures import Scores, Splits, features_of, labels_of, score, trained
from methods import FASHION, RECIPES

import msn
from msn.config.kinds import Config, MSNConfig
from msn.data.draws import ViewKind
from msn.methods.msn.model import FOCAL, MSN, RANDOM, TARGET
from msn.models.encoder import MSN_TAPS

LENGTH = "optimization.epochs=8"
NO_FOCAL = "data.focal_views=0"
NO_MASK = "data.patch_drop=0.0"
HALF = "data.patch_drop=0.5"
SHARES = (0.15, 0.3, 0.5, 0.7, 0.9)  # of dropped patches, Table 16
WHOLE = ("data.blur=0.0", "data.rand_crop_scale=[1.0, 1.0]", "data.flip=0.0", NO_FOCAL, HALF)
"""Anchor and target are the same crop, which is the whole image."""


class FocalOnly(MSN):
    """MSN whose only anchor is a focal view; nothing is masked."""

    @classmethod
    def view_kinds(cls, config: Config) -> tuple[ViewKind, ...]:
        assert isinstance(config, MSNConfig)
        data = config.data
        return (
            ViewKind(TARGET, 1, data.rand_size, data.rand_crop_scale),
            ViewKind(RANDOM, 1, data.focal_size, data.focal_crop_scale),
            ViewKind(FOCAL, 0, data.focal_size, data.focal_crop_scale),
        )


def focal_only(config: Config, splits: Splits) -> Scores:
    """Pre-train with focal anchors alone, and measure the encoder."""
    return trained(config, splits, method=FocalOnly)


def with_dropped_patches(config: Config, splits: Splits) -> Scores:
    """Add what Tables 15 and 16 measure: learning from dropped patches, and how features change."""
    scores = trained(config, splits)
    encoder = msn.load_encoder(msn.pretrain(config, device="cpu"))
    _, queries = features_of(encoder, splits)
    dropped, _ = features_of(encoder, splits, MSN_TAPS._replace(mask=0.7))
    few = score(dropped, queries, *map(labels_of, splits))
    scores |= {f"{name}, 70 % dropped": few[name] for name in ("5 a class", "1 %") if name in few}
    for share in SHARES:
        masked = features_of(encoder, splits, MSN_TAPS._replace(mask=share))[1]
        similarity = torch.cosine_similarity(masked, queries).mean().item()
        scores[f"cosine, {share:.0%} dropped"] = round(100 * similarity, 2)
    return scores


def _run(paper: str, *changes: str) -> Run:
    return Run((LENGTH, *changes), paper=paper)


# "recipe" is also a row of Table 8 (.3), of Table 11 (Sinkhorn, weight 1) and of Table 12 (128).
STUDY = Study(
    name="ablations",
    about="The paper's ablations in small: Fashion-MNIST, 0.44 million images seen.",
    images=FASHION,
    recipe=RECIPES / "fashion_mnist.yaml",
    runs={
        "recipe": Run((LENGTH,), with_dropped_patches, paper="69.6; 66.4; 69.5"),
        "unmasked": Run((LENGTH, NO_MASK), with_dropped_patches),
        "7_no_mask": _run("49.3", NO_FOCAL, NO_MASK),
        "7_focal": Run((LENGTH, NO_FOCAL, NO_MASK), focal_only, paper="39.3"),
        "7_random": _run("52.3", NO_FOCAL, HALF),
        "7_both": _run("59.8", "data.focal_views=1", HALF),
        "8_drop_15": _run("68.8", "data.patch_drop=0.15"),
        "8_drop_50": _run("", HALF),
        "8_drop_70": _run("", "data.patch_drop=0.7"),
        "9_same": _run("7.0", *WHOLE, "data.color_jitter=0.0"),
        "9_jitter": _run("48.7", *WHOLE),
        "9_all": _run("52.3", NO_FOCAL, HALF, "data.blur=0.5"),
        "11_none_1": _run("60.8", "criterion.use_sinkhorn=false"),
        "11_none_5": _run("67.2", "criterion.use_sinkhorn=false", "criterion.memax_weight=5.0"),
        "12_32": _run("67.6", "criterion.num_proto=32"),
        "12_512": _run("69.5", "criterion.num_proto=512"),
    },
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
