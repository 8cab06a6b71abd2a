"""`hf-attn classify`: pictures in, a line of labels out for each, and heat maps of where the model looked."""

import sys
import warnings
from collections.abc import Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_attn.commands_shared import (
    Debug,
    Device,
    Quiet,
    check_file,
    option,
    prepare_transformers,
    read_config,
    readable_weights,
)
from hf_attn.console import (
    CountProgress,
    Progress,
    complaint,
    errors_in_one_line,
    json_line,
    lines_of,
    tab_separated,
    text_output,
)

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from transformers import BaseImageProcessor, PreTrainedModel

use = typer.Typer()

PICTURE_SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

BatchSize = Annotated[int, option("Pictures in a batch; lower it when memory runs out.", min=1)]
ClassifierModel = Annotated[str, option("Directory, or name on the Hub, of a picture classifier.", "--model", "-m")]
SkipBad = Annotated[bool, option("Report and leave out files that are no whole pictures.", "--skip-bad")]


@use.command(
    epilog="""
**Examples**

- `hf-attn classify cat.jpg --model runs/animals`
- `hf-attn classify photos/ --model runs/animals --top-k 1 --skip-bad > labels.tsv`
- `hf-attn classify cat.jpg dog.png --model runs/animals --explain heat/`
- `find . -name '*.jpg' | hf-attn classify - --model runs/animals --json | jq .labels[0].label`
"""
)
def classify(
    *,
    pictures: Annotated[
        list[str], typer.Argument(help="Pictures, directories of pictures, or - for paths on stdin, one a line.")
    ],
    model: ClassifierModel,
    output: Annotated[Path | None, option("File to write, instead of stdout.", "--output", "-o")] = None,
    top_k: Annotated[int, option("Labels of each picture, the most probable first.", panel="Output", min=1)] = 5,
    explain: Annotated[
        Path | None, option("Directory for heat maps of where the model looked.", panel="Output", file_okay=False)
    ] = None,
    as_json: Annotated[bool, option("Write one JSON object a picture.", "--json", panel="Output")] = False,
    batch_size: BatchSize = 16,
    skip_bad: SkipBad = False,
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say what is in pictures: one line out for each.

    A line is `path<tab>label<tab>probability<tab>label<tab>probability ...`, the likeliest label first. A directory
    stands for all pictures in it and below. With `--explain`, two PNGs for a picture `cat.jpg` show where the model
    looked: `cat.attention.png`, what the last layer read for the answer, and `cat.rollout.png`, what all layers
    together brought there (attention rollout, Abnar & Zuidema 2020).
    """
    shown = Progress(quiet or (output is None and sys.stdout.isatty()))
    with errors_in_one_line(debug), text_output(output) as stream, shown as progress:
        paths = picture_paths(pictures)
        classifier = load_classifier(model, device)
        heat_maps = None if explain is None else HeatMaps(classifier, explain)
        done = CountProgress(progress, "classifying", "pictures", len(paths))
        readable = whole_pictures(paths, skip_bad)
        while batch := list(islice(readable, batch_size)):
            answers = classifier.classify([picture for _, picture in batch], top_k)
            for (path, picture), labels in zip(batch, answers, strict=True):
                record: dict[str, Any] = {"path": path, "labels": labels}
                if heat_maps is not None:
                    record["heat_maps"] = heat_maps.draw(path, picture, labels[0])
                stream.write(json_line(record) if as_json else label_line(path, labels))
            done.add(len(batch))


def label_line(path: str, labels: list[dict[str, Any]]) -> str:
    """The path, and each label with its score."""
    return tab_separated(path, *(field for answer in labels for field in (answer["label"], f"{answer['score']:.4f}")))


# --- pictures in -----------------------------------------------------------------------------------------------------


def picture_paths(arguments: list[str]) -> list[str]:
    """The paths that the arguments stand for; those in a directory in the order of their names.

    Raises:
        ValueError: for a directory without pictures, or nothing on stdin.
    """
    paths: list[str] = []
    for argument in arguments:
        if argument == "-":
            paths += [line for line in lines_of(None) if line]
        elif Path(argument).is_dir():
            found = sorted(
                str(path)
                for path in Path(argument).rglob("*")
                if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
            )
            if not found:
                raise ValueError(f"{argument} holds no pictures ({', '.join(PICTURE_SUFFIXES)}); check the directory")
            paths += found
        else:
            paths.append(argument)
    if not paths:
        raise ValueError("no paths came on stdin; write one a line")
    return paths


def read_picture(path: str) -> "Image.Image":
    """The picture in a file, wholly decoded.

    Raises:
        ValueError: if there is none, or it is damaged or larger than Pillow allows.
    """
    from PIL import Image

    from hf_attn.training.picture_data import inspect_picture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        finding = inspect_picture({"bytes": None, "path": path})
        if finding.reason:
            raise ValueError(f"{path}: {finding.reason}" + (f" ({finding.detail})" if finding.detail else ""))
        with Image.open(path) as picture:
            picture.load()
            return picture


def whole_pictures(paths: list[str], skip_bad: bool) -> Iterator[tuple[str, "Image.Image"]]:
    """Each path with its picture, wholly decoded; what is none is an error, or is reported, left out and counted.

    Raises:
        ValueError: for a file that is no whole picture, or with `skip_bad` when none is.
    """
    skipped = 0
    for path in paths:
        try:
            picture = read_picture(path)
        except (ValueError, OSError) as error:
            if not skip_bad:
                raise
            skipped += 1
            print(f"skipped {complaint(error)}", file=sys.stderr)
        else:
            yield path, picture
    if skipped == len(paths):
        raise ValueError(f"none of the {skipped:,} files is a whole picture")
    if skipped:
        print(f"skipped {skipped:,} of {len(paths):,} files, which are no whole pictures", file=sys.stderr)


# --- the model -------------------------------------------------------------------------------------------------------


class Classifier:
    """A model that classifies pictures, and the processor that prepares them, on one device."""

    def __init__(self, model: "PreTrainedModel", processor: "BaseImageProcessor", device: "torch.device"):
        self.model = model.to(device).eval()
        self.processor = processor
        self.device = device

    def classify(self, pictures: list["Image.Image"], top_k: int) -> list[list[dict[str, Any]]]:
        """For each picture its most probable labels, best first: `{"label": "cat", "score": 0.9}`."""
        scores = self._scores([self.pixels(picture) for picture in pictures])
        best = scores.topk(min(top_k, scores.shape[-1]))
        names = self.model.config.id2label
        return [
            [{"label": names[label], "score": score} for score, label in zip(values, indices, strict=True)]
            for values, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def pixels(self, picture: "Image.Image", **options: Any) -> "torch.Tensor":
        """(1, channels, height, width), as the model sees the picture; `options` of the processor."""
        return self.processor(picture, return_tensors="pt", **options)["pixel_values"].to(self.device)

    def _scores(self, pixels: list["torch.Tensor"]) -> "torch.Tensor":
        """(pictures, labels): probabilities, or what a regression predicts. Pictures of one size share a batch."""
        import torch

        from hf_attn.image_processing_vit import same_shape

        config = self.model.config
        logits = torch.empty(len(pixels), config.num_labels)
        for rows in same_shape(pixels):
            with torch.inference_mode():
                logits[rows] = self.model(torch.cat([pixels[row] for row in rows])).logits.float().cpu()
        if config.problem_type == "regression":
            return logits
        one_of_many = config.problem_type != "multi_label_classification" and config.num_labels > 1
        return logits.softmax(-1) if one_of_many else logits.sigmoid()


def load_classifier(model: str, device: str | None) -> Classifier:
    """A classifier from a model directory or a name on the Hub.

    Raises:
        ValueError: if there is no such model or device, the model does not classify pictures, or a part of it is
            missing or damaged.
    """
    prepare_transformers()
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    check_classifier(model)
    chosen = usable_device(device)
    with readable_weights(model):
        network, loaded = AutoModelForImageClassification.from_pretrained(model, output_loading_info=True)
    if loaded["missing_keys"]:
        missing = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise ValueError(f"{model} was not trained to classify: it has no {missing}; train it with --from {model}")
    return Classifier(network, AutoImageProcessor.from_pretrained(model), chosen)


def check_classifier(model: str) -> None:
    """Refuse what cannot classify pictures before its weights are read."""
    config = read_config(model, trained_by="hf-attn train vit")
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    if type(config) not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        raise ValueError(f"{model} is a model of type {config.model_type}, which does not classify pictures")
    saved_as = config.architectures or []
    if saved_as and not any("ForImageClassification" in name for name in saved_as):
        raise ValueError(f"{model} is of class {saved_as[0]}, without a classifier; train one with --from {model}")
    check_file(model, ("preprocessor_config.json",), "image processor")


def usable_device(name: str | None) -> "torch.device":
    """The device of this name, by default an accelerator if there is one.

    Raises:
        ValueError: if it is not there.
    """
    import torch

    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--device {name} cannot be used ({reason}); leave it out, or name another") from error


# --- heat maps -------------------------------------------------------------------------------------------------------


class HeatMaps:
    """Draws where a ViT of this package looked, two PNGs a picture, into a directory.

    Raises:
        ValueError: if the model is another's.
    """

    def __init__(self, classifier: Classifier, directory: Path):
        model_type = classifier.model.config.model_type
        if model_type != "attn_vit":
            raise ValueError(f"--explain shows the attention of models of type attn_vit, and this one is {model_type}")
        self.classifier = classifier
        self.directory = directory
        self.names: set[str] = set()
        directory.mkdir(parents=True, exist_ok=True)

    def draw(self, path: str, picture: "Image.Image", answer: dict[str, Any]) -> dict[str, str]:
        """Write the heat maps of a picture; gives their paths. A second `cat` becomes `cat-2`."""
        from hf_attn.rollout import class_attention, rollout_map
        from hf_attn.visualization import draw_attention

        name = self._new_name(Path(path).stem)
        pixels, seen = self.classifier.pixels(picture), self.seen(picture)
        label = answer["label"].replace("$", r"\$")  # which would begin a formula
        files = {}
        for kind, look, what in (
            ("attention", class_attention, "attention of the last layer"),
            ("rollout", rollout_map, "attention rollout through all layers"),
        ):
            files[kind] = str(self.directory / f"{name}.{kind}.png")
            heat = look(self.classifier.model, pixels)[0].cpu()
            draw_attention(seen, heat, files[kind], title=f"{label} ({answer['score']:.2f}): {what}")
        return files

    def _new_name(self, stem: str) -> str:
        numbered = (f"{stem}-{number}" for number in count(2))
        name = next(name for name in chain([stem], numbered) if name not in self.names)
        self.names.add(name)
        return name

    def seen(self, picture: "Image.Image") -> "Image.Image":
        """The part of a picture that the model sees, turned, resized and cropped as for the model."""
        from PIL import Image

        pixels = self.classifier.pixels(picture, do_normalize=False)[0].clamp(0, 1)
        return Image.fromarray((255 * pixels).round().byte().permute(1, 2, 0).squeeze(-1).cpu().numpy())
