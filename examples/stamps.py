"""What pretrained weights are worth on 206 photos: the stamps of Tux Paint in 8 classes, and the DINOv2-small encoder.

    python examples/stamps.py

took 8 minutes on 2 CPU cores (251 MB of downloads included, kept in data/cache). Every photo is tested by networks
that did not see it, in five folds:

                                          right of 206
    always "mammal"                            31.6 %
    linear probe, random weights               47.6 %
    linear probe, DINOv2                       76.7 %
    fine-tuning, random weights                40.8 %
    fine-tuning, DINOv2                        70.4 %

The photos are from Debian's package tuxpaint-stamps-default (GPL-2): what lies in the folders for mammals, birds,
fish, insects, fruit, vegetables, flowers and vehicles, without drawings and mirrored copies, on white squares. The
network is the first ten layers of the encoder that dinov2.py fetches, at 112x112 pixels: 64 patches. The linear probe
is logistic regression on its class token, fitted to the end; fine-tuning has six epochs of 165 photos, in which its
new classifier does not get as far.
"""

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import datasets
import numpy as np
import torch
import typer
from dinov2 import dinov2_processor, fetch_dinov2, from_dinov2
from downloads import Apt, apt_is_there, cached_file, fetch_once, files_in_package
from PIL import Image
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.model_selection import StratifiedKFold, cross_val_predict  # type: ignore[import-untyped]
from sklearn.pipeline import make_pipeline  # type: ignore[import-untyped]
from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]
from transformers import AutoImageProcessor, AutoModel, set_seed

from hf_attn import AttnViTModel
from hf_attn.console import Progress, TrainingProgress, errors_in_one_line
from hf_attn.training.checkpoints import whole_directory
from hf_attn.training.picture_data import load_pictures
from hf_attn.training.vit import train_vit

PACKAGE = "tuxpaint-stamps-default"
REMEDY = "check the network and the machine's apt sources"
FOLDERS = {
    "animals/mammals": "mammal",
    "animals/birds": "bird",
    "animals/fish": "fish",
    "animals/insects": "insect",
    "food/fruit": "fruit",
    "food/vegetables": "vegetable",
    "plants/flowers": "flower",
    "vehicles": "vehicle",
}
LAYERS = 10  # of 12: the features of the tenth tell the classes apart best
SIDE = 112  # pixels


# --- The photos ----------------------------------------------------------------------------------------------------


def prepare_stamps(output_dir: Path, cache: Path) -> Path:
    """A folder for each class with the photos of the package on white squares, unless it is there.

    Raises RuntimeError if there is no apt or the download fails.
    """
    if output_dir.is_dir():
        return output_dir
    if not apt_is_there():
        raise RuntimeError(
            f"apt-get and dpkg-deb are not here, and the photos come from Debian's package {PACKAGE}; make "
            f"{output_dir}/CLASS/PHOTO.png from the stamps of Tux Paint on another system"
        )
    folder = fetch_once(cache / PACKAGE, Apt(cache, REMEDY).download(PACKAGE))
    with whole_directory(output_dir) as temporary:
        for name, photo in photos(cached_file(folder, "*.deb")):
            (temporary / name).parent.mkdir(exist_ok=True)
            photo.save(temporary / name)
    return output_dir


def cut_out_photos(deb: Path) -> Iterator[tuple[str, str, Image.Image]]:
    """("bird", "owl.png", picture with transparent parts) of each photo in the package."""
    for path, content in files_in_package(deb, ".png"):
        stamp = Path(path.partition("/stamps/")[2])
        label = next((label for folder, label in FOLDERS.items() if stamp.is_relative_to(folder)), None)
        if label and "cartoon" not in stamp.parts and not stamp.stem.endswith("_mirror"):
            yield label, stamp.name, Image.open(io.BytesIO(content)).convert("RGBA")


def photos(deb: Path) -> Iterator[tuple[str, Image.Image]]:
    """("bird/owl.png", picture) of each photo in the package."""
    for label, name, picture in cut_out_photos(deb):
        yield f"{label}/{name}", on_white_square(picture)


