"""LoRA: fine-tuning with a frozen base, of which only small adapters and a new head are trained, sent and coded.

The model is a vision transformer of transformers, with the adapters of peft (Hu et al., LoRA, ICLR 2022,
arXiv:2106.09685). The samples are scikit-learn's 1,797 handwritten digits, 8x8. So that the example needs no network,
the base is small and made on the spot, with random weights. A hub's model takes its place:

    base = AutoModelForImageClassification.from_pretrained(
        "google/vit-base-patch16-224-in21k", revision="...", num_labels=10
    )

`revision` is a commit, so that all processes read the same weights, each from the disk of its node: `hf download` them
there beforehand. Images must then have that model's size and channels, here 3 x 224 x 224.

    make train JOB=examples/lora.yaml SIMULATE=1
    make train JOB=examples/lora.yaml SIMULATE=1 SET="task.options.adapters=false"     # all weights, for comparison
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import draco
from draco.models.vision import torchvision

Batch = tuple[Tensor, Tensor]  # images (B, 1, 8, 8) in [-1, 1], and digits (B,)


class Digits(draco.Task):
    """Classification of digits by a transformer that is trained by adapters of a rank, or in full."""

    def __init__(self, width: int = 128, layers: int = 2, rank: int = 4, adapters: bool = True) -> None:
        """`width` and `layers` are the base's; without adapters all weights are trained."""
        self.width, self.layers, self.rank, self.adapters = width, layers, rank, adapters

    def model(self) -> nn.Module:
        """Return the model. What peft freezes requires no gradient, and that is all that Draco looks at."""
        torchvision()  # transformers imports it; beside a CPU build of torch it can be imported only in this way
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForImageClassification, ViTConfig

        config = ViTConfig(
            image_size=8,
            patch_size=4,
            num_channels=1,
            num_labels=10,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            # Attention would draw its dropout from global random state, which no other worker shares: none of it.
            attention_probs_dropout_prob=0.0,
        )
        base = AutoModelForImageClassification.from_config(config)
        if not self.adapters:
            return base
        # lora_dropout is a layer, nn.Dropout, whose masks come from Draco.
        lora = LoraConfig(r=self.rank, lora_dropout=0.05, target_modules="all-linear", modules_to_save=["classifier"])
        return get_peft_model(base, lora)

    def samples(self, split: str) -> Batch:
        """Return images and digits: the first 1,500 to train on, the others to test on."""
        images, digits = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
        part = slice(1500) if split == "train" else slice(1500, None)
        return images[part].float().unflatten(1, (1, 8, 8)) / 8 - 1, digits[part]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of each image, (B,)."""
        return F.cross_entropy(model(batch[0]).logits, batch[1], reduction="none")

    def evaluate(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of each image, and 1 where its digit has the highest output."""
        right = model(batch[0]).logits.argmax(1) == batch[1]
        return {"loss": self.loss(model, batch), "accuracy": right.float()}
