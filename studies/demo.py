"""Choose the settings of the demo, configs/quickstart.yaml, on 300 of the training digits."""

import sys

from harness import ROOT, RUNS, Run, Study, main
from held_out import HeldOut
from measures import pixels, untrained

from msn.config.sections.data import Images

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
        "proto64": Run(("criterion.num_proto=64",)),
        "less_jitter": Run(("data.color_jitter_strength=0.1",)),
        "blur": Run(("data.blur=1.0",)),
        "crops": Run(("data.rand_crop_scale=[0.5, 1.0]",)),
        "focal2": Run(("data.rand_views=1", "data.focal_views=2")),
        "wide": Run(("meta.encoder.embed_dim=96", "meta.encoder.depth=4")),
    },
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
