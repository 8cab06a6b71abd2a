"""`hf-attn train vit` and `hf-attn evaluate vit`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hf_attn.commands_classify import ClassifierModel, check_classifier, use
from hf_attn.commands_pictures import (
    BatchSize,
    ImageColumn,
    MaxBadShare,
    SkipBadData,
    augmentation_option,
    check_directory,
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
from hf_attn.console import (
    Progress,
    TrainingProgress,
    errors_in_one_line,
    json_line,
    picture_score_lines,
    tab_separated,
    text_output,
    training_line,
)

if TYPE_CHECKING:
    import datasets

    from hf_attn.training.vit_evaluation import Answer, ViTEvaluation

__all__ = ["evaluate", "train", "use"]

train, evaluate = typer.Typer(), typer.Typer()

Preset = Literal["tiny", "small", "big_vision_s16", "fine_tuning", "higher_resolution"]
Crop = Literal["inception", "pad", "none"]

Data = Annotated[str, typer.Argument(help="Pictures with labels; see below.")]
LabelColumn = Annotated[str | None, option("Column of the labels.", panel="Data")]
ClassNames = Annotated[str | None, option("Names for labels that are numbers: cat,dog,...", panel="Data")]


DATA_FORMATS = """
**Pictures with labels** are one of

- a directory with a folder of pictures for each class, perhaps inside of folders train, validation and test
- a `.csv`, `.tsv` or `.jsonl` file with a column of paths and one of labels; several labels as `cat|dog`
- a `.parquet` file with pictures
- a directory of idx files, such as `train-images-idx3-ubyte.gz`, as MNIST comes
- a data set of the Hub, or one saved by the library `datasets`

Validation and test pictures that are missing are cut from the training pictures, the same ones each time.
"""


PRESETS = """
**Presets**

- `tiny`: 4 layers of width 64 for pictures of 28 pixels, such as digits; 30 epochs
- `small`: ViT-Lite-7/4 of Hassani et al. 2021 for pictures of 32 pixels, with its recipe for CIFAR-10; 300 epochs
- `big_vision_s16`: ViT-S/16 of Beyer et al. 2022 for photos, with its recipe for ImageNet; 90 epochs
- `fine_tuning`: goes on from the model `--from`, with layer decay and pictures changed a little; 10 epochs
- `higher_resolution`: goes on from the model `--from` with pictures of 384 pixels, or `--image-size`; 20 epochs
"""


# --- train -----------------------------------------------------------------------------------------------------------


@train.command(
    "vit",
    epilog=f"""
{DATA_FORMATS}

{PRESETS}

**Examples**

