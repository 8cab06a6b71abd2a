"""From pictures with boxes to a detector, in one call: `train_detr`.

pictures and boxes → random changes → training with checkpoints → averaged model → AP on held-out pictures → report

All of it survives a kill at any moment: the same call with `resume=True` goes on from what is complete on disk.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
from torch import nn
from transformers import PrinterCallback, set_seed
from transformers.utils import logging

from hf_attn.configuration_detr import AttnDetrConfig
from hf_attn.configuration_vit import AttnViTConfig
from hf_attn.image_processing_detr import AttnDetrImageProcessor
from hf_attn.modeling_detr import AttnDetrForObjectDetection, AttnDetrModel
from hf_attn.modeling_vit import AttnViTBackbone
from hf_attn.training.arguments import DetrTrainingArguments
from hf_attn.training.callbacks import Progress, ProgressEvent, ProgressListener
from hf_attn.training.checkpoints import complete_checkpoints, no_progress_bars
from hf_attn.training.detection_augmentation import DetectionCollator, detection_transform
from hf_attn.training.detection_rows import DetectionRows, class_names, count_boxes
from hf_attn.training.detr_evaluation import DetrEvaluation, EvaluationCollator, evaluate_detr
from hf_attn.training.detr_report import draw_sample, plot_detr_curve, write_detr_card
from hf_attn.training.detr_settings import PRESETS, DetrSettings, check_detection_data
from hf_attn.training.detr_trainer import DetrTrainer
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

logger = logging.get_logger(__name__)


@dataclass
class DetrTrainingResult:
    """What `train_detr` made.

    `metrics` is what metrics.json holds: `training` (`steps`, `pictures`, `minutes`, `pictures_per_second`,
    `precision`, `hardware`, `stopped`), `parameters`, and the metrics of each split measured.
    """

    output_dir: Path
    metrics: dict[str, Any]
    log_history: list[dict[str, float]]
    test: DetrEvaluation | None = field(repr=False)  # of the validation split where there is no other


def train_detr(
    data: datasets.DatasetDict,
    output_dir: str | Path,
    *,
    resume: bool = False,
    processor: AttnDetrImageProcessor | None = None,
    progress: ProgressListener | None = None,
    **settings: Any,
) -> DetrTrainingResult:
    """Train a detector, from scratch, on a trained backbone, or from a detector that is there already.

    `output_dir` then holds the model and image processor that `pipeline("object-detection")` loads, README.md (the
    model card), learning_curve.png, sample.png, samples/ (a few validation pictures at each evaluation), metrics.json,
    training_settings.json and checkpoints/.

    Args:
        data: splits `train` and, for scores, `validation` and `test`, as `load_detections` makes them.
        output_dir: empty or not there; with `resume`, the directory of a run that was stopped, or is to go on longer.
        resume: go on from what is on disk.
        processor: that makes the model's input; by default that of the preset or of the base model.
        progress: told how far the work is.
        settings: the fields of `DetrSettings`.

    Raises:
        ValueError: for settings, data or a directory that do not fit.
        OSError: for a directory that cannot be written to, or a disk without room; FileNotFoundError without a base
            model.
        TrainingInterrupted: on Ctrl-C or SIGTERM, once a checkpoint is saved.
    """
    run = DetrSettings(**settings)
    tell = progress or (lambda event: None)
    output_dir = Path(output_dir)
    check_detection_data(data, run)
    last = last_step(len(data["train"]), run)
    config = run.configuration(class_names(data["train"]))
    rows = {
        split: DetectionRows(data[split], split, config.label2id)
        for split in ("train", "validation", "test")
        if split in data and len(data[split])
    }
    processor = began_with(output_dir, processor, AttnDetrImageProcessor, resume) or processor or _processor(run)
    open_run(output_dir, run, data, resume)
    save_processor(processor, output_dir)

    set_seed(run.seed)
    goes_on = bool(complete_checkpoints(output_dir / "checkpoints"))
    model = _without_fetching(config) if goes_on else _starting_model(run, config)
    _warn_of_live_batch_norm(model, run)
    trainer = _trainer(model, processor, rows, output_dir, run, last, tell)
    trainer.train(resume_from_checkpoint=goes_on)
    save_model(trainer, output_dir)

    def evaluate(split: str) -> DetrEvaluation:
        return evaluate_detr(
            output_dir,
            data,
            split=split,
            pictures=run.test_pictures,
            batch_size=run.eval_batch_size,
            bf16=run.bf16,
            num_workers=run.num_workers,
            progress=tell,
        )

    return _report(output_dir, data, run, trainer, final_scores(data, evaluate), tell)


def _processor(run: DetrSettings) -> AttnDetrImageProcessor:
    if run.base_model is not None:
        return AttnDetrImageProcessor.from_pretrained(run.base_model, size=run.size)
    return AttnDetrImageProcessor(size=run.size, **PRESETS[run.preset].processor)


def _starting_model(run: DetrSettings, config: AttnDetrConfig) -> AttnDetrForObjectDetection:
    """A new model, one with a trained backbone, or the base model.

    The base model's class head stays only if it has the same classes in the same order, and learned them by the same
    loss; all else stays.
    """
    if run.base_model is None:
        model = AttnDetrForObjectDetection(config)
        if run.backbone_model is not None:
            with no_progress_bars():
                body = AttnViTBackbone.from_pretrained(run.backbone_model)
            model.model.backbone.body.load_state_dict(body.state_dict())
        return model
    base = AttnDetrConfig.from_pretrained(run.base_model)
    with no_progress_bars():
        if (base.id2label, base.class_loss) == (config.id2label, config.class_loss):
            return AttnDetrForObjectDetection.from_pretrained(run.base_model, config=config)
        model = _without_fetching(config)
        body = AttnDetrModel.from_pretrained(run.base_model, config=config, ignore_mismatched_sizes=True)
    model.model.load_state_dict(body.state_dict())
    return model


def _warn_of_live_batch_norm(model: AttnDetrForObjectDetection, run: DetrSettings) -> None:
    body = model.model.backbone.body
    has_batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in body.modules())
    learns = has_batch_norm and run.backbone_learning_rate and not model.config.frozen_batch_norm
    if learns and (len(run.scales) > 1 or run.crop):
        logger.warning(
            "The backbone's batch norm learns, and normalises over pictures of one size; with "
            f"{len(run.scales)} scales{' and crops' if run.crop else ''} nearly each picture of a batch has a size of "
            "its own, so that evaluation, by the mean of all, differs from training. use_pretrained_backbone=True "
            "freezes batch norm; one scale and crop=False, or a backbone without it, such as convnext_tiny, do too."
        )


def _without_fetching(config: AttnDetrConfig) -> AttnDetrForObjectDetection:
    """A model for weights that are there already, so that none of timm's are fetched."""
    fetches, config.use_pretrained_backbone = config.use_pretrained_backbone, False
    try:
        return AttnDetrForObjectDetection(config)
    finally:
        config.use_pretrained_backbone = fetches


