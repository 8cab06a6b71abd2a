"""What a training run of a detector is: recipes from the literature, and all that can be changed in them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import datasets
import torch

from hf_attn.configuration_detr import AttnDetrConfig
from hf_attn.configuration_vit import AttnViTConfig
from hf_attn.modeling_detr import AttnDetrForObjectDetection
from hf_attn.training.detection_rows import check_detection_columns, class_names, count_boxes
from hf_attn.training.optimization import DECAYS
from hf_attn.training.settings import STOPS, TrainingSettings, check_splits, picture_fingerprint, read_base_config


@dataclass(frozen=True)
class Preset:
    """A recipe: the shape of a model, how the pictures are made ready for it, and the settings to train it with."""

    source: str
    config: dict[str, Any]
    settings: dict[str, Any]
    processor: dict[str, Any] = field(default_factory=dict)


AUTHORS_SCALES = tuple(range(480, 801, 32))

PRESETS = {
    "tiny": Preset(
        source="this project's own: learns from scratch in minutes on two CPU cores, pictures of about 100 pixels; "
        "conditional attention with anchors (arXiv 2108.06152, 2201.12329), denoising (2203.01305), focal loss",
        config={
            "backbone": "resnet10t",
            "backbone_kwargs": {
                "output_stride": 8,
                "channels": [48, 96, 192, 384],
                "stem_width": 24,
                "zero_init_last": False,  # blocks that begin as the identity begin to learn late
            },
            "backbone_feature": -2,
            "hidden_size": 128,
            "encoder_layers": 2,
            "decoder_layers": 3,
            "intermediate_size": 512,
            "num_attention_heads": 4,
            "num_queries": 25,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "position_temperature": 20,
            "position_scale": 8 * math.pi,  # 4 waves over 12 rows
            "conditional_attention": True,
            "denoising_groups": 10,
            "denoising_label_noise": 0.5,
            "class_loss": "focal",
            "class_loss_coefficient": 2,
            "class_cost": 2,
        },
        settings={
            "num_train_epochs": 20,
            "batch_size": 16,
            "learning_rate": 5e-4,
            "backbone_learning_rate": 2e-3,
            "max_grad_norm": 1.0,
            "warmup_steps": 100,
            "decay": "cosine",
            "decay_from": 0.3,
            "scales": (96,),
            "longest_edge": 96,
        },
    ),
    "plain": Preset(
        source="DETR-R50 of Carion et al. 2020 (arXiv 2005.12872, section 4): 42.0 AP on COCO in 500 epochs",
        config={},
        settings={
            "num_train_epochs": 300,
            "batch_size": 4,
            "learning_rate": 1e-4,
            "backbone_learning_rate": 1e-5,
            "warmup_steps": 0,
            "decay": "step",
            "decay_from": 2 / 3,
            "scales": AUTHORS_SCALES,
            "longest_edge": 1333,
            "crop": True,
        },
    ),
    "quick": Preset(
        source="DN-DAB-DETR-R50 (arXiv 2203.01305, section 5.1), in 50 epochs what plain DETR needs 500 for",
        config={
            "conditional_attention": True,
            "denoising_groups": 5,
            "class_loss": "focal",
            "class_loss_coefficient": 1,
            "class_cost": 2,
            "position_temperature": 20,
            "num_queries": 300,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
        settings={
            "num_train_epochs": 50,
            "batch_size": 4,
            "learning_rate": 1e-4,
            "backbone_learning_rate": 1e-5,
            "warmup_steps": 0,
            "decay": "step",
            "decay_from": 0.8,
            "scales": AUTHORS_SCALES,
            "longest_edge": 1333,
            "crop": True,
        },
    ),
    "fine_tuning": Preset(
        source="the authors' advice for data sets of one's own: from a trained model, with a new class head",
        config={},
        settings={
            "num_train_epochs": 50,
            "batch_size": 4,
            "learning_rate": 1e-4,
            "backbone_learning_rate": 1e-5,
            "warmup_steps": 0,
            "decay": "step",
            "decay_from": 0.8,
            "scales": AUTHORS_SCALES,
            "longest_edge": 1333,
            "crop": True,
        },
    ),
}

# What the weights of a base model belong to
SHAPE = (
    "backbone",
    "backbone_feature",
    "num_channels",
    "hidden_size",
    "num_attention_heads",
    "encoder_layers",
    "decoder_layers",
    "intermediate_size",
    "num_queries",
    "position_temperature",
    "position_scale",
    "conditional_attention",
)

# What a preset that does not say otherwise has
USUAL = {
    "weight_decay": 1e-4,
    "max_grad_norm": 0.1,
    "crop": False,
    "flip": True,
    "colour_jitter": 0.0,
}


@dataclass(kw_only=True)
class DetrSettings(TrainingSettings):
    """Everything that decides what `train_detr` makes of its data.

    What is left out follows from `preset`, and so does the length of the run if nothing says when to stop.

    Raises:
        ValueError: if a preset or choice is unknown, a number out of range, or two settings do not fit together.
    """

    MAY_CHANGE: ClassVar[frozenset[str]] = TrainingSettings.MAY_CHANGE | {
        "test_pictures",
        "eval_batch_size",
        "num_workers",
        "drawn_pictures",
    }
    MAY_BE_ZERO: ClassVar[frozenset[str]] = frozenset(
        {
            "backbone_learning_rate",
            "colour_jitter",
            "decay_from",
            "denoising_groups",
            "drawn_pictures",
            "max_grad_norm",
            "num_workers",
            "warmup_steps",
            "weight_decay",
        }
    )

    preset: str = None  # type: ignore[assignment]  # "quick", or "fine_tuning" where there is a base_model
    base_model: str | None = None  # directory, or Hub id, of a detector to go on from, whose shape then counts
    backbone: str | None = None  # of timm
    backbone_model: str | None = None  # directory, or Hub id, of a ViT of this package that the backbone begins as
    use_pretrained_backbone: bool | None = None  # timm's weights
    num_queries: int | None = None
    conditional_attention: bool | None = None
    denoising_groups: int | None = None
    class_loss: str | None = None
    model_config: dict[str, Any] = field(default_factory=dict)  # fields of AttnDetrConfig that differ from all that

    batch_size: int = None  # type: ignore[assignment]  # pictures, on each device
    eval_batch_size: int = 8
    backbone_learning_rate: float = None  # type: ignore[assignment]  # 0: the backbone is frozen
    warmup_steps: float = None  # type: ignore[assignment]  # below 1: a share of the run
    decay: str = None  # type: ignore[assignment]  # "step": a tenth from decay_from on; "cosine": to zero at the end
    decay_from: float = None  # type: ignore[assignment]  # share of the run
    weight_decay: float = None  # type: ignore[assignment]
    max_grad_norm: float = None  # type: ignore[assignment]  # 0: off

    scales: tuple[int, ...] = None  # type: ignore[assignment]  # shortest edges, one drawn for each picture; the last to evaluate
    longest_edge: int = None  # type: ignore[assignment]  # pixels
    crop: bool = None  # type: ignore[assignment]  # a random part of every second picture
    flip: bool = None  # type: ignore[assignment]  # left and right
    colour_jitter: float = None  # type: ignore[assignment]  # brightness, contrast and colour by up to this share
    num_workers: int = 0  # processes that read and change pictures

    eval_steps: int | None = None  # once an epoch, but not more often than every 100 steps
    save_steps: int | None = None  # eval_steps where None
    drawn_pictures: int = 6  # of validation, in each evaluation
    test_pictures: int | None = None  # spread evenly over the test split; None: all
    average_last: int = 1
    data_name: str = "pictures"  # for the model card

    def __post_init__(self):
        if self.preset is None:
            self.preset = "quick" if self.base_model is None else "fine_tuning"
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is unknown; use {', '.join(PRESETS)}")
        chosen = {**USUAL, **PRESETS[self.preset].settings}
        if any(getattr(self, name) is not None for name in STOPS):
            del chosen["num_train_epochs"]
        for name, value in chosen.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.save_steps = self.save_steps or self.eval_steps
        self.scales = (self.scales,) if isinstance(self.scales, int) else tuple(self.scales)
        for name in ("base_model", "backbone_model"):
            setattr(self, name, None if getattr(self, name) is None else str(getattr(self, name)))
        self.check_numbers()
        self._check_choices()

    def _check_choices(self) -> None:
        if self.preset == "fine_tuning" and self.base_model is None:
            raise ValueError("preset 'fine_tuning' goes on from a trained model; give base_model")
        if self.base_model is not None and self.backbone is not None:
            raise ValueError(
                f"the base model has a backbone already, so {self.backbone!r} cannot be chosen; leave it out"
            )
        if self.backbone_model is not None and self.use_pretrained_backbone:
            raise ValueError(
                "backbone_model and use_pretrained_backbone both give the backbone its weights; choose one"
            )
        if self.decay not in DECAYS:
            raise ValueError(f"decay {self.decay!r} is unknown; use {' or '.join(map(repr, DECAYS))}")
        if self.decay_from > 1:
            raise ValueError(f"decay_from {self.decay_from} is not a share of the run, from 0 to 1")
        if self.colour_jitter >= 1:
            raise ValueError(f"colour_jitter {self.colour_jitter} is not below 1")
        if not self.scales or min(self.scales) < 1 or max(self.scales) > self.longest_edge:
            raise ValueError(
                f"scales {self.scales} must be shortest edges from 1 to longest_edge {self.longest_edge} pixels"
            )

    @property
    def size(self) -> dict[str, int]:
        """Of the pictures in evaluation, as the image processor takes it."""
        return {"shortest_edge": self.scales[-1], "longest_edge": self.longest_edge}

    def configuration(self, names: Sequence[str]) -> AttnDetrConfig:
        """The model's shape for classes of these names.

        Raises:
            ValueError: if the base model is none of this package's, or a field of `model_config` is unknown.
            FileNotFoundError: if there is no base model.
        """
        unknown = set(self.model_config) - set(AttnDetrConfig().to_dict())
        if unknown:
            raise ValueError(f"model_config has {sorted(unknown)[0]!r}, which is no field of AttnDetrConfig")
        chosen = {
            name: getattr(self, name)
            for name in (
                "backbone",
                "use_pretrained_backbone",
                "num_queries",
                "conditional_attention",
                "denoising_groups",
                "class_loss",
            )
            if getattr(self, name) is not None
        }
        if self.backbone_model is not None:
            body = read_base_config(self.backbone_model, AttnViTConfig.model_type, "train_vit")
            chosen["backbone_config"] = body.to_dict()
        fields = {
            **chosen,
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            **self.model_config,
        }
        if self.base_model is None:
            shape = PRESETS[self.preset].config
            if self.backbone is not None or self.backbone_model is not None:  # the preset's settings are for its own
                shape = {name: value for name, value in shape.items() if not name.startswith("backbone")}
            return AttnDetrConfig(**{**shape, **fields})
        base = read_base_config(self.base_model, AttnDetrConfig.model_type, "train_detr")
        config = AttnDetrConfig(**{**base.to_diff_dict(), **fields})
        for name in SHAPE:
            if getattr(config, name) != getattr(base, name):
                raise ValueError(
                    f"{name} {getattr(config, name)!r} is not the base model's {getattr(base, name)!r}, which its "
                    "weights belong to; leave it out, or train without base_model"
                )
        if bool(config.denoising_groups) != bool(base.denoising_groups):
            raise ValueError(
                f"denoising_groups {config.denoising_groups} does not fit the base model, which has "
                f"{base.denoising_groups}: it learned with or without them; leave it out, or train without base_model"
            )
        return config

    def count_weights(self, data: datasets.DatasetDict) -> int:
        with torch.device("meta"):
            return AttnDetrForObjectDetection(self.configuration(class_names(data["train"]))).num_parameters()

    def identify(self, split: datasets.Dataset) -> dict[str, Any]:
        return {"pictures": len(split), "classes": class_names(split), "sha256": picture_fingerprint(split, "objects")}


def check_detection_data(data: datasets.DatasetDict, settings: DetrSettings) -> None:
    """Raise a ValueError unless there is a train split with boxes, one to validate on where early stopping needs it,
    and every split has pictures and boxes in the layout of `load_detections`."""
    check_splits(data, settings, "pictures")
    for name, split in data.items():
        check_detection_columns(split, name)
    if not any(count_boxes(data["train"]).values()):
        raise ValueError("no training picture has a box, so there is nothing to learn; check the annotations")
    if settings.early_stopping_patience and not any(count_boxes(data["validation"]).values()):
        raise ValueError(
            "no validation picture has a box, so early_stopping_patience has no AP to go by; check the annotations, "
            "or leave it out"
        )