- `hf-attn train vit animals/ --output runs/animals --minutes 20`
- `hf-attn train vit digits.csv -o runs/digits --preset tiny --no-flip --epochs 60`
- `hf-attn train vit flowers/ -o runs/flowers --from runs/animals --freeze-body --epochs 5`
- `hf-attn train vit animals/ -o runs/animals-384 --preset higher_resolution --from runs/animals --image-size 384`
- the same again with `--resume`, after Ctrl-C or a power cut, or with more `--epochs`
""",
)
def train_vit_command(
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
            "Shape and recipe, see below; other options override it.", show_default="small; with --from fine_tuning"
        ),
    ] = None,
    config: Annotated[
        list[str] | None, model_option("A field of AttnViTConfig: num_hidden_layers=6, ...", "--config")
    ] = None,
    image_size: Annotated[str | None, model_option("Pixels: 224, or height x width, 192x256.")] = None,
    patch_size: Annotated[str | None, model_option("Pixels: 16, or height x width, 16x8.")] = None,
    base_model: Annotated[
        str | None, model_option("Directory, or name on the Hub, of a model to go on from.", "--from")
    ] = None,
    freeze_body: Annotated[bool, model_option("Train the classifier alone, with --from.", "--freeze-body")] = False,
    learning_rate: LearningRate = None,
    layer_decay: Annotated[
        float | None, training_option("Factor of the learning rate from each layer down to the next.")
    ] = None,
    warmup: Annotated[float | None, training_option("Steps of the warm-up; below 1 a share of the run.")] = None,
    weight_decay: Annotated[float | None, training_option("AdamW's, on weight matrices only.")] = None,
    drop_path: Annotated[float | None, training_option("Chance that the last layer is left out; less below.")] = None,
    label_smoothing: Annotated[float | None, training_option("Share of each label spread over all classes.")] = None,
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
    workers: Annotated[int, training_option("Processes that read pictures which are not in memory.", min=0)] = 0,
    crop: Annotated[
        Crop | None, augmentation_option("inception: a random part; pad: shifted by a few pixels.")
    ] = None,
    flip: Annotated[bool | None, augmentation_option("Left and right; not for digits or letters.")] = None,
    rotation: Annotated[float | None, augmentation_option("Up to so many degrees.")] = None,
    zoom: Annotated[float | None, augmentation_option("0.1: from 0.9 to 1.1 times the size.")] = None,
    randaugment: Annotated[
        str | None, augmentation_option("Operations, and their magnitude up to 10: 2,9; 0,0 for none.")
    ] = None,
    erase: Annotated[float | None, augmentation_option("Share of pictures with a part painted over.")] = None,
    mixup: Annotated[float | None, augmentation_option("α of the mixing of two pictures; 0 for none.")] = None,
    cutmix: Annotated[
        float | None, augmentation_option("α of the pasting of one picture on another; 0 for none.")
    ] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    class_names: ClassNames = None,
    skip_bad: SkipBadData = False,
    max_bad_share: MaxBadShare = 0.0,
    license: License = None,
    data_license: DataLicense = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a Vision Transformer to classify pictures, from scratch or from a trained one.

    What no option says follows from the preset, the length of the run too.

    The output directory then holds a model for `hf-attn classify` and `pipeline("image-classification")`, with its
    model card, learning curve, confusion matrix and accuracy on held-out pictures, which is also printed.
    """
    shape = fields_and_values(config)
    settings = given(
        image_size=side_or_sides(image_size, "--image-size"),
        patch_size=side_or_sides(patch_size, "--patch-size"),
        randaugment=operations_and_magnitude(randaugment),
        layer_decay=layer_decay,
        warmup_steps=warmup,
        weight_decay=weight_decay,
        drop_path_rate=drop_path,
        label_smoothing=label_smoothing,
        batch_size=batch_size,
        crop=crop,
        flip=flip,
        rotation=rotation,
        zoom=zoom,
        erase=erase,
        mixup=mixup,
        cutmix=cutmix,
    )
    interrupted = f"interrupted; what is done is saved in {output}: go on with the same command and --resume"
    with errors_in_one_line(debug, interrupted), Progress(quiet) as progress:
        prepare_transformers()
        from hf_attn.configuration_vit import AttnViTConfig
        from hf_attn.training.vit import train_vit

        check_fields(shape, AttnViTConfig)
        if base_model is not None:
            read_config(base_model, trained_by="hf-attn train vit")
        with readable_weights(base_model or str(output)):
            result = train_vit(
                load_data(data, image_column, label_column, class_names, skip_bad, max_bad_share, seed),
                output,
                resume=resume,
                progress=TrainingProgress(progress),
                preset=preset,
                model_config=shape,
                base_model=base_model,
                freeze_body=freeze_body,
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
                stream.writelines(picture_score_lines(split, result.metrics[split]))


def side_or_sides(text: str | None, option: str) -> int | tuple[int, int] | None:
    """`"224"` → 224, `"192x256"` → (192, 256)"""
    if text is None:
        return None
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise typer.BadParameter(f"{option} {text} is neither a side, 224, nor height x width, 192x256")
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def operations_and_magnitude(text: str | None) -> tuple[int, float] | None:
    """`"2,9"` → (2, 9.0)"""
    if text is None:
        return None
    operations, _, magnitude = text.partition(",")
    try:
        return int(operations), float(magnitude)
    except ValueError as error:
        raise typer.BadParameter(f"--randaugment {text} is not operations,magnitude; write it as 2,9") from error


def load_data(
    data: str,
    image_column: str | None,
    label_column: str | None,
    class_names: str | None,
    skip_bad: bool,
    max_bad_share: float,
    seed: int,
) -> "datasets.DatasetDict":
    """The pictures in splits; says on stderr how many there are, and what was dropped or cut."""
    from hf_attn.training.picture_data import load_pictures

    splits, report = load_pictures(
        data,
        image_column=image_column,
        label_column=label_column,
        class_names=None if class_names is None else [name.strip() for name in class_names.split(",")],
        skip_bad=skip_bad,
        max_bad_share=max_bad_share,
        seed=seed,
    )
    print(report, file=sys.stderr)
    return splits


# --- evaluate --------------------------------------------------------------------------------------------------------


@evaluate.command(
    "vit",
    epilog=f"""
{DATA_FORMATS}

**Examples**

- `hf-attn evaluate vit animals/ --model runs/animals`
- `hf-attn evaluate vit new-photos/ -m runs/animals --split all --confusion-matrix confusion.png --json`
""",
)
def evaluate_vit_command(
    *,
    data: Data,
    model: ClassifierModel,
    split: Annotated[Split, option("Pictures to classify: all of a file that is held out.", panel="Data")] = "test",
    pictures: Annotated[int | None, option("So many, spread over the split.", panel="Data", min=1)] = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    class_names: ClassNames = None,
    skip_bad: SkipBadData = False,
    max_bad_share: MaxBadShare = 0.0,
    output: Annotated[
        Path | None, option("TSV file of path, label, answer and its probability.", "--output", "-o")
    ] = None,
    confusion_matrix: Annotated[
        Path | None, option("PNG to draw: which classes were taken for which.", dir_okay=False)
    ] = None,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Classify held-out pictures and measure accuracy, top-5 accuracy and the loss, for each class too.

    Labels are matched with those of the model by name.
    """
    shown = Progress(quiet)
    with errors_in_one_line(debug), text_output(output or Path(os.devnull)) as stream, shown as progress:
        if confusion_matrix is not None:
            check_directory(confusion_matrix)
        prepare_transformers()
        check_classifier(model)
        from datasets import DatasetDict, concatenate_datasets

        from hf_attn.training.vit_evaluation import evaluate_vit

        splits = load_data(data, image_column, label_column, class_names, skip_bad, max_bad_share, seed)
        with readable_weights(model):
            evaluation = evaluate_vit(
                model,
                DatasetDict(splits, all=concatenate_datasets(list(splits.values()))),
                split=split,
                pictures=pictures,
                batch_size=batch_size,
                progress=TrainingProgress(progress),
            )
        if output is not None:
            stream.writelines(map(answer_line, evaluation.answers))
        if confusion_matrix is not None:
            draw_confusion(evaluation, confusion_matrix)
    with errors_in_one_line(debug), text_output(None) as stream:
        metrics = evaluation.metrics
        stream.writelines([json_line(metrics)] if as_json else picture_score_lines(split, metrics))


def answer_line(answer: "Answer") -> str:
    """The path of a picture, what it is, what the model said, and how probable that is to it, separated by tabs."""
    return tab_separated(answer.path or "", answer.label, answer.predicted, f"{answer.confidence:.4f}")


def draw_confusion(evaluation: "ViTEvaluation", path: Path) -> None:
    from hf_attn.training.vit_report import plot_confusion

    if evaluation.confusion is None:
        raise ValueError("--confusion-matrix is for pictures of one class each, and these have several")
    plot_confusion(evaluation.confusion, evaluation.names, path)
