"""What a training run of a picture classifier is: recipes from the literature, and all that can be changed in them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import datasets
import torch

from hf_attn.configuration_vit import AttnViTConfig
from hf_attn.modeling_vit import AttnViTForImageClassification
from hf_attn.training.settings import STOPS, TrainingSettings, check_splits, picture_fingerprint, read_base_config
from hf_attn.training.vit_labels import check_columns, class_names, count_labels, is_multi_label

CROPS = ("inception", "pad", "none")
Size = int | tuple[int, int] | list[int]


@dataclass(frozen=True)
class Preset:
    """A recipe: the shape of a model, how the pictures are made ready for it, and the settings to train it with."""

    source: str
    config: dict[str, Any]
    settings: dict[str, Any]
    processor: dict[str, Any] = field(default_factory=dict)


PRESETS = {
    "tiny": Preset(
        source="this project's own: learns scikit-learn's digits and Fashion-MNIST in minutes on two CPU cores",
        config={
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "image_size": 28,
            "patch_size": 4,
            "class_token": False,
            "pooling": "mean",
        },
        settings={
            "num_train_epochs": 30,
            "batch_size": 128,
            "learning_rate": 1e-3,
            "warmup_steps": 0.05,
            "weight_decay": 0.05,
            "label_smoothing": 0.1,
            "crop": "pad",
            "padding": 2,
        },
    ),
    "small": Preset(
        source="ViT-Lite-7/4 of Hassani et al. 2021 (arXiv 2104.05704) with its CIFAR-10 recipe, but mean pooling",
        config={
            "hidden_size": 256,
            "num_hidden_layers": 7,
            "num_attention_heads": 4,
            "intermediate_size": 512,
            "attention_dropout": 0.1,
            "image_size": 32,
            "patch_size": 4,
            "class_token": False,
            "pooling": "mean",
        },
        settings={
            "num_train_epochs": 300,
            "batch_size": 128,
            "learning_rate": 5.5e-4,
            "warmup_steps": 1 / 30,  # 10 of 300 epochs
            "weight_decay": 0.06,
            "drop_path_rate": 0.1,
            "label_smoothing": 0.1,
            "crop": "inception",
            "crop_area": (0.8, 1.0),
            "randaugment": (2, 9),
            "mixup": 0.8,
            "cutmix": 1.0,
        },
    ),
    "big_vision_s16": Preset(
        source="Beyer et al. 2022 (arXiv 2205.01580), big_vision's vit_s16_i1k: 76.5 % on ImageNet in 90 epochs",
        config={
            "hidden_size": 384,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "intermediate_size": 1536,
            "activation_function": "gelu_pytorch_tanh",
            "image_size": 224,
            "patch_size": 16,
            "class_token": False,
            "pooling": "mean",
            "position_embedding": "sinusoids",
        },
        settings={
            "num_train_epochs": 90,
            "batch_size": 1024,
            "learning_rate": 1e-3,
            "warmup_steps": 10_000,
            "weight_decay": 0.1,  # its 1e-4 is not multiplied by the learning rate; AdamW's is
            "crop": "inception",
            "crop_area": (0.05, 1.0),
            "randaugment": (2, 10),
            "mixup": 0.2,
        },
        processor={"resize_mode": "shortest_edge", "crop_pct": 224 / 256},
    ),
    "fine_tuning": Preset(
        source="this project's own, for a few hundred pictures; the layer decay of MAE (arXiv 2111.06377, table 9)",
        config={},
        settings={
            "num_train_epochs": 10,
            "batch_size": 16,
            "learning_rate": 1e-4,
            "layer_decay": 0.75,
            "warmup_steps": 0.1,
            "weight_decay": 0.05,
            "crop": "inception",
            "crop_area": (0.5, 1.0),
        },
    ),
    "higher_resolution": Preset(
        source="384 pixels, no weight decay, 500 steps of warm-up, clipping and no mixup as the ViT paper and its "
        "code fine-tune (arXiv 2010.11929, section B.1.1); AdamW, 20 epochs of 512 and smoothing as DeiT III (arXiv "
        "2204.07118), whose learning rate of 1e-5 the middle layers get; layer decay and drop path as MAE fine-tunes "
        "ViT-B (arXiv 2111.06377, table 9)",
        config={},
        settings={
            "num_train_epochs": 20,
            "batch_size": 512,
            "learning_rate": 1e-4,
            "layer_decay": 0.75,
            "warmup_steps": 500,
            "weight_decay": 0.0,
            "drop_path_rate": 0.1,
            "label_smoothing": 0.1,
            "crop": "inception",
            "crop_area": (0.08, 1.0),
            "image_size": 384,
        },
    ),
}

# What a preset that does not say otherwise has
USUAL = {
    "drop_path_rate": 0.0,
    "layer_decay": 1.0,
    "label_smoothing": 0.0,
    "max_grad_norm": 1.0,
    "crop_area": (0.08, 1.0),
    "padding": 4,
    "flip": True,
    "rotation": 0.0,
    "zoom": 0.0,
    "randaugment": (0, 0),
    "erase": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}


@dataclass(kw_only=True)
class ViTSettings(TrainingSettings):
    """Everything that decides what `train_vit` makes of its data.

    What is left out follows from `preset`, and so does the length of the run if nothing says when to stop.

    Raises:
        ValueError: if a preset or choice is unknown, a number out of range, or two settings do not fit together.
    """

    MAY_CHANGE: ClassVar[frozenset[str]] = TrainingSettings.MAY_CHANGE | {
        "test_pictures",
        "eval_batch_size",
        "num_workers",
    }
    MAY_BE_ZERO: ClassVar[frozenset[str]] = frozenset(
        {
            "cutmix",
            "drop_path_rate",
            "erase",
            "label_smoothing",
            "max_grad_norm",
            "mixup",
            "num_workers",
            "padding",
            "rotation",
            "warmup_steps",
            "weight_decay",
            "zoom",
        }
    )

    preset: str = None  # type: ignore[assignment]  # "small", or "fine_tuning" where there is a base_model
    base_model: str | None = None  # directory, or Hub id, of a model to go on from, whose shape then counts
    freeze_body: bool = False  # train the classifier alone: a linear probe
    model_config: dict[str, Any] = field(default_factory=dict)  # fields of AttnViTConfig that differ from all that
    image_size: Size | None = None  # side, or (height, width)
    patch_size: Size | None = None
    drop_path_rate: float = None  # type: ignore[assignment]
    label_smoothing: float = None  # type: ignore[assignment]  # in the training loss

    batch_size: int = None  # type: ignore[assignment]  # pictures, on each device
    eval_batch_size: int = 256
    warmup_steps: float = None  # type: ignore[assignment]  # below 1: a share of the run
    weight_decay: float = None  # type: ignore[assignment]  # AdamW's, which the learning rate multiplies
    layer_decay: float = None  # type: ignore[assignment]  # of the learning rate, from each layer down to the next; 1: off
    max_grad_norm: float = None  # type: ignore[assignment]  # 0: off

    crop: str = None  # type: ignore[assignment]  # "inception": a random part; "pad": shifted; "none"
    crop_area: tuple[float, float] = None  # type: ignore[assignment]  # shares of the picture, for "inception"
    padding: int = None  # type: ignore[assignment]  # pixels to shift by, for "pad"
    flip: bool = None  # type: ignore[assignment]  # left and right; not for digits, letters, maps
    rotation: float = None  # type: ignore[assignment]  # up to so many degrees, each way
    zoom: float = None  # type: ignore[assignment]  # 0.1: from 0.9 to 1.1
    randaugment: tuple[int, float] = None  # type: ignore[assignment]  # operations and magnitude up to 10; (0, 0): off
    erase: float = None  # type: ignore[assignment]  # share of the pictures of which a rectangle is painted over
    mixup: float = None  # type: ignore[assignment]  # alpha; 0: off
    cutmix: float = None  # type: ignore[assignment]  # alpha; 0: off
    in_memory: bool | str = "auto"  # small pictures decoded once and changed by the batch, many times faster
    num_workers: int = 0  # processes that read and change pictures that are not in memory

    eval_steps: int | None = None  # once an epoch, but not more often than every 100 steps
    save_steps: int | None = None  # eval_steps where None
    test_pictures: int | None = None  # spread evenly over the test split; None: all
    average_last: int = 1
    data_name: str = "pictures"  # for the model card

    def __post_init__(self):
        if self.preset is None:
            self.preset = "small" if self.base_model is None else "fine_tuning"
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is unknown; use {', '.join(PRESETS)}")
        chosen = {**USUAL, **PRESETS[self.preset].settings}
        if self.freeze_body:
            chosen["drop_path_rate"] = 0.0  # nothing is left to regularise
        if any(getattr(self, name) is not None for name in STOPS):
            del chosen["num_train_epochs"]
        for name, value in chosen.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.save_steps = self.save_steps or self.eval_steps
        for name in ("image_size", "patch_size", "crop_area", "randaugment"):
            if isinstance(getattr(self, name), list):  # as JSON gives it
                setattr(self, name, tuple(getattr(self, name)))
        self.base_model = None if self.base_model is None else str(self.base_model)
        self.check_numbers()
        self._check_choices()

    def _check_choices(self) -> None:
        if self.base_model is None and not PRESETS[self.preset].config:
            raise ValueError(f"preset {self.preset!r} goes on from a trained model; give base_model")
        if self.base_model is None and self.freeze_body:
            raise ValueError(
                "freeze_body without base_model would leave the body as random as it begins; give base_model"
            )
        if self.crop not in CROPS:
            raise ValueError(f"crop {self.crop!r} is unknown; use {', '.join(CROPS)}")
        if self.in_memory not in (True, False, "auto"):
            raise ValueError(f"in_memory {self.in_memory!r} is unknown; use True, False or 'auto'")
        for name in ("drop_path_rate", "label_smoothing", "zoom"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} {getattr(self, name)} is not below 1")
        if self.in_memory is True and not self.can_be_in_memory:
            raise ValueError("in_memory needs crop 'pad' or 'none' and no randaugment; change these or leave it out")
        if (self.rotation or self.zoom) and not (self.in_memory and self.can_be_in_memory):
            raise ValueError(
                "rotation and zoom are for pictures in memory, without randaugment or crop 'inception'; leave them out"
            )

    @property
    def can_be_in_memory(self) -> bool:
        """Whether all the random changes asked for can be made to a whole batch at once."""
        return self.crop != "inception" and not self.randaugment[0]

    def configuration(self, names: Sequence[str], multi_label: bool) -> AttnViTConfig:
        """The model's shape for classes of these names.

        Raises:
            ValueError: if the base model is none of this package's, or a field of `model_config` is unknown.
            FileNotFoundError: if there is no base model.
        """
        unknown = set(self.model_config) - set(AttnViTConfig().to_dict())
        if unknown:
            raise ValueError(f"model_config has {sorted(unknown)[0]!r}, which is no field of AttnViTConfig")
        fields = {
            "drop_path_rate": self.drop_path_rate,
            "label_smoothing": self.label_smoothing,
            "problem_type": "multi_label_classification" if multi_label else "single_label_classification",
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            **{name: size for name in ("image_size", "patch_size") if (size := getattr(self, name)) is not None},
            **self.model_config,
        }
        if self.base_model is None:
            return AttnViTConfig(**{**PRESETS[self.preset].config, **fields})
        base = read_base_config(self.base_model, AttnViTConfig.model_type, "train_vit")
        return AttnViTConfig(**{**base.to_diff_dict(), **fields})

    def count_weights(self, data: datasets.DatasetDict) -> int:
        with torch.device("meta"):
            config = self.configuration(class_names(data["train"]), is_multi_label(data["train"]))
            return AttnViTForImageClassification(config).num_parameters()

    def identify(self, split: datasets.Dataset) -> dict[str, Any]:
        return {"pictures": len(split), "classes": class_names(split), "sha256": picture_fingerprint(split)}


def check_picture_data(data: datasets.DatasetDict, settings: ViTSettings) -> None:
    """Raise a ValueError unless there is a train split with pictures of two or more classes, one to validate on where
    early stopping needs it, and every split has pictures and classes of one kind."""
    check_splits(data, settings, "pictures")
    for name, split in data.items():
        check_columns(split, name)
        if is_multi_label(split) != is_multi_label(data["train"]):
            kinds = {True: "a list of classes", False: "one"}
            raise ValueError(
                f"a picture of the {name} split has {kinds[is_multi_label(split)]}, one of the train split "
                f"{kinds[is_multi_label(data['train'])]}; make them alike"
            )
    seen = [name for name, pictures in count_labels(data["train"]).items() if pictures]
    if len(seen) < 2 and not is_multi_label(data["train"]):
        raise ValueError(f"all training pictures are of one class, {', '.join(seen)}; a classifier needs two or more")
