"""Choose the settings of the demo, configs/quickstart.yaml, on 300 of the training digits."""

import sys

from harness import ROOT, RUNS, Run, Study, main
from held_out import HeldOut
from measures import pixels, untrained

from msn.config.sections.data import Images

FEWER = "criterion.num_proto=24"

STUDY = Study(
    name="demo",
    about="Settings of the demo on the digits.",
    images=HeldOut(Images(source="digits"), validation=300, folder=RUNS / "digits"),
    recipe=ROOT / "configs/quickstart.yaml",
    runs={
        "raw_pixels": Run(measure=pixels),
        "untrained": Run(measure=untrained),
        "proto24": Run((FEWER,)),
        "proto24_crops_no_blur": Run((FEWER, "data.rand_crop_scale=[0.4, 1.0]", "data.blur=0.0")),
        "proto24_patch3": Run(
            (FEWER, "meta.encoder.patch_size=3", "data.rand_size=15", "data.focal_size=9")
        ),
        "recipe": Run(),
        "proto128": Run(("criterion.num_proto=128",)),
        "less_jitter": Run(("data.color_jitter_strength=0.1",)),
        "drop15": Run(("data.patch_drop=0.15",)),
        "crops70": Run(("data.rand_crop_scale=[0.7, 1.0]",)),
        "focal2": Run(("data.rand_views=1", "data.focal_views=2")),
        "longer": Run(("optimization.epochs=80",)),
        "drop": Run(("data.patch_drop=0.5",)),
    },
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
