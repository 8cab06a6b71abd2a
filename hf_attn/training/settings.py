"""What a training run is: settings and data, written beside the model so that it can be resumed as it began."""

import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import datasets
import torch
from transformers import AutoConfig

from hf_attn.configuration_translator import AttnTranslatorConfig
from hf_attn.modeling_translator import AttnTranslatorForConditionalGeneration
from hf_attn.training.checkpoints import remove_unfinished, whole_file
from hf_attn.training.optimization import noam_factor

SETTINGS_FILE = "training_settings.json"
STOPS = ("max_steps", "num_train_epochs", "max_minutes")


@dataclass(kw_only=True)
class TrainingSettings(ABC):
    """What every kind of training run has settings for.

    Raises:
        ValueError: if a number is out of range, or nothing says when to stop.
    """

    # When a run is resumed
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset({*STOPS, "data_name", "data_license", "license"})
    MAY_BE_ZERO: ClassVar[frozenset[str]] = frozenset()

    max_steps: int | None = None  # whichever of the three is reached first
    num_train_epochs: float | None = None
    max_minutes: float | None = None  # of training and validation, not of the test at the end
    learning_rate: float = None  # type: ignore[assignment]  # the highest, at the end of the warm-up
    gradient_accumulation_steps: int = 1
    average_last: int = 5
    ema_decay: float | None = None
    early_stopping_patience: int | None = None
    bf16: bool | str = "auto"
    seed: int = 0
    data_license: str | None = None  # in words, for the model card
    license: str | None = None  # SPDX identifier of the model

    @abstractmethod
    def count_weights(self, data: datasets.DatasetDict) -> int:
        """How many numbers the model for these data has."""

    @abstractmethod
    def identify(self, split: datasets.Dataset) -> dict[str, Any]:
        """What tells a split of the data from another."""

    def check_numbers(self) -> None:
        """Raise a ValueError for a number out of range, or if nothing says when to stop."""
        if all(getattr(self, name) is None for name in STOPS):
            raise ValueError(f"nothing says when to stop; give {', '.join(STOPS[:-1])} or {STOPS[-1]}")
        for name, value in asdict(self).items():
            if name == "seed" or isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if name in self.MAY_BE_ZERO and not value >= 0:
                raise ValueError(f"{name} {value} is below 0")
            if name not in self.MAY_BE_ZERO and not value > 0:
                raise ValueError(f"{name} {value} is not above 0")


@dataclass(frozen=True)
class Size:
    """A shape of the model with the vocabulary and the schedule that suit it."""

    config: dict[str, Any]
    vocab_size: int
    learning_rate: float
    warmup_steps: int


SIZES = {
    "tiny": Size(
        {
            "hidden_size": 256,
            "encoder_layers": 3,
            "decoder_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
            "norm_position": "pre",
        },
        vocab_size=8000,
        learning_rate=2e-3,
        warmup_steps=400,
    ),
    "small": Size(  # fairseq's transformer_iwslt_de_en, for some hundred thousand pairs
        {"num_attention_heads": 4, "intermediate_size": 1024, "dropout": 0.3, "norm_position": "pre"},
        vocab_size=10000,
        learning_rate=1e-3,
        warmup_steps=4000,
    ),
    "base": Size({}, vocab_size=37000, learning_rate=(512 * 4000) ** -0.5, warmup_steps=4000),  # Vaswani et al. 2017
}


