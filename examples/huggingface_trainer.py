"""Pre-train MSN on handwritten digits with the trainer of transformers.

    pip install 'msn-pretraining[huggingface]'
    python examples/huggingface_trainer.py --epochs 30 --out runs/trainer

Prints the loss and what a k-NN makes of the features, before and after. Any other data set that
gives `target`, `random` and `focal` views works the same way.
"""

import argparse
import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import msn
from msn.config.sections.data import Augmentation
from msn.data.batch import allocate, normalize
from msn.data.draws import ViewKind, ViewSpec
from msn.data.sources.digits import Digits
from msn.data.views import eval_view, make_views
from msn.evaluation.knn import knn
from msn.methods.optim import build_optimizer
from msn.models.encoder import NORMED

SIZE, FOCAL_SIZE, BATCH = 16, 8, 64
KINDS = (
    ViewKind("target", 1, SIZE, (0.6, 1.0)),
    ViewKind("random", 1, SIZE, (0.6, 1.0)),
    ViewKind("focal", 2, FOCAL_SIZE, (0.25, 0.65)),
)
SPEC = ViewSpec(KINDS, Augmentation(flip=0, color_jitter_strength=0.25, grayscale=0, blur=0.8))


class DigitViews(Dataset[dict[str, Tensor]]):
    """The views of one image as normalized tensors, new ones in each epoch."""

    def __init__(self) -> None:
        self.source = Digits(split="train")
        self.mean, self.std = torch.tensor(self.source.mean), torch.tensor(self.source.std)
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.source)

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        (out,) = allocate(SPEC, 1, channels=1).samples()
        image = self.source.read(index).image
        make_views(image, SPEC, seed=0, epoch=self.epoch, sample=index, out=out)
        views = {
            kind: normalize(torch.from_numpy(pixels), self.mean, self.std)
            for kind, pixels in out.kinds.items()
        }
        return {**views, "target": views["target"][0]}


class MoveTarget(TrainerCallback):
    """The target follows the anchor after each step of the optimizer."""

    def on_step_end(self, args: Any, state: Any, control: Any, **trainer: Any) -> None:
        trainer["model"].after_step()


def top1(model: msn.MSNForPreTraining) -> float:
    """k-NN accuracy in percent on the held-out digits."""
    encoder = model.encoder_weights().build()
    features, labels = [], []
    for split in ("train", "val"):
        source = Digits(split=split)
        images = [
            eval_view(source.read(index).image.pixels(), SIZE) for index in range(len(source))
        ]
        pixels = torch.stack([torch.from_numpy(image) for image in images])
        inputs = normalize(pixels, torch.tensor(source.mean), torch.tensor(source.std))
        features.append(encoder.features(inputs, NORMED))
        labels.append(torch.from_numpy(source.labels()))
    return knn(features[0], labels[0], features[1], labels[1]).top1


def main(arguments: list[str]) -> None:
    """Train, and say what was learned."""
    parser = argparse.ArgumentParser(description="MSN on the digits with transformers.Trainer")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--out", default="runs/trainer", help="folder of the trained model")
    options = parser.parse_args(arguments)
    views = DigitViews()
    torch.manual_seed(0)
    model = msn.MSNForPreTraining(
        {
            "criterion": {"num_proto": 24, "start_sharpen": 0.2, "final_sharpen": 0.2},
            "data": {"channels": 1, "rand_size": SIZE, "focal_size": FOCAL_SIZE, "patch_drop": 0.3},
            "meta": {
                "encoder": {"patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4},
                "hidden_dim": 128,
                "output_dim": 32,
            },
            "optimization": {"ema": [0.9, 1.0], "schedule_stretch": 1.0},
        },
        total_steps=options.epochs * (len(views) // BATCH),
    )
    optimizer = build_optimizer(model.msn.parameter_groups())
    for group in optimizer.param_groups:
        group["lr"] = 2e-3
        group["weight_decay"] = 0.04 if group["decayed"] else 0.0
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.out,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=BATCH,
            dataloader_drop_last=True,  # BatchNorm and the mean assignment want whole batches
            lr_scheduler_type="cosine",
            warmup_steps=100,
            max_grad_norm=3.0,
            logging_steps=20,
            logging_strategy="steps",
            logging_first_step=True,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
        ),
        train_dataset=views,
        optimizers=(optimizer, None),
        callbacks=[MoveTarget()],
    )
    untrained = top1(model)
    trainer.train()
    model.save_pretrained(options.out)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(f"loss: {losses[0]:.3f} -> {losses[-1]:.3f}")
    print(f"k-NN on held-out digits: untrained {untrained:.1f} %, trained {top1(model):.1f} %")
    print(f"model in {options.out}: msn.MSNForPreTraining.from_pretrained({options.out!r})")


if __name__ == "__main__":
    main(sys.argv[1:])
