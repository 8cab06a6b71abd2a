"""From labelled pictures to a picture classifier, in one call: `train_vit`.

pictures → random changes → training with checkpoints → averaged model → scores on held-out pictures → report

All of it survives a kill at any moment: the same call with `resume=True` goes on from what is complete on disk.
"""

from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import datasets
from transformers import PrinterCallback, set_seed

from hf_attn.configuration_vit import AttnViTConfig
from hf_attn.image_processing_vit import AttnViTImageProcessor
from hf_attn.modeling_vit import AttnViTForImageClassification, AttnViTModel
from hf_attn.training.arguments import ViTTrainingArguments
from hf_attn.training.augmentation import (
    BatchedAugmentation,
    FollowsEpochs,
    PictureCollator,
    PictureTensors,
    label_tensor,
    output_shape,
    train_transform,
)
from hf_attn.training.callbacks import Progress, ProgressEvent, ProgressListener
from hf_attn.training.checkpoints import complete_checkpoints, no_progress_bars
from hf_attn.training.mixup import MixupCutmixCollator
from hf_attn.training.optimization import choose_bf16, device_type
from hf_attn.training.report import training_facts
from hf_attn.training.runs import (
    began_with,
    final_scores,
    last_step,
    recipe,
    save_model,
    save_processor,
    shape,
    steps_between_evaluations,
    write_metrics,
)
from hf_attn.training.settings import open_run
from hf_attn.training.vit_evaluation import ViTEvaluation, evaluate_vit
from hf_attn.training.vit_labels import LabelledPictures, class_names, count_labels, is_multi_label
from hf_attn.training.vit_metrics import picture_scores
from hf_attn.training.vit_report import plot_confusion, plot_learning_curve, write_vit_card
from hf_attn.training.vit_settings import PRESETS, ViTSettings, check_picture_data
from hf_attn.training.vit_trainer import ViTTrainer

MEMORY_FOR_PICTURES = 2000  # MB, of a split that is decoded once


@dataclass
class ViTTrainingResult:
    """What `train_vit` made.

    `metrics` is what metrics.json holds: `training` (`steps`, `pictures`, `minutes`, `pictures_per_second`,
    `precision`, `hardware`, `stopped`), `parameters`, and the metrics of each split measured.
    """

    output_dir: Path
    metrics: dict[str, Any]
    log_history: list[dict[str, float]]
    test: ViTEvaluation | None = field(repr=False)  # of the validation split where there is no other


def train_vit(
    data: datasets.DatasetDict,
    output_dir: str | Path,
    *,
    resume: bool = False,
    processor: AttnViTImageProcessor | None = None,
    progress: ProgressListener | None = None,
    **settings: Any,
) -> ViTTrainingResult:
    """Train a Vision Transformer to classify pictures, from scratch or from a model that is there already.

    `output_dir` then holds the model and image processor that `pipeline("image-classification")` loads, README.md (the
    model card), learning_curve.png, confusion_matrix.png, metrics.json, training_settings.json and checkpoints/.

    Args:
        data: splits `train` and, for scores, `validation` and `test`, as `load_pictures` makes them: with the columns
            `image` and `label`, a class or a list of classes.
        output_dir: empty or not there; with `resume`, the directory of a run that was stopped, or is to go on longer.
        resume: go on from what is on disk.
        processor: that makes the model's input; by default that of the preset or of the base model, at `image_size`.
        progress: told how far the work is.
        settings: the fields of `ViTSettings`.

    Raises:
        ValueError: for settings, data or a directory that do not fit.
        OSError: for a directory that cannot be written to, or a disk without room; FileNotFoundError without a base
            model.
        TrainingInterrupted: on Ctrl-C or SIGTERM, once a checkpoint is saved.
    """
    run = ViTSettings(**settings)
    tell = progress or (lambda event: None)
    output_dir = Path(output_dir)
    check_picture_data(data, run)
    last = last_step(len(data["train"]), run)
    config = run.configuration(class_names(data["train"]), is_multi_label(data["train"]))
    rows = {
        split: LabelledPictures(data[split], split, config.label2id)
        for split in ("train", "validation", "test")
        if split in data and len(data[split])
    }
    processor = _processor(output_dir, processor, run, config, resume)
    open_run(output_dir, run, data, resume)
    save_processor(processor, output_dir)

    set_seed(run.seed)
    model = _starting_model(run, config)
    trainer = _trainer(model, processor, rows, output_dir / "checkpoints", run, last, tell)
    trainer.train(resume_from_checkpoint=bool(complete_checkpoints(output_dir / "checkpoints")))

    save_model(trainer, output_dir)
    evaluations = _final_scores(output_dir, data, run, tell)
    return _report(output_dir, data, run, trainer, evaluations, tell)


