"""`hf-attn train detr` and `hf-attn evaluate detr`."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hf_attn.commands_detect import DetectorModel, check_detector, use
from hf_attn.commands_pictures import (
    BatchSize,
    ImageColumn,
    MaxBadShare,
    NewNames,
    SkipBadData,
    augmentation_option,
    model_option,
    training_option,
)
from hf_attn.commands_shared import (
    BF16,
    Accumulate,
    AsJson,
    AverageLast,
    DataLicense,
    Debug,
    EarlyStopping,
    Epochs,
    LearningRate,
    License,
    Minutes,
    MovingAverage,
    Output,
    Quiet,
    Resume,
    Seed,
    Split,
    Steps,
    WhichPrecision,
    check_fields,
    fields_and_values,
    given,
    option,
    prepare_transformers,
    read_config,
    readable_weights,
)
from hf_attn.console import Progress, TrainingProgress, errors_in_one_line, json_line, text_output, training_line

if TYPE_CHECKING:
    import datasets

    from hf_attn.training.detr_evaluation import DetrEvaluation

__all__ = ["evaluate", "train", "use"]

train, evaluate = typer.Typer(), typer.Typer()

Preset = Literal["tiny", "plain", "quick", "fine_tuning"]
ClassLoss = Literal["cross_entropy", "focal"]
Decay = Literal["step", "cosine"]
Layout = Literal["coco", "yolo", "voc", "datasets"]
BoxFormat = Literal["xywh", "xyxy", "cxcywh"]

Data = Annotated[str, typer.Argument(help="Pictures with boxes; see below.")]
WhichLayout = Annotated[Layout | None, option("Of a directory that holds several.", "--layout", panel="Data")]
PictureDirectory = Annotated[
    Path | None, option("Directory of the pictures, if not beside the boxes.", "--pictures-in", panel="Data")
]
WhichBoxFormat = Annotated[
    BoxFormat | None,
    option("What the four numbers of a box are.", "--box-format", panel="Data", show_default="xywh, if that fits"),
]
ClassNames = Annotated[str | None, option("Names of the classes, in order: cat,dog,...", panel="Data")]
ObjectsColumn = Annotated[str | None, option("Column of the boxes and their classes.", panel="Data")]

DATA_FORMATS = """
**Pictures with boxes** are one of

- COCO: a directory with annotations/instances_train.json, or with a .json file beside the pictures in folders train,
  valid and test, as Roboflow exports it; or such a .json file
- YOLO: data.yaml, or a directory with images/ and labels/
- Pascal VOC: a directory with Annotations/ and JPEGImages/, or with .xml files beside the pictures
- a data set of the Hub, one saved by the library `datasets`, or a `.parquet` file, with columns image and objects

Validation and test pictures that are missing are cut from the training pictures, the same ones each time.
"""

PRESETS = """
**Presets**

- `tiny`: for pictures of about 100 pixels, on two CPU cores in minutes; quick to learn as `quick` is; 20 epochs
- `plain`: DETR-R50 with the recipe of Carion et al. 2020; 300 epochs
- `quick`: the same with conditional attention, denoising and focal loss (DN-DAB-DETR, Li et al. 2022); 50 epochs
- `fine_tuning`: goes on from the model `--from`; 50 epochs
"""

SIZES = ("small", "medium", "large")  # COCO's: below 32² pixels, below 96², and above
NUMBERS_FOUND = (1, 10, 100)  # of a picture, as COCO limits them for its recalls


# --- train -----------------------------------------------------------------------------------------------------------


@train.command(
    "detr",
    epilog=f"""
{DATA_FORMATS}

{PRESETS}

**Examples**

