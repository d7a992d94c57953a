"""The released weights give the published features, wherever they are in the cache.

The values are those that transformers publishes for its converted copies: the first three of the
normalized class token, for COCO image 000000039769 resized to 224 x 224.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from msn.interop import reading, zoo
from msn.models.encoder import NORMED

IMAGE = "000000039769.jpg"
EXPECTED = {
    "vits16_800ep": (-1.0915, -1.4876, -1.1809),
    "vitb16_600ep": (14.2889, -18.9045, 11.7281),
    "vitl16_600ep": (41.5028, -22.8681, 45.6475),
    "vitb4_300ep": (-4.3868, 5.2932, -0.4137),
    "vitl7_200ep": (-0.1792, -0.6465, 2.4263),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_published_features(name: str) -> None:
    weights, image = zoo.cached_path(name), zoo.released_folder() / IMAGE
    for path in (weights, image):
        if not path.exists():
            pytest.skip(f"{path} is not there; get it with: msn import official:{name}, COCO")
    resized = Image.open(image).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    read = reading.read(weights)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in read.normalization)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    features = read.build().features(((pixels - mean) / std)[None], NORMED)[0, :3]
    torch.testing.assert_close(features, torch.tensor(EXPECTED[name]), atol=1e-4, rtol=1e-4)
