"""`hf-attn classify`: pictures in, a line of labels out for each, and heat maps of where the model looked."""

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_attn.commands_pictures import (
    BatchSize,
    NewNames,
    Pictures,
    SkipBad,
    check_task,
    check_whole,
    picture_paths,
    usable_device,
    whole_pictures,
)
from hf_attn.commands_shared import (
    Debug,
    Device,
    Format,
    Quiet,
    option,
    prepare,
    prepare_transformers,
    readable_weights,
)
from hf_attn.console import CountProgress, Progress, errors_in_one_line, json_line, tab_separated, text_output

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from transformers import BaseImageProcessor, PreTrainedModel

use = typer.Typer()

ClassifierModel = Annotated[str, option("Directory, or name on the Hub, of a picture classifier.", "--model", "-m")]


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
    pictures: Pictures,
    model: ClassifierModel,
    output: Annotated[Path | None, option("File to write, instead of stdout.", "--output", "-o")] = None,
    top_k: Annotated[int, option("Labels of each picture, the most probable first.", panel="Output", min=1)] = 5,
    explain: Annotated[
        Path | None, option("Directory for heat maps of where the model looked.", panel="Output", file_okay=False)
    ] = None,
    as_json: Annotated[bool, option("Write one JSON object a picture.", "--json", panel="Output")] = False,
    batch_size: BatchSize = 16,
    skip_bad: SkipBad = False,
    precision: Format = "fp32",
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
        classifier = load_classifier(model, device, precision)
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

        from hf_attn.image_processing_base import same_shape

        config = self.model.config
        logits = torch.empty(len(pixels), config.num_labels)
        for rows in same_shape(pixels):
            with torch.inference_mode():
                logits[rows] = self.model(torch.cat([pixels[row] for row in rows])).logits.float().cpu()
        if config.problem_type == "regression":
            return logits
        one_of_many = config.problem_type != "multi_label_classification" and config.num_labels > 1
        return logits.softmax(-1) if one_of_many else logits.sigmoid()


def load_classifier(model: str, device: str | None, precision: str = "fp32") -> Classifier:
    """A classifier from a model directory or a name on the Hub, prepared for inference.

    Raises:
        ValueError: if there is no such model, device or number format, the model does not classify pictures, or a part
            of it is missing or damaged.
    """
    prepare_transformers()
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    check_classifier(model)
    chosen = usable_device(device)
    with readable_weights(model):
        network, loaded = AutoModelForImageClassification.from_pretrained(model, output_loading_info=True)
    check_whole(model, loaded, "classify")
    classifier = Classifier(network, AutoImageProcessor.from_pretrained(model), chosen)
    prepare(classifier.model, precision)
    return classifier


def check_classifier(model: str) -> None:
    """Refuse what cannot classify pictures before its weights are read."""
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

    head, trained_by = "ForImageClassification", "hf-attn train vit"
    check_task(model, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, head, "classify pictures", "a classifier", trained_by)


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
        self.names = NewNames()
        directory.mkdir(parents=True, exist_ok=True)

    def draw(self, path: str, picture: "Image.Image", answer: dict[str, Any]) -> dict[str, str]:
        """Write the heat maps of a picture; gives their paths."""
        from hf_attn.rollout import class_attention, rollout_map
        from hf_attn.visualization import draw_attention

        name = self.names.of(path)
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

    def seen(self, picture: "Image.Image") -> "Image.Image":
        """The part of a picture that the model sees, turned, resized and cropped as for the model."""
        from PIL import Image

        pixels = self.classifier.pixels(picture, do_normalize=False)[0].clamp(0, 1)
        return Image.fromarray((255 * pixels).round().byte().permute(1, 2, 0).squeeze(-1).cpu().numpy())