- `hf-attn train detr street/ --output runs/street --pretrained-backbone --epochs 50`
- `hf-attn train detr shapes/ -o runs/shapes --preset tiny --minutes 20`
- `hf-attn train detr street/ -o runs/street --backbone resnet18 --scales 320,384,448 --longest-edge 640`
- `hf-attn train detr cars/ -o runs/cars --from runs/street --epochs 20`
- the same again with `--resume`, after Ctrl-C or a power cut, or with more `--epochs`
""",
)
def train_detr_command(
    *,
    data: Data,
    output: Output,
    resume: Resume = False,
    steps: Steps = None,
    epochs: Epochs = None,
    minutes: Minutes = None,
    early_stopping: EarlyStopping = None,
    preset: Annotated[
        Preset | None,
        model_option(
            "Shape and recipe, see below; other options override it.", show_default="quick; with --from fine_tuning"
        ),
    ] = None,
    config: Annotated[
        list[str] | None, model_option("A field of AttnDetrConfig: decoder_layers=3, ...", "--config")
    ] = None,
    backbone: Annotated[str | None, model_option("A network of timm: resnet50, resnet18, convnext_tiny, ...")] = None,
    pretrained_backbone: Annotated[
        bool | None, model_option("Fetch timm's weights of the backbone.", show_default="no")
    ] = None,
    backbone_model: Annotated[
        str | None,
        model_option("Directory, or name on the Hub, of a ViT of this package to begin with.", "--backbone-from"),
    ] = None,
    base_model: Annotated[
        str | None, model_option("Directory, or name on the Hub, of a detector to go on from.", "--from")
    ] = None,
    queries: Annotated[int | None, model_option("Objects to find in a picture at most.", min=1)] = None,
    conditional_attention: Annotated[
        bool | None, model_option("Queries that look around an anchor (Conditional DETR, DAB-DETR).")
    ] = None,
    denoising_groups: Annotated[
        int | None, model_option("Noised copies of the labels to learn from (DN-DETR); 0 for none.", min=0)
    ] = None,
    class_loss: Annotated[ClassLoss | None, model_option("Of the classes.")] = None,
    learning_rate: LearningRate = None,
    backbone_learning_rate: Annotated[
        float | None, training_option("The highest, of the backbone; 0 freezes it.")
    ] = None,
    warmup: Annotated[float | None, training_option("Steps of the warm-up; below 1 a share of the run.")] = None,
    decay: Annotated[
        Decay | None, training_option("How the learning rate falls: step, to a tenth; cosine, to zero.")
    ] = None,
    decay_from: Annotated[
        float | None, training_option("Share of the run after which it falls.", min=0, max=1)
    ] = None,
    weight_decay: Annotated[float | None, training_option("AdamW's.")] = None,
    clip: Annotated[float | None, training_option("Longer gradients are shortened to this norm; 0: none.")] = None,
    batch_size: Annotated[int | None, training_option("Pictures in a batch.", min=1)] = None,
    accumulate: Accumulate = 1,
    average_last: AverageLast = 1,
    ema: MovingAverage = None,
    precision: WhichPrecision = "auto",
    evaluate_every: Annotated[
        int | None,
        training_option(
            "Steps between validations and checkpoints.", min=1, show_default="an epoch, but at least 100 steps"
        ),
    ] = None,
    workers: Annotated[int, training_option("Processes that read pictures.", min=0)] = 0,
    scales: Annotated[
        str | None,
        augmentation_option(
            "Pixels of the shorter edge, one drawn for each picture, the last to evaluate: 480,512,..."
        ),
    ] = None,
    longest_edge: Annotated[int | None, augmentation_option("Pixels that no edge is longer than.", min=1)] = None,
    crop: Annotated[bool | None, augmentation_option("A random part of every second picture.")] = None,
    flip: Annotated[bool | None, augmentation_option("Left and right.")] = None,
    colour_jitter: Annotated[
        float | None, augmentation_option("Brightness, contrast and colour by up to this share.")
    ] = None,
    layout: WhichLayout = None,
    pictures_in: PictureDirectory = None,
    box_format: WhichBoxFormat = None,
    image_column: ImageColumn = None,
    objects_column: ObjectsColumn = None,
    class_names: ClassNames = None,
    skip_bad: SkipBadData = False,
    max_bad_share: MaxBadShare = 0.0,
    license: License = None,
    data_license: DataLicense = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a DETR to find objects in pictures, from scratch or from a trained one.

    What no option says follows from the preset, the length of the run too.

    The output directory then holds a model for `hf-attn detect` and `pipeline("object-detection")`, with its model
    card, learning curve, sample pictures and COCO's scores on held-out pictures, which are also printed.
    """
    shape = fields_and_values(config)
    settings = given(
        scales=edges(scales),
        longest_edge=longest_edge,
        num_queries=queries,
        conditional_attention=conditional_attention,
        denoising_groups=denoising_groups,
        class_loss=class_loss,
        backbone_learning_rate=backbone_learning_rate,
        warmup_steps=warmup,
        decay=decay,
        decay_from=decay_from,
        weight_decay=weight_decay,
        max_grad_norm=clip,
        batch_size=batch_size,
        crop=crop,
        flip=flip,
        colour_jitter=colour_jitter,
    )
    interrupted = f"interrupted; what is done is saved in {output}: go on with the same command and --resume"
    with errors_in_one_line(debug, interrupted), Progress(quiet) as progress:
        prepare_transformers()
        from hf_attn.configuration_detr import AttnDetrConfig
        from hf_attn.training.detr import train_detr

        check_fields(shape, AttnDetrConfig)
        if base_model is not None:
            read_config(base_model, trained_by="hf-attn train detr")
        source = load_data(
            data,
            layout,
            pictures_in,
            box_format,
            image_column,
            objects_column,
            class_names,
            skip_bad,
            max_bad_share,
            seed,
        )
        with readable_weights(base_model or str(output)):
            result = train_detr(
                source,
                output,
                resume=resume,
                progress=TrainingProgress(progress),
                preset=preset,
                model_config=shape,
                backbone=backbone,
                use_pretrained_backbone=pretrained_backbone,
                backbone_model=backbone_model,
                base_model=base_model,
                max_steps=steps,
                num_train_epochs=epochs,
                max_minutes=minutes,
                early_stopping_patience=early_stopping,
                learning_rate=learning_rate,
                gradient_accumulation_steps=accumulate,
                average_last=average_last,
                ema_decay=ema,
                eval_steps=evaluate_every,
                bf16=BF16[precision],
                num_workers=workers,
                seed=seed,
                data_name=Path(data).name,
                data_license=data_license,
                license=license,
                **settings,
            )
    with errors_in_one_line(debug), text_output(None) as stream:
        stream.write(training_line(output, result.metrics["training"]))
        for split in ("test", "validation"):
            if split in result.metrics:
                stream.writelines(box_score_lines(split, result.metrics[split]))