@dataclass(kw_only=True)
class TranslatorSettings(TrainingSettings):
    """Everything that decides what `train_translator` makes of its data. A number left out follows from `model_size`.

    Raises:
        ValueError: if a size is unknown, a number out of range, or nothing says when to stop.
    """

    MAY_CHANGE: ClassVar[frozenset[str]] = TrainingSettings.MAY_CHANGE | {"test_sentences"}

    source_language: str  # ISO code, as in the data
    target_language: str
    model_size: str = "small"  # "tiny", "small" or "base"
    model_config: dict[str, Any] = field(default_factory=dict)  # fields of AttnTranslatorConfig that differ from that
    vocab_size: int = None  # type: ignore[assignment]
    max_length: int = 256  # tokens; longer pairs are left out of training
    max_tokens_per_batch: int = 4096  # rows times longest row, on each side
    warmup_steps: int = None  # type: ignore[assignment]
    eval_steps: int = 500
    save_steps: int = None  # type: ignore[assignment]  # eval_steps where None
    eval_sentences: int = 200  # of the validation split, translated greedily for BLEU and chrF; the loss takes all
    test_sentences: int | None = None  # spread evenly over the test split; None: all
    data_name: str = "sentence pairs"  # for the model card

    def __post_init__(self):
        if self.model_size not in SIZES:
            raise ValueError(f"model_size {self.model_size!r} is unknown; use {', '.join(SIZES)}")
        size = SIZES[self.model_size]
        self.vocab_size = self.vocab_size or size.vocab_size
        self.learning_rate = self.learning_rate or size.learning_rate
        self.warmup_steps = self.warmup_steps or size.warmup_steps
        self.save_steps = self.save_steps or self.eval_steps
        self.check_numbers()
        if self.max_length > self.max_tokens_per_batch:
            raise ValueError(
                f"max_length {self.max_length} is more than max_tokens_per_batch {self.max_tokens_per_batch}: the "
                "longest pair would fit into no batch; raise the one or lower the other"
            )

    def configuration(self, vocab_size: int) -> AttnTranslatorConfig:
        """The model's shape for a tokenizer with so many tokens."""
        return AttnTranslatorConfig(vocab_size=vocab_size, **{**SIZES[self.model_size].config, **self.model_config})

    def schedule_factor(self, hidden_size: int) -> float:
        """Of the Noam schedule that reaches `learning_rate`."""
        return noam_factor(self.learning_rate, hidden_size, self.warmup_steps)

    def count_weights(self, data: datasets.DatasetDict) -> int:
        with torch.device("meta"):
            return AttnTranslatorForConditionalGeneration(self.configuration(self.vocab_size)).num_parameters()

    def identify(self, split: datasets.Dataset) -> dict[str, Any]:
        return {"pairs": len(split), "sha256": fingerprint(split)}


def check_data(data: datasets.DatasetDict, settings: TranslatorSettings) -> None:
    """Raise a ValueError unless there is a train split, one to validate on where early stopping needs it, and every
    split has the text columns `source` and `target`."""
    check_splits(data, settings, "pairs")
    for split, pairs in data.items():
        missing = {"source", "target"} - set(pairs.column_names)
        if missing:
            raise ValueError(
                f"the {split} split has no column {sorted(missing)[0]!r}, only {', '.join(pairs.column_names)}"
            )


def check_splits(data: datasets.DatasetDict, settings: TrainingSettings, what: str) -> None:
    """Raise a ValueError unless there is a train split, and one to validate on where early stopping needs it."""
    if settings.early_stopping_patience and not len(data.get("validation", [])):
        raise ValueError("early stopping needs a validation split; leave early_stopping_patience out")
    if "train" not in data or not len(data["train"]):
        raise ValueError(f"the data have no train split with {what} in it, only {', '.join(data) or 'nothing'}")


def read_base_config(base_model: str, model_type: str, maker: str) -> Any:
    """The configuration of a model to go on from, in a directory or on the Hub.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is of another type than `model_type`; `maker` names the function that makes those.
    """
    directory = Path(base_model)
    if directory.is_dir() and not (directory / "config.json").is_file():
        raise FileNotFoundError(
            f"{base_model} is no model to go on from: it has no config.json; give another directory"
        )
    try:
        base = AutoConfig.from_pretrained(base_model)
    except OSError as error:
        if directory.is_dir():
            raise
        raise FileNotFoundError(
            f"there is no directory {base_model}, and no such model could be had from the Hub; check the name"
        ) from error
    if base.model_type != model_type:
        raise ValueError(
            f"{base_model} is a model of type {base.model_type!r}, not {model_type!r}; give one that {maker} or "
            "`hf-attn import` made"
        )
    return base


