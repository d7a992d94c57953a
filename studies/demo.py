"""Choose the settings of the demo, configs/quickstart.yaml, on 300 of the training digits."""

import sys

from harness import ROOT, RUNS, Run, Study, main
from held_out import HeldOut
from measures import pixels, untrained

from msn.config.sections.data import Images

PROTO = "criterion.num_proto=64"

STUDY = Study(
    name="demo",
    about="Settings of the demo on the digits.",
    images=HeldOut(Images(source="digits"), validation=300, folder=RUNS / "digits"),
    recipe=ROOT / "configs/quickstart.yaml",
    runs={
        "raw_pixels": Run(measure=pixels),
        "untrained": Run(measure=untrained),
        "recipe": Run(),
        "crops_no_blur": Run(("data.rand_crop_scale=[0.4, 1.0]", "data.blur=0.0")),
        "patch3": Run(
            ("meta.encoder.patch_size=3", "data.rand_size=15", "data.focal_size=9"),
        ),
        "proto64": Run((PROTO,)),
        "proto128": Run(("criterion.num_proto=128",)),
        "proto64_less_jitter": Run((PROTO, "data.color_jitter_strength=0.1")),
        "proto64_drop15": Run((PROTO, "data.patch_drop=0.15")),
        "proto64_crops70": Run((PROTO, "data.rand_crop_scale=[0.7, 1.0]")),
        "proto64_focal2": Run((PROTO, "data.rand_views=1", "data.focal_views=2")),
        "proto64_longer": Run((PROTO, "optimization.epochs=80")),
        "proto64_drop": Run((PROTO, "data.patch_drop=0.5")),
    },
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