def on_white_square(picture: Image.Image) -> Image.Image:
    """A picture with transparent parts in the middle of a white square, at most 224 pixels wide."""
    picture = picture.convert("RGBA")
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    square.thumbnail((224, 224))
    return square.convert("RGB")


# --- The network, pretrained and not -------------------------------------------------------------------------------


def prepare_networks(directory: Path, cache: Path) -> dict[str, Path]:
    """Checkpoints of one shape by the name of their weights: DINOv2's and random ones."""
    networks = {"DINOv2": directory / "dinov2", "random weights": directory / "random"}
    if not all(path.is_dir() for path in networks.values()):
        pretrained = from_dinov2(fetch_dinov2(cache), num_attention_heads=6, num_hidden_layers=LAYERS)
        set_seed(0)
        for path, model in zip(networks.values(), (pretrained, AttnViTModel(pretrained.config)), strict=True):
            with whole_directory(path) as temporary:
                model.save_pretrained(temporary)
                dinov2_processor(SIDE).save_pretrained(temporary)
    return networks


# --- Two ways to use it --------------------------------------------------------------------------------------------

Folds = list[tuple[np.ndarray, np.ndarray]]  # rows to train with and rows to test on


def linear_probe(network: Path, pictures: datasets.Dataset, folds: Folds) -> float:
    """Share of the pictures that logistic regression on the frozen network's class token tells right."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    predicted = cross_val_predict(probe, class_tokens(network, pictures), pictures["label"][:], cv=folds)
    return float(np.mean(predicted == pictures["label"][:]))


@torch.no_grad()
def class_tokens(network: Path, pictures: datasets.Dataset) -> np.ndarray:
    """(pictures, hidden_size)"""
    model, processor = AutoModel.from_pretrained(network).eval(), AutoImageProcessor.from_pretrained(network)
    batches = (processor(batch["image"], return_tensors="pt") for batch in pictures.iter(batch_size=32))
    return torch.cat([model(**batch).pooler_output for batch in batches]).numpy()


def fine_tuning(network: Path, pictures: datasets.Dataset, folds: Folds, layer_decay: float, epochs: int) -> float:
    """Share of the pictures that networks tell right whose weights were all trained on the other folds."""
    right = 0.0
    for train, test in folds:
        split = datasets.DatasetDict(train=pictures.select(train), test=pictures.select(test))
        with tempfile.TemporaryDirectory() as directory, Progress() as progress:
            result = train_vit(
                split,
                directory,
                base_model=network,
                image_size=SIDE,
                num_train_epochs=epochs,
                layer_decay=layer_decay,
                label_smoothing=0.1,
                crop="pad",
                padding=8,
                progress=TrainingProgress(progress),
            )
        right += result.metrics["test"]["accuracy"] * len(test)
    return right / len(pictures)


def main(
    data: Annotated[Path, typer.Option(help="Directory for the photos.")] = Path("data/stamps"),
    models: Annotated[Path, typer.Option(help="Directory for the two networks.")] = Path("models/stamps"),
    cache_dir: Annotated[Path, typer.Option(help="Folder where downloads are kept.")] = Path("data/cache"),
    epochs: Annotated[int, typer.Option(min=1, help="Of fine-tuning.")] = 6,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
) -> None:
    """Compare pretrained with random weights on 206 photos."""
    with errors_in_one_line(debug):
        splits, _ = load_pictures(prepare_stamps(data, cache_dir), test_share=0)
        pictures = datasets.concatenate_datasets([splits["train"], splits["validation"]])
        labels = pictures["label"][:]
        folds = list(StratifiedKFold(5, shuffle=True, random_state=0).split(labels, labels))
        networks = prepare_networks(models, cache_dir)
        say('always "mammal"', max(np.bincount(labels)) / len(labels))
        for weights, network in networks.items():
            say(f"linear probe, {weights}", linear_probe(network, pictures, folds))
        for weights, network in networks.items():
            layer_decay = 0.75 if weights == "DINOv2" else 1.0  # what is not trained yet must learn at full speed
            say(f"fine-tuning, {weights}", fine_tuning(network, pictures, folds, layer_decay, epochs))


def say(what: str, share: float) -> None:
    print(f"{what:32}{share:6.1%}", flush=True)


if __name__ == "__main__":
    typer.run(main)
