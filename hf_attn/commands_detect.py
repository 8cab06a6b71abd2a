"""`hf-attn detect`: pictures in, a line out for each object; and what was found drawn on the pictures."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from hf_attn.console import (
    CountProgress,
    Progress,
    errors_in_one_line,
    json_line,
    tab_separated,
    text_output,
    whole_file,
)

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from transformers import BaseImageProcessor, PreTrainedModel

use = typer.Typer()

LIST_FILE = "detections.json"
QUERIES_EXPLAINED = 8  # at most, the surest ones
POINTS_EXPLAINED = 6

DetectorModel = Annotated[str, option("Directory, or name on the Hub, of a detector.", "--model", "-m")]


@use.command(
    epilog="""
**Examples**

- `hf-attn detect street.jpg --model runs/street --out found/`
- `hf-attn detect photos/ --model runs/street --threshold 0.8 --skip-bad > boxes.tsv`
- `hf-attn detect street.jpg --model runs/street --explain attention/`
- `find . -name '*.jpg' | hf-attn detect - --model runs/street --json | jq '.detections | length'`
"""
)
def detect(
    *,
    pictures: Pictures,
    model: DetectorModel,
    threshold: Annotated[
        float, option("Leave out what is less probable than this.", panel="Output", min=0, max=1)
    ] = 0.5,
    out: Annotated[
        Path | None,
        option(
            "Directory for pictures with boxes, and detections.json.", "--out", "-o", panel="Output", file_okay=False
        ),
    ] = None,
    explain: Annotated[
        Path | None, option("Directory for pictures of where the model looked.", panel="Output", file_okay=False)
    ] = None,
    as_json: Annotated[bool, option("Write one JSON object a picture.", "--json", panel="Output")] = False,
    batch_size: BatchSize = 8,
    skip_bad: SkipBad = False,
    precision: Format = "fp32",
    device: Device = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find objects in pictures: one line out for each object.

    A line is `path<tab>label<tab>probability<tab>left<tab>top<tab>right<tab>bottom`, the edges in pixels of the
    picture as one sees it, the surest object of a picture first. A directory stands for all pictures in it and below.

    With `--out`, the boxes are drawn on each picture, `cat.png` for `cat.jpg`, and detections.json lists all pictures
    with their sizes and objects. With `--explain`, two PNGs show where the model looked: `cat.queries.png`, what the
    last decoder layer read for each object, and `cat.points.png`, what the last encoder layer read at the middle of
    each (figures 6 and 3 of Carion et al. 2020).
    """
    shown = Progress(quiet or sys.stdout.isatty())
    with errors_in_one_line(debug), text_output(None) as stream, shown as progress:
        paths = picture_paths(pictures)
        check_nothing_is_overwritten(paths, out)
        detector = load_detector(model, device, precision)
        drawn = None if out is None else DrawnBoxes(detector, out)
        attention = None if explain is None else AttentionPictures(detector, explain)
        done = CountProgress(progress, "detecting", "pictures", len(paths))
        readable = ((path, upright_picture(picture)) for path, picture in whole_pictures(paths, skip_bad))
        with json_list(None if out is None else out / LIST_FILE) as add:
            while batch := list(islice(readable, batch_size)):
                answers = detector.detect([picture for _, picture in batch], threshold)
                for (path, picture), found in zip(batch, answers, strict=True):
                    record = {"path": path, "width": picture.width, "height": picture.height, "detections": found}
                    if drawn is not None:
                        record["drawn"] = drawn.draw(path, picture, found)
                    if attention is not None:
                        record["attention"] = attention.draw(path, picture, threshold)
                    add(record)
                    stream.writelines([json_line(record)] if as_json else box_lines(path, found))
                done.add(len(batch))


def box_lines(path: str, found: list[dict[str, Any]]) -> Iterator[str]:
    """A line for each object."""
    for one in found:
        yield tab_separated(path, one["label"], f"{one['score']:.4f}", *(f"{edge:.1f}" for edge in one["box"]))