# Before training


def _processor(
    output_dir: Path, given: AttnViTImageProcessor | None, run: ViTSettings, config: AttnViTConfig, resume: bool
) -> AttnViTImageProcessor:
    """The processor that the run began with, else the one given, else a new one."""
    saved = began_with(output_dir, given, AttnViTImageProcessor, resume)
    if saved is not None:
        return saved
    processor = given or _new_processor(run, config)
    channels, height, width = output_shape(processor)
    if channels != config.num_channels:
        raise ValueError(
            f"the processor makes pictures of {channels} channels, but num_channels is {config.num_channels}; make "
            "them alike"
        )
    if (height, width) != config.image_shape:
        raise ValueError(
            f"the processor makes pictures of {height}x{width} (height x width), but image_size is "
            f"{config.image_size}; make them alike"
        )
    return processor


def _new_processor(run: ViTSettings, config: AttnViTConfig) -> AttnViTImageProcessor:
    height, width = config.image_shape
    size = {"height": height, "width": width}
    if run.base_model is not None:
        return AttnViTImageProcessor.from_pretrained(run.base_model, size=size)
    return AttnViTImageProcessor(size=size, num_channels=config.num_channels, **PRESETS[run.preset].processor)


def _starting_model(run: ViTSettings, config: AttnViTConfig) -> AttnViTForImageClassification:
    """A new model, or the base model with its positions and patches resampled for other sizes.

    Its classifier stays only if it has the same classes in the same order.
    """
    if run.base_model is None:
        return AttnViTForImageClassification(config)
    base_labels = AttnViTConfig.from_pretrained(run.base_model).id2label
    with no_progress_bars():
        if base_labels == config.id2label:
            model = AttnViTForImageClassification.from_pretrained(run.base_model, config=config)
        else:
            model = AttnViTForImageClassification(config)
            body = AttnViTModel.from_pretrained(run.base_model, config=config)
            model.model.load_state_dict(body.state_dict())
    if run.freeze_body:
        model.model.requires_grad_(False)
    return model


# Training


def _trainer(
    model: AttnViTForImageClassification,
    processor: AttnViTImageProcessor,
    rows: dict[str, LabelledPictures],
    output_dir: Path,
    run: ViTSettings,
    last: int,
    tell: ProgressListener,
) -> ViTTrainer:
    num_labels = model.config.num_labels
    in_memory = run.in_memory is True or bool(
        run.in_memory and run.can_be_in_memory and _fit(rows["train"], processor)
    )
    tell(ProgressEvent("encode", 0, 1, "data sets"))
    train_dataset, collator = _training_pictures(rows["train"], processor, num_labels, run, in_memory)
    eval_dataset, eval_collator = _validation_pictures(rows.get("validation"), processor, num_labels, in_memory)
    tell(ProgressEvent("encode", 1, 1, "data sets"))
    between = steps_between_evaluations(len(rows["train"]), run, last)
    bf16, precision = choose_bf16(run.bf16, device_type())  # a batch has thousands of patches: narrow models gain too
    arguments = ViTTrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=run.batch_size,
        per_device_eval_batch_size=run.eval_batch_size,
        gradient_accumulation_steps=run.gradient_accumulation_steps,
        max_steps=last,
        max_minutes=run.max_minutes,
        learning_rate=run.learning_rate,
        warmup_steps=run.warmup_steps,
        weight_decay=run.weight_decay,
        layer_decay=run.layer_decay,
        max_grad_norm=run.max_grad_norm,
        logging_steps=min(50, between),
        logging_first_step=True,
        eval_strategy="steps" if "validation" in rows else "no",
        eval_steps=between,
        save_strategy="steps",
        save_steps=run.save_steps or between,
        average_last=run.average_last,
        ema_decay=run.ema_decay,
        early_stopping_patience=run.early_stopping_patience,
        dataloader_num_workers=0 if in_memory else run.num_workers,
        bf16=bf16,
        seed=run.seed,
        disable_tqdm=True,
    )
    arguments.precision = precision
    trainer = ViTTrainer(
        model,
        arguments,
        data_collator=collator,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        compute_metrics=picture_scores,
        eval_collator=eval_collator,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(tell, trainer.time_limit))
    return trainer


