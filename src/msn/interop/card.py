"""Model cards: what the weights are, how to load them, their license."""

from msn.config.sizes import ResNetSize
from msn.interop.architecture import official_names
from msn.interop.weights import Weights

METHODS = {
    "msn": "Masked Siamese Networks (https://arxiv.org/abs/2204.07141)",
    "mae": "Masked Autoencoders (https://arxiv.org/abs/2111.06377)",
    "simmim": "SimMIM (https://arxiv.org/abs/2111.09886)",
}
PREDICTED = {
    "ViTMAEForPreTraining": "logits  # of all patches; outputs.mask is 1 where they were not seen",
    "ViTForMaskedImageModeling": "reconstruction  # give bool_masked_pos to the model, too",
}
"""What classes that predict pixels give."""
LICENCE = """\
The license of the weights is for those who trained them to say: add it here. Weights derived from
those that the authors of the paper released stay under CC BY-NC 4.0."""


def huggingface(weights: Weights, name: str) -> str:
    """Compose the model card, README.md, of a folder for transformers.

    `name` is the class that loads it.
    """
    resnet = isinstance(weights.architecture.size, ResNetSize)
    token = "outputs.pooler_output.flatten(1)" if resnet else "outputs.last_hidden_state[:, 0]"
    takes = f"features = {token}"
    if weights.classifier:
        takes = "logits = outputs.logits"
    elif name in PREDICTED:
        takes = f"pixels = outputs.{PREDICTED[name]}"
    code = f"""\
from transformers import AutoImageProcessor, {name}

processor = AutoImageProcessor.from_pretrained("FOLDER")
model = {name}.from_pretrained("FOLDER")
outputs = model(**processor(images=image, return_tensors="pt"))
{takes}
"""
    note = """\
`last_hidden_state` is taken after the final layer norm. The low-shot and linear evaluations of the
paper read the class token before it: `output_hidden_states=True`, then `hidden_states[-1][:, 0]`.
"""
    return _card(weights, "transformers", code, note if name == "ViTMSNModel" else "")


def timm(weights: Weights, name: str) -> str:
    """Compose the model card, README.md, of a folder for timm.

    `name` is what timm calls the architecture.
    """
    code = f"""\
import timm

model = timm.create_model("local-dir:FOLDER")  # {name}
features = model.eval()(images)  # (B, {weights.architecture.size.embed_dim})
"""
    note = """\
Other image sizes: timm antialiases position embeddings when it resizes them, MSN does not.
"""
    resnet = isinstance(weights.architecture.size, ResNetSize)
    return _card(weights, "timm", code, "" if resnet else note)


def release(weights: Weights, tag: str, steps: int) -> str:
    """Compose the model card, README.md, of a release, which is the full state of a run."""
    code = f"""\
# check the hashes, copy into a folder of your own, go on training there
# msn import FOLDER --as run runs/mine
# python main.py --fname runs/mine/{tag}-config.yaml
"""
    note = f"""\
The full state of a run after {steps} steps: all weights, optimizer, config and log.
`SHA256SUMS` holds the hash of each file.
"""
    return _card(weights, "pytorch", code, note)


def _card(weights: Weights, library: str, code: str, note: str) -> str:
    size, channels = weights.architecture.size, weights.architecture.in_chans
    named = " / ".join(official_names(size)) or "a size of its own"
    resnet = isinstance(size, ResNetSize)
    kind, tag = ("ResNet", "resnet") if resnet else ("Vision Transformer", "vision-transformer")
    mean, std = (", ".join(f"{n:.6g}" for n in values) for values in weights.normalization)
    side = weights.architecture.image_size
    return f"""\
---
library_name: {library}
pipeline_tag: image-feature-extraction
tags: [msn, self-supervised-learning, {tag}]
---

# {kind}

- encoder: {named}: {size.description}
- images: {side} x {side} px, {channels} channels, mean {mean}, standard deviation {std}
- method: {METHODS.get(str(weights.method), "not known")}

```python
{code}```

{note}
## License

{LICENCE}
"""