@contextmanager
def json_list(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What writes records into a list in a file, one a line, that takes its name only when all of it is written."""
    if path is None:
        yield lambda record: None
        return
    with whole_file(path) as stream:
        before = "[\n"

        def add(record: dict[str, Any]) -> None:
            nonlocal before
            stream.write(before + json.dumps(record, ensure_ascii=False))
            before = ",\n"

        yield add
        stream.write("\n]\n" if before == ",\n" else "[]\n")


def check_nothing_is_overwritten(paths: list[str], directory: Path | None) -> None:
    """Refuse to draw into a directory where a picture to be read may have the name of a drawn one."""
    if directory is None:
        return
    for path in paths:
        if Path(path).suffix.lower() == ".png" and Path(path).resolve().parent == directory.resolve():
            raise ValueError(f"--out {directory} would overwrite {path}, which is to be read; name another directory")


def upright_picture(picture: "Image.Image") -> "Image.Image":
    """The picture as one sees it, which is what boxes are of."""
    from hf_attn.image_processing_inputs import upright

    return upright(picture)


# --- the model -------------------------------------------------------------------------------------------------------


class Detector:
    """A model that detects objects, and the processor that prepares pictures for it, on one device."""

    def __init__(self, model: "PreTrainedModel", processor: "BaseImageProcessor", device: "torch.device"):
        self.model = model.to(device).eval()
        self.processor = processor
        self.device = device

    @property
    def names(self) -> list[str]:
        """Of the classes."""
        return [self.model.config.id2label[number] for number in range(self.model.config.num_labels)]

    def detect(self, pictures: list["Image.Image"], threshold: float) -> list[list[dict[str, Any]]]:
        """For each upright picture what is in it, surest first: `{"label": "cat", "score": 0.9, "box": [...]}`.

        A box is [left, top, right, bottom] in pixels, cut off at the edges of the picture. Pictures that have one size
        for the model share a batch, so that none is padded and none depends on its neighbours.
        """
        import torch

        from hf_attn.image_processing_base import same_shape

        inputs = [self.inputs(picture) for picture in pictures]
        found: list[list[dict[str, Any]]] = [[] for _ in pictures]
        for rows in same_shape([one["pixel_values"] for one in inputs]):
            batch = {name: torch.cat([inputs[row][name] for row in rows]) for name in inputs[rows[0]]}
            sizes = [(pictures[row].height, pictures[row].width) for row in rows]
            with torch.inference_mode():
                outputs = self.model(**batch)
                answers = self.processor.post_process_object_detection(outputs, threshold, target_sizes=sizes)
            for row, answer in zip(rows, answers, strict=True):
                found[row] = self.objects(answer, pictures[row].size)
        return found

    def inputs(self, picture: "Image.Image") -> dict[str, "torch.Tensor"]:
        """What the model takes for one picture: `pixel_values` (1, channels, height, width), perhaps `pixel_mask`."""
        return dict(self.processor(images=picture, return_tensors="pt").to(self.device))

    def objects(self, answer: dict[str, "torch.Tensor"], size: tuple[int, int]) -> list[dict[str, Any]]:
        """An answer of `post_process_object_detection` in words and numbers; `size` is (width, height)."""
        boxes = answer["boxes"].float().cpu()
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([*size, *size]))
        fields = answer["labels"].tolist(), answer["scores"].tolist(), boxes.tolist()
        found = [
            {"label": self.model.config.id2label[label], "score": score, "box": [round(edge, 2) for edge in box]}
            for label, score, box in zip(*fields, strict=True)
        ]
        return sorted(found, key=lambda one: -one["score"])


def load_detector(model: str, device: str | None, precision: str = "fp32") -> Detector:
    """A detector from a model directory or a name on the Hub, prepared for inference.

    Raises:
        ValueError: if there is no such model, device or number format, the model does not detect objects, or a part of
            it is missing or damaged.
    """
    prepare_transformers()
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    check_detector(model)
    chosen = usable_device(device)
    with readable_weights(model):
        network, loaded = AutoModelForObjectDetection.from_pretrained(model, output_loading_info=True)
    check_whole(model, loaded, "detect objects")
    detector = Detector(network, AutoImageProcessor.from_pretrained(model), chosen)
    prepare(detector.model, precision)
    return detector


def check_detector(model: str) -> None:
    """Refuse what cannot detect objects before its weights are read."""
    from transformers import MODEL_FOR_OBJECT_DETECTION_MAPPING

    head, trained_by = "ForObjectDetection", "hf-attn train detr"
    check_task(model, MODEL_FOR_OBJECT_DETECTION_MAPPING, head, "detect objects", "a head for boxes", trained_by)


# --- what is drawn ---------------------------------------------------------------------------------------------------


class DrawnBoxes:
    """Draws what was found on each picture, a PNG a picture, into a directory."""

    def __init__(self, detector: Detector, directory: Path):
        self.classes = detector.names
        self.directory = directory
        self.names = NewNames()
        directory.mkdir(parents=True, exist_ok=True)

    def draw(self, path: str, picture: "Image.Image", found: list[dict[str, Any]]) -> str:
        """Draw the boxes on a picture; gives the path of the PNG."""
        from hf_attn.drawing import draw_boxes

        file = self.directory / f"{self.names.of(path)}.png"
        draw_boxes(picture, found, file, names=self.classes)
        return str(file)


class AttentionPictures:
    """Draws where a DETR of this package looked, two PNGs a picture, into a directory.

    Raises:
        ValueError: if the model is another's.
    """

    def __init__(self, detector: Detector, directory: Path):
        model_type = detector.model.config.model_type
        if model_type != "attn_detr":
            raise ValueError(
                f"--explain shows the attention of models of type attn_detr, and this one is {model_type}"
            )
        self.detector = detector
        self.directory = directory
        self.names = NewNames()
        directory.mkdir(parents=True, exist_ok=True)

    def draw(self, path: str, picture: "Image.Image", threshold: float) -> dict[str, str]:
        """Draw where the model looked for the surest objects; gives the paths of the PNGs, if anything was found."""
        from hf_attn.detr_attention import encoder_attention, query_attention
        from hf_attn.drawing import draw_point_attention, draw_query_attention

        model, pixels = self.detector.model, self.visible_pixels(picture)
        queries, found, points = self.surest(pixels, picture.size, threshold)
        if not queries:
            return {}
        name = self.names.of(path)
        files = {kind: str(self.directory / f"{name}.{kind}.png") for kind in ("queries", "points")}
        draw_query_attention(picture, found, query_attention(model, pixels, queries).cpu(), files["queries"])
        draw_point_attention(picture, points, encoder_attention(model, pixels, points).cpu(), files["points"])
        return files

    def visible_pixels(self, picture: "Image.Image") -> "torch.Tensor":
        """(1, channels, height, width), without padding."""
        inputs = self.detector.inputs(picture)
        pixels, mask = inputs["pixel_values"], inputs.get("pixel_mask")
        if mask is None:
            return pixels
        return pixels[..., : int(mask[0, :, 0].sum()), : int(mask[0, 0].sum())]

    def surest(
        self, pixels: "torch.Tensor", size: tuple[int, int], threshold: float
    ) -> tuple[list[int], list[dict[str, Any]], list[tuple[float, float]]]:
        """The queries that found the surest objects, what those are, and their middles as fractions of the picture."""
        import torch

        with torch.inference_mode():
            outputs = self.detector.model(pixels)
        scores, labels = outputs.scores[0].max(dim=-1)
        order = scores.argsort(descending=True)[:QUERIES_EXPLAINED]
        queries = order[scores[order] > threshold]
        x, y, width, height = outputs.pred_boxes[0, queries].unbind(-1)
        edges = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=-1)
        boxes = edges * torch.tensor([*size, *size], device=edges.device)
        answer = {"scores": scores[queries], "labels": labels[queries], "boxes": boxes}
        points = list(zip(x.clamp(0, 1).tolist(), y.clamp(0, 1).tolist(), strict=True))
        return queries.tolist(), self.detector.objects(answer, size), points[:POINTS_EXPLAINED]
