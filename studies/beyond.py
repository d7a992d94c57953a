"""Beyond the recipe: settings of the reproduction, several heads, and PMSN on long-tailed data.

Ruan et al. (2023) retuned MSN: no Sinkhorn, mean-entropy maximization of weight 3 to 5, a narrower
head, a target that is sharpened over time; and let several heads learn on one encoder. PMSN
(2210.07277) is for data whose classes are not equally frequent: here the last class has a fiftieth
of the images of the first.
"""

import sys
from dataclasses import replace

from ablations import LENGTH
from harness import RUNS, Run, Study, main
from methods import FASHION, RECIPES

NO_SINKHORN = "criterion.use_sinkhorn=false"
RETUNED = (
    *(LENGTH, NO_SINKHORN, "criterion.memax_weight=4.0", "meta.hidden_dim=128"),
    *("criterion.start_sharpen=0.5", "criterion.final_sharpen=0.25"),
)
TAIL = replace(FASHION, tail=50.0, folder=RUNS / "fashion_mnist_tail")
TAIL_LENGTH = "optimization.epochs=28"  # of 15,700 images: as many as 8 epochs of all


def _weight(weight: float) -> Run:
    return Run((LENGTH, NO_SINKHORN, f"criterion.memax_weight={weight}"))


def _tail(*changes: str) -> Run:
    return Run((TAIL_LENGTH, *changes), images=TAIL)


STUDY = Study(
    name="beyond",
    about="Beyond the recipe: Fashion-MNIST, 0.44 million images seen.",
    images=FASHION,
    recipe=RECIPES / "fashion_mnist.yaml",
    runs={
        "recipe": Run((LENGTH,)),
        "none_3": _weight(3.0),
        "none_4": _weight(4.0),
        "none_5": _weight(5.0),
        "retuned": Run(RETUNED),
        "ensemble_2": Run((LENGTH, "criterion.ensemble=2")),
        "ensemble_4": Run((LENGTH, "criterion.ensemble=4")),
        "ensemble_8": Run((LENGTH, "criterion.ensemble=8")),
        "retuned_ensemble_4": Run((*RETUNED, "criterion.ensemble=4")),
        "tail_msn": _tail(),
        "tail_none": _tail(NO_SINKHORN, "criterion.memax_weight=4.0"),
        "tail_pmsn": _tail(NO_SINKHORN, "criterion.memax_weight=4.0", "criterion.prior=power_law"),
    },
)

if __name__ == "__main__":
    sys.exit(main(STUDY))