def _training_pictures(
    rows: LabelledPictures, processor: AttnViTImageProcessor, num_labels: int, run: ViTSettings, in_memory: bool
) -> tuple[LabelledPictures | PictureTensors, FollowsEpochs]:
    """The train split and the collator that changes it: in memory and by the batch, or picture by picture."""
    collator: FollowsEpochs
    if in_memory:
        collator = BatchedAugmentation(
            processor,
            flip=run.flip,
            padding=run.padding if run.crop == "pad" else 0,
            rotation=run.rotation,
            zoom=run.zoom,
            erase=run.erase,
            seed=run.seed,
        )
    else:
        transform = train_transform(
            processor,
            crop=None if run.crop == "none" else run.crop,
            crop_area=run.crop_area,
            padding=run.padding,
            flip=run.flip,
            randaugment=run.randaugment if run.randaugment[0] else None,
        )
        collator = PictureCollator(processor, transform, erase=run.erase, num_labels=num_labels, seed=run.seed)
    if run.mixup or run.cutmix:
        collator = MixupCutmixCollator(collator, num_labels, run.mixup, run.cutmix)
    return (_decoded(rows, processor, num_labels) if in_memory else rows), collator


def _validation_pictures(
    rows: LabelledPictures | None, processor: AttnViTImageProcessor, num_labels: int, in_memory: bool
) -> tuple[LabelledPictures | PictureTensors | None, FollowsEpochs]:
    """The validation split and a collator that leaves it as it is."""
    if rows is not None and in_memory and _fit(rows, processor):
        return _decoded(rows, processor, num_labels), BatchedAugmentation(processor)
    return rows, PictureCollator(processor, num_labels=num_labels)


def _fit(rows: LabelledPictures, processor: AttnViTImageProcessor) -> bool:
    """Whether there is memory for the pictures of a split."""
    return len(rows) * prod(output_shape(processor)) <= 1e6 * MEMORY_FOR_PICTURES


def _decoded(rows: LabelledPictures, processor: AttnViTImageProcessor, num_labels: int) -> PictureTensors:
    with no_progress_bars():
        pictures = PictureTensors.from_dataset(rows.split, processor, MEMORY_FOR_PICTURES)
    pictures.labels = label_tensor(rows.labels, num_labels)  # as the model numbers them
    return pictures


# After training


def _final_scores(
    output_dir: Path, data: datasets.DatasetDict, run: ViTSettings, tell: ProgressListener
) -> dict[str, ViTEvaluation]:
    """The finished model on held-out pictures."""

    def evaluate(split: str) -> ViTEvaluation:
        return evaluate_vit(
            output_dir,
            data,
            split=split,
            pictures=run.test_pictures,
            batch_size=run.eval_batch_size,
            bf16=run.bf16,
            num_workers=run.num_workers,
            progress=tell,
        )

    return final_scores(data, evaluate)


def _report(
    output_dir: Path,
    data: datasets.DatasetDict,
    run: ViTSettings,
    trainer: ViTTrainer,
    evaluations: dict[str, ViTEvaluation],
    tell: ProgressListener,
) -> ViTTrainingResult:
    scores = {split: evaluation.metrics for split, evaluation in evaluations.items()}
    training, parameters = training_facts(trainer), trainer.model.num_parameters()
    metrics: dict[str, Any] = {"training": training, "parameters": parameters, **scores}
    write_metrics(metrics, output_dir)
    plot_learning_curve(trainer.state.log_history, output_dir / "learning_curve.png")
    test = next(iter(evaluations.values()), None)
    confusion = None if test is None else test.confusion
    if test is not None and confusion is not None:
        plot_confusion(confusion, test.names, output_dir / "confusion_matrix.png")
    write_vit_card(
        output_dir,
        model_name=output_dir.absolute().name,
        config=_shape(trainer.model.config),
        parameters=parameters,
        recipe=recipe(run, PRESETS[run.preset].source),
        settings=_card_settings(run),
        pictures={split: len(pictures) for split, pictures in data.items()},
        training_pictures=count_labels(data["train"]),
        data_name=run.data_name,
        data_license=run.data_license,
        scores=scores,
        confusion=confusion,
        training=training,
        license=run.license,
    )
    tell(ProgressEvent("done", 1, 1, "runs"))
    return ViTTrainingResult(output_dir, metrics, trainer.state.log_history, test)


def _shape(config: AttnViTConfig) -> dict[str, Any]:
    """The fields that say what the model looks like, those that differ from the paper's model among them."""
    names = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
    ]
    return shape(config, AttnViTConfig(), names)


def _card_settings(run: ViTSettings) -> dict[str, Any]:
    elsewhere = {
        "preset",
        "base_model",
        "model_config",
        "image_size",
        "patch_size",
        "data_name",
        "data_license",
        "license",
    }
    return {name: value for name, value in asdict(run).items() if name not in elsewhere}