def _trainer(
    model: AttnDetrForObjectDetection,
    processor: AttnDetrImageProcessor,
    rows: dict[str, DetectionRows],
    output_dir: Path,
    run: DetrSettings,
    last: int,
    tell: ProgressListener,
) -> DetrTrainer:
    between = steps_between_evaluations(len(rows["train"]), run, last)
    bf16, precision = choose_bf16(run.bf16, device_type(), model.config.hidden_size)
    arguments = DetrTrainingArguments(
        output_dir=str(output_dir / "checkpoints"),
        per_device_train_batch_size=run.batch_size,
        per_device_eval_batch_size=run.eval_batch_size,
        gradient_accumulation_steps=run.gradient_accumulation_steps,
        max_steps=last,
        max_minutes=run.max_minutes,
        learning_rate=run.learning_rate,
        backbone_learning_rate=run.backbone_learning_rate,
        warmup_steps=run.warmup_steps,
        decay=run.decay,
        decay_from=run.decay_from,
        weight_decay=run.weight_decay,
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
        drawn_pictures=run.drawn_pictures,
        dataloader_num_workers=run.num_workers,
        bf16=bf16,
        seed=run.seed,
        disable_tqdm=True,
    )
    arguments.precision = precision
    transform = detection_transform(
        scales=run.scales, longest_edge=run.longest_edge, crop=run.crop, flip=run.flip, colour_jitter=run.colour_jitter
    )
    trainer = DetrTrainer(
        model,
        arguments,
        data_collator=DetectionCollator(processor, transform, seed=run.seed),
        eval_collator=EvaluationCollator(processor),
        train_dataset=rows["train"],
        eval_dataset=rows.get("validation"),
        processing_class=processor,
        drawings=output_dir / "samples",
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress(tell, trainer.time_limit))
    return trainer


def _report(
    output_dir: Path,
    data: datasets.DatasetDict,
    run: DetrSettings,
    trainer: DetrTrainer,
    evaluations: dict[str, DetrEvaluation],
    tell: ProgressListener,
) -> DetrTrainingResult:
    scores = {split: evaluation.metrics for split, evaluation in evaluations.items()}
    training, parameters = training_facts(trainer), trainer.model.num_parameters()
    metrics: dict[str, Any] = {"training": training, "parameters": parameters, **scores}
    write_metrics(metrics, output_dir)
    plot_detr_curve(trainer.state.log_history, output_dir / "learning_curve.png")
    split, test = next(iter(evaluations.items()), (None, None))
    if split is not None and test is not None:
        draw_sample(test, data[split], output_dir / "sample.png")
    config = trainer.model.config
    names = ["backbone", "hidden_size", "encoder_layers", "decoder_layers", "num_attention_heads", "num_queries"]
    fields = shape(config, AttnDetrConfig(), names)
    if fields.pop("backbone_config", None) is not None:
        fields["backbone"] = _vit_in_words(config.backbone_config)
    write_detr_card(
        output_dir,
        model_name=output_dir.absolute().name,
        config=fields,
        parameters=parameters,
        recipe={**recipe(run, PRESETS[run.preset].source), "trained_backbone": _trained_backbone(run, config)},
        settings=_card_settings(run),
        pictures={split: len(pictures) for split, pictures in data.items()},
        training_boxes=count_boxes(data["train"]),
        data_name=run.data_name,
        data_license=run.data_license,
        scores=scores,
        training=training,
        license=run.license,
    )
    tell(ProgressEvent("done", 1, 1, "runs"))
    return DetrTrainingResult(output_dir, metrics, trainer.state.log_history, test)


def _vit_in_words(settings: dict[str, Any]) -> str:
    vit = AttnViTConfig(**settings)
    return f"Vision Transformer, {vit.num_hidden_layers} layers of width {vit.hidden_size}, patches {vit.patch_size}"


def _trained_backbone(run: DetrSettings, config: AttnDetrConfig) -> str:
    """The name of the backbone, if a new detector was put on one that had learned already."""
    if run.backbone_model is not None:  # a directory's place on this disk is nobody's business
        return Path(run.backbone_model).absolute().name if Path(run.backbone_model).is_dir() else run.backbone_model
    return f"{config.backbone} of timm" if run.use_pretrained_backbone else ""


def _card_settings(run: DetrSettings) -> dict[str, Any]:
    elsewhere = {"preset", "base_model", "backbone_model", "model_config", "data_name", "data_license", "license"}
    return {name: value for name, value in asdict(run).items() if name not in elsewhere}