def edges(text: str | None) -> tuple[int, ...] | None:
    """`"480,512"` → (480, 512)"""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise typer.BadParameter(f"--scales {text} is not a list of pixels; write it as 480,512,544")
    return tuple(map(int, parts))


def load_data(
    data: str,
    layout: Layout | None,
    pictures_in: Path | None,
    box_format: BoxFormat | None,
    image_column: str | None,
    objects_column: str | None,
    class_names: str | None,
    skip_bad: bool,
    max_bad_share: float,
    seed: int,
) -> "datasets.DatasetDict":
    """The pictures in splits; says on stderr how many there are, and what was dropped, changed or cut."""
    from hf_attn.training.detection_data import load_detections

    splits, report = load_detections(
        data,
        layout=layout,
        pictures=pictures_in,
        box_format=box_format,
        image_column=image_column,
        objects_column=objects_column,
        class_names=None if class_names is None else [name.strip() for name in class_names.split(",")],
        skip_bad=skip_bad,
        max_bad_share=max_bad_share,
        seed=seed,
    )
    print(report, file=sys.stderr)
    return splits


def box_score_lines(split: str, metrics: Mapping[str, Any]) -> Iterator[str]:
    """COCO's average precisions and recalls on a split, by size, and for each class, the best known first."""
    precisions = [f"{name.upper()} {percent(metrics[name])}" for name in ("ap", "ap50", "ap75")]
    yield f"{split}: {', '.join(precisions)}, {metrics['pictures']:,} pictures, {metrics['boxes']:,} boxes\n"
    by_size = [f"{size} {percent(metrics[f'ap_{size}'])}" for size in SIZES]
    yield f"AP by size: {', '.join(by_size)}\n"
    recalls = [f"{percent(metrics[f'ar_{number}'])} with {number}" for number in NUMBERS_FOUND]
    by_size = [f"{size} {percent(metrics[f'ar_{size}'])}" for size in SIZES]
    yield f"AR: {', '.join(recalls)} boxes a picture; {', '.join(by_size)}\n"
    width = max(map(len, ["class", *metrics["class_ap"]]))
    yield f"{'class':<{width}}  {'AP':>6}  {'AP50':>6}\n"
    for name in sorted(metrics["class_ap"], key=lambda name: -(metrics["class_ap"][name] or 0.0)):
        figures = percent(metrics["class_ap"][name]), percent(metrics["class_ap50"][name])
        yield f"{name:<{width}}  {figures[0]:>6}  {figures[1]:>6}\n"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