def fingerprint(pairs: datasets.Dataset) -> str:
    """SHA-256 of the texts and their order."""
    digest = hashlib.sha256()
    for column in ("source", "target"):
        for text in pairs[column]:
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def open_run(output_dir: Path, settings: TrainingSettings, data: datasets.DatasetDict, resume: bool) -> None:
    """Begin a run in an empty directory, or see that the one to be resumed is the same.

    Raises:
        ValueError: if the directory holds something else, or a run with other settings or data; or if this is one of
            several processes.
        OSError: if it cannot be written to, or the disk has no room for the checkpoints.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(
            f"this is one of {processes} processes, and a run with its reports is made by one; for several, use the "
            "model's trainer (TranslatorTrainer, ViTTrainer or DetrTrainer), whose loss and scores are those of one"
        )
    record = {
        "settings": asdict(settings),
        "data": {name: settings.identify(split) for name, split in data.items()},
    }
    file = output_dir / SETTINGS_FILE
    if resume:
        remove_unfinished(output_dir)
    if resume and file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        _check_same_run(file, before, json.loads(json.dumps(record)), settings.MAY_CHANGE)
    elif output_dir.is_dir() and any(output_dir.iterdir()):
        remedy = f"there is no {SETTINGS_FILE} to resume from" if resume else "resume with resume=True (--resume)"
        raise ValueError(f"{output_dir} is not empty; {remedy}, or choose another directory")
    _check_room(output_dir, settings, settings.count_weights(data))
    output_dir.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_same_run(file: Path, before: dict[str, Any], now: dict[str, Any], may_change: frozenset[str]) -> None:
    for name, value in now["settings"].items():
        if name not in may_change and value != before["settings"].get(name):
            raise ValueError(
                f"{file} says {name} {before['settings'].get(name)!r}, but now it is {value!r}; resume with the same "
                "settings, or choose another directory"
            )
    for split in sorted(before["data"].keys() | now["data"].keys()):
        if before["data"].get(split) != now["data"].get(split):
            raise ValueError(
                f"the {split} split is not the one that the run in {file.parent} began with; resume with the same "
                "data, or choose another directory"
            )


def _check_room(output_dir: Path, settings: TrainingSettings, number_of_weights: int) -> None:
    weights = 4 * number_of_weights  # float32
    checkpoint = weights * (3 if settings.ema_decay is None else 4)  # with two moments of Adam, and the moving average
    kept = settings.average_last + (settings.early_stopping_patience or 0)
    there = sum(file.stat().st_size for file in output_dir.rglob("*") if file.is_file())
    needed = (kept + 1) * checkpoint + 2 * weights - there
    existing = next(path for path in (output_dir, *output_dir.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OSError(
            f"{kept} checkpoints and the model need {needed / 1e9:.1f} GB in {output_dir}, but {free / 1e9:.1f} GB "
            "are free; make room, choose another directory, or lower average_last"
        )


def picture_fingerprint(split: datasets.Dataset, label: str = "label") -> str:
    """SHA-256 of the column `label`, of the pictures that the data hold, and of name and size of those that they only
    point to."""
    digest = hashlib.sha256()
    plain = split.select_columns(["image", label]).cast_column("image", datasets.Image(decode=False))
    for batch in plain.iter(batch_size=1000):
        for picture, right in zip(batch["image"], batch[label], strict=True):
            content = _content(picture)
            digest.update(f"{right} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _content(picture: dict[str, Any] | None) -> bytes:
    if picture is None:
        return b""
    if picture["bytes"] is not None:
        return picture["bytes"]
    file = Path(picture["path"])
    return f"{file.name} {file.stat().st_size if file.is_file() else None}".encode()
