"""Compare pre-training methods on Fashion-MNIST: one encoder, as many images seen, few labels."""

import sys
from functools import partial

from harness import ROOT, RUNS, Run, Study, main
from held_out import HeldOut
from measures import PATCHES, Scores, Splits, pixels, supervised, trained, untrained

from msn.config.kinds import Config
from msn.config.sections.data import Images

RECIPES = ROOT / "configs/pretrain"
FASHION = HeldOut(
    Images(source="idx", root_path="/usr/share/datasets/fashion-mnist"),
    validation=5000,
    folder=RUNS / "fashion_mnist",
)
LENGTH = "optimization.epochs=26"  # of 55,000 images: as many as 24 epochs of all
ENCODER = "meta.encoder={patch_size: 7, embed_dim: 96, depth: 6, num_heads: 4, mlp_ratio: 2}"
ALIKE = (
    LENGTH,
    "data.num_workers=0",
    "data.augment_on=device",
    "data.image_size=28",
    "data.crop_scale=[0.4, 1.0]",
    "data.flip=0.5",
    "criterion.batch_size=128",
    "optimization.warmup=2",
    "optimization.lr_batch=null",
    "optimization.start_lr=2e-4",
    "optimization.lr=1.5e-3",
)
"""What methods of one view share with the recipe of MSN."""


def lightly(config: Config, splits: Splits) -> Scores:
    """Pre-train with lightly's MSN, and measure the encoder."""
    from lightly_method import LightlyMSN

    return trained(config, splits, method=LightlyMSN)


STUDY = Study(
    name="methods",
    about="Pre-training methods on Fashion-MNIST, 1.43 million images seen.",
    images=FASHION,
    recipe=RECIPES / "fashion_mnist.yaml",
    runs={
        "raw_pixels": Run(measure=pixels),
        "untrained": Run(measure=untrained),
        "supervised": Run(measure=supervised),
        "msn": Run((LENGTH,)),
        "pmsn": Run(
            (
                LENGTH,
                "criterion.prior=power_law",
                "criterion.use_sinkhorn=false",
                "criterion.memax_weight=4.0",
            )
        ),
        "lightly_msn": Run((LENGTH,), lightly),
        "mae": Run(
            (*ALIKE, ENCODER),
            partial(trained, taps=PATCHES),  # which predict the pixels
            RECIPES / "fashion_mnist_mae.yaml",
        ),
        "simmim": Run(
            (
                *(*ALIKE, ENCODER, "criterion.mask_unit=7"),
                *("meta.positions=learned", "meta.layer_scale=null"),
            ),
            partial(trained, taps=PATCHES),
            RECIPES / "fashion_mnist_simmim.yaml",
        ),
        "simmim_resnet": Run(
            (*ALIKE, "data.image_size=32"),
            recipe=RECIPES / "fashion_mnist_simmim_resnet50.yaml",
        ),
    },
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