# --- evaluate --------------------------------------------------------------------------------------------------------


@evaluate.command(
    "detr",
    epilog=f"""
{DATA_FORMATS}

**Examples**

- `hf-attn evaluate detr street/ --model runs/street`
- `hf-attn evaluate detr instances_val.json --pictures-in val2017/ -m runs/street --split all --draw seen/ --json`
""",
)
def evaluate_detr_command(
    *,
    data: Data,
    model: DetectorModel,
    split: Annotated[Split, option("Pictures to look at: all of a file that is held out.", panel="Data")] = "test",
    pictures: Annotated[int | None, option("So many, spread over the split.", panel="Data", min=1)] = None,
    layout: WhichLayout = None,
    pictures_in: PictureDirectory = None,
    box_format: WhichBoxFormat = None,
    image_column: ImageColumn = None,
    objects_column: ObjectsColumn = None,
    class_names: ClassNames = None,
    skip_bad: SkipBadData = False,
    max_bad_share: MaxBadShare = 0.0,
    draw: Annotated[
        Path | None, option("Directory for some pictures with what was found and what is there.", file_okay=False)
    ] = None,
    batch_size: BatchSize = 8,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find objects in held-out pictures and compare with their boxes: COCO's AP and AR, by size and class too.

    Classes are matched with those of the model by name. Boxes are compared in pixels of the original pictures.
    """
    with errors_in_one_line(debug), Progress(quiet) as progress:
        prepare_transformers()
        check_detector(model)
        from datasets import DatasetDict, concatenate_datasets

        from hf_attn.training.detr_evaluation import evaluate_detr

        found = load_data(
            data,
            layout,
            pictures_in,
            box_format,
            image_column,
            objects_column,
            class_names,
            skip_bad,
            max_bad_share,
            seed,
        )
        splits = DatasetDict(found, all=concatenate_datasets(list(found.values())))
        with readable_weights(model):
            evaluation = evaluate_detr(
                model,
                splits,
                split=split,
                pictures=pictures,
                batch_size=batch_size,
                progress=TrainingProgress(progress),
            )
        if draw is not None:
            draw_samples(evaluation, splits[split], draw)
    with errors_in_one_line(debug), text_output(None) as stream:
        metrics = evaluation.metrics
        stream.writelines([json_line(metrics)] if as_json else box_score_lines(split, metrics))


def draw_samples(evaluation: "DetrEvaluation", split: "datasets.Dataset", directory: Path) -> None:
    """Draw the sample pictures of an evaluation, with what was found and, dashed, what is there; by their ids."""
    from hf_attn.drawing import draw_boxes
    from hf_attn.training.detection_rows import class_names, objects_to_find

    directory.mkdir(parents=True, exist_ok=True)
    classes, names = class_names(split), NewNames()
    for sample in evaluation.samples:
        row = split[sample.row]
        truths = objects_to_find(row["objects"], classes)
        file = directory / f"{names.of(str(row['image_id']))}.png"
        draw_boxes(row["image"], sample.detections, file, names=evaluation.names, truths=truths)
