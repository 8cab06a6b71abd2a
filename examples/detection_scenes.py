"""Data sets for detectors, made from packages: fashion items or photo cut-outs on photographs, and real tree crowns.

    python examples/detection_scenes.py fashion data/scenes/fashion
    python examples/detection_scenes.py stamps data/scenes/stamps
    python examples/detection_scenes.py trees data/trees

Each writes JPEG files and COCO JSON, for `load_detections` and `hf-attn train detr`.

- fashion: 40,000 scenes of 96 pixels with 1 to 4 items of Fashion-MNIST (MIT licence), tinted, in 10 classes;
  validation has items of its test set.
- stamps: 20,000 scenes of 192 pixels with 1 to 5 photo cut-outs of Tux Paint's stamps (GPL-2), in 6 classes (its
  folders of fish and insects are too small), each class as often. Validation has a quarter of them, and nothing that
  training has another picture of: either lions or tigers.
- trees: the 951 tree crowns that people have drawn on four aerial photographs, in the package deepforest of PyPI (MIT
  licence), cut in tiles of 400 pixels; one photograph, of 279 crowns, is for validation.

Backgrounds are pictures of Debian's packages mate-backgrounds and lomiri-wallpapers-20.04, every fourth of them for
validation alone; `fashion --clouds` makes its own instead. Stamps stand only on photographs, some of
lomiri-wallpapers-16.04 among them, and on none that shows flowers, fruit or animals itself.
"""

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import numpy as np
import typer
from downloads import Apt, apt_is_there, cached_file, download_wheel, fetch_once, files_in_package
from fashion_mnist import CLASS_NAMES, prepare_fashion_mnist
from PIL import Image
from scenes import Composition, Cutout, Split, divided, write_scenes
from stamps import FOLDERS, REMEDY, cut_out_photos
from stamps import PACKAGE as STAMPS
from tiles import Photo, write_tiles

from hf_attn.console import errors_in_one_line
from hf_attn.training.picture_files import read_idx

# Packages with backgrounds, and the part of a path that these have.
BACKGROUNDS = {"mate-backgrounds": "/nature/", "lomiri-wallpapers-20.04": "/backgrounds/"}
STAMP_BACKGROUNDS = {**BACKGROUNDS, "lomiri-wallpapers-16.04": "/backgrounds/"}
# What those begin with that show what stamps show, and those that are not photographs.
SHOW_STAMPS = (
    *("FreshFlower", "Garden", "LadyBird", "TwoWings", "YellowFlower", "Kleiber"),
    *("Picture_0B", "free_by", "friends_by", "seeding_by"),
)
NOT_PHOTOGRAPHS = ("Fossa", "Infinite-Sea", "Painting-Colors", "analogpattern", "umang")
BACKGROUND_SIDE = 1000  # pixels of the longer edge; more are of no use to scenes so small
TOO_FEW = ("fish", "insect")
# Stamps that are not what their folder says: two drawings, a toy, a seed head, two wheels, the markings of a car.
ODD_STAMPS = ("hedgehog", "echidna", "edward_bear", "appooppanthady", "7spoke256", "wheel_tractor", "sedan_police")
FOR_VALIDATION = 0.25  # of the cut-outs and of the backgrounds

FASHION = Composition(side=96, most=4, scale=(0.28, 0.58), turn=10, overlap=0.15, tint=0.35)
STAMP_SCENES = Composition(side=192, most=5, scale=(0.18, 0.55))
STAMP_CLASSES = [label for label in FOLDERS.values() if label not in TOO_FEW]
DEEPFOREST = "deepforest==2.1.0"
TREES_FOR_VALIDATION = "2019_YELL_2_541000_4977000_image_crop"

app = typer.Typer(add_completion=False, no_args_is_help=True, help=(__doc__ or "").partition("\n")[0])
Cache = Annotated[Path, typer.Option(help="Folder where downloads are kept.")]
Scenes = Annotated[int, typer.Option(help="Scenes to train with.", min=1)]
Validation = Annotated[int, typer.Option(help="Scenes to validate on.", min=1)]
Processes = Annotated[int, typer.Option(help="Processes that work at once.", min=1)]


class FashionCutouts(Sequence):
    """Items of Fashion-MNIST, grey, where they are bright enough to be item."""

    def __init__(self, levels: np.ndarray, labels: Sequence[str]):
        self.levels = levels  # (items, 28, 28)
        self.labels = labels

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, item: int) -> Cutout:  # type: ignore[override]
        levels = self.levels[item].astype(np.float32)
        rows, columns = np.flatnonzero((levels > 16).any(1)), np.flatnonzero((levels > 16).any(0))
        levels = levels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        alpha = np.clip(4 * levels, 0, 255)
        grey = 64 + 0.75 * levels
        pixels = np.stack([grey, grey, grey, alpha], axis=-1).astype(np.uint8)
        return Cutout(self.labels[item], Image.fromarray(pixels))


def backgrounds(
    cache: Path, packages: dict[str, str] = BACKGROUNDS, without: Sequence[str] = ()
) -> list[list[Image.Image]]:
    """Pictures for training and for validation, of those in the packages whose names do not begin with `without`."""
    if not apt_is_there():
        raise RuntimeError(
            "apt-get and dpkg-deb are not here, and the backgrounds come from Debian's packages "
            f"{' and '.join(packages)}; make the scenes on another system, or those of fashion with --clouds"
        )
    photos = {}
    for package, part in packages.items():
        folder = fetch_once(cache / package, Apt(cache, REMEDY).download(package))
        for path, content in files_in_package(cached_file(folder, "*.deb"), ".jpg"):
            if part in path and not Path(path).name.startswith(tuple(without)):
                photo = Image.open(io.BytesIO(content)).convert("RGB")
                photo.thumbnail((BACKGROUND_SIDE, BACKGROUND_SIDE))
                photos[Path(path).name] = photo
    return [[photos[name] for name in names] for names in divided(list(photos), FOR_VALIDATION)]


def clouds(number: int = 60, seed: int = 0) -> list[list[Image.Image]]:
    """Pictures for training and for validation of clouds, large ones with smaller ones in them."""
    draw = np.random.default_rng(seed)
    splits: list[list[Image.Image]] = []
    for share in (1 - FOR_VALIDATION, FOR_VALIDATION):
        pictures = []
        for _ in range(round(share * number)):
            levels = draw.uniform(70, 185, size=3) + np.zeros((BACKGROUND_SIDE // 4, BACKGROUND_SIDE // 4, 3))
            for cells, depth in ((3, 50), (8, 30), (24, 20), (70, 12)):
                grey, colour = draw.uniform(-1, 1, (cells, cells, 1)), draw.uniform(-1, 1, (cells, cells, 3))
                coarse = Image.fromarray((127.5 + 100 * grey + 27.5 * colour).astype(np.uint8))
                smooth = np.asarray(coarse.resize(levels.shape[:2], Image.Resampling.BICUBIC), dtype=np.float32)
                levels += (smooth / 127.5 - 1) * depth
            pictures.append(Image.fromarray(levels.clip(0, 255).astype(np.uint8)))
        splits.append(pictures)
    return splits


@app.command()
def fashion(
    output: Annotated[Path, typer.Argument(help="Directory to write.")] = Path("data/scenes/fashion"),
    train: Scenes = 40_000,
    validation: Validation = 1_000,
    processes: Processes = 2,
    seed: int = 0,
    cache_dir: Cache = Path("data/cache"),
    on_clouds: Annotated[bool, typer.Option("--clouds", help="On clouds of colour instead of photographs.")] = False,
) -> Path:
    """Items of Fashion-MNIST on photographs, 96 pixels."""

    with errors_in_one_line(False):
        scenes = {"train": train, "validation": validation}
        return write_fashion_scenes(output, scenes, FASHION, None, seed, processes, cache_dir, on_clouds)


def write_fashion_scenes(
    output: Path,
    scenes: dict[str, int],
    composition: Composition,
    names: dict[str, str] | None = None,
    seed: int = 0,
    processes: int = 2,
    cache_dir: Path = Path("data/cache"),
    on_clouds: bool = False,
) -> Path:
    """Scenes for `train` and `validation` with items of Fashion-MNIST. `names` renames its classes, or joins some."""
    names = names or dict(zip(CLASS_NAMES, CLASS_NAMES, strict=True))
    classes = list(dict.fromkeys(names[name] for name in CLASS_NAMES))

    def make_splits() -> dict[str, Split]:
        directory = prepare_fashion_mnist(cache_dir.parent / "fashion_mnist", cache_dir)
        pictures = clouds() if on_clouds else backgrounds(cache_dir)
        splits = {}
        for name, prefix, photos in zip(("train", "validation"), ("train", "t10k"), pictures, strict=True):
            items = read_idx(directory / f"{prefix}-images-idx3-ubyte.gz", 3)
            labels = read_idx(directory / f"{prefix}-labels-idx1-ubyte.gz", 1)
            own = np.array([names[CLASS_NAMES[label]] for label in labels])
            fewest = min(np.count_nonzero(own == one) for one in classes)  # so that each is as frequent
            rows = np.sort(np.concatenate([np.flatnonzero(own == one)[:fewest] for one in classes]))
            splits[name] = Split(FashionCutouts(items[rows], own[rows].tolist()), photos)
        return splits

    name = "clouds" if on_clouds else "photographs"
    return write_scenes(output, scenes, make_splits, classes, composition, seed, processes, typer.echo, name)


@app.command()
def stamps(
    output: Annotated[Path, typer.Argument(help="Directory to write.")] = Path("data/scenes/stamps"),
    train: Scenes = 20_000,
    validation: Validation = 1_000,
    processes: Processes = 2,
    seed: int = 0,
    cache_dir: Cache = Path("data/cache"),
) -> Path:
    """Photo cut-outs on photographs, 192 pixels."""

    def make_splits() -> dict[str, Split]:
        photos = backgrounds(cache_dir, STAMP_BACKGROUNDS, SHOW_STAMPS + NOT_PHOTOGRAPHS)
        folder = fetch_once(cache_dir / STAMPS, Apt(cache_dir, REMEDY).download(STAMPS))
        cutouts = stamp_cutouts(cached_file(folder, "*.deb"))
        made_of = zip(("train", "validation"), cutouts, photos, strict=True)
        return {name: Split(Balanced(own), pictures) for name, own, pictures in made_of}

    with errors_in_one_line(False):
        scenes = {"train": train, "validation": validation}
        return write_scenes(output, scenes, make_splits, STAMP_CLASSES, STAMP_SCENES, seed, processes, typer.echo)


def stamp_cutouts(deb: Path) -> list[list[Cutout]]:
    """Cut-outs of the package for training and for validation, which have no kind of thing in common."""
    found: dict[str, list[tuple[str, Cutout]]] = {}
    for label, name, picture in cut_out_photos(deb):
        box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 127)).getbbox()
        if label in STAMP_CLASSES and Path(name).stem not in ODD_STAMPS and box is not None:
            found.setdefault(label, []).append((name, Cutout(label, picture.crop(box))))
    splits: list[list[Cutout]] = [[], []]
    for stamps in found.values():
        divisions = divided(stamps, FOR_VALIDATION, lambda stamp: stamp[0], lambda stamp: kind(*stamp))
        for split, chosen in zip(splits, divisions, strict=True):
            split += [cutout for _, cutout in chosen]
    return splits


def kind(name: str, cutout: Cutout) -> str:
    """What a stamp shows: "apple" for apple_fuji.png and apple_red.png. Flowers that are only numbered differ."""
    word = re.match(r"[a-z]+", name.lower())
    return name if word is None or word[0] == cutout.label else word[0].removesuffix("s")


class Balanced(Sequence):
    """Cut-outs as often as makes their classes about equally frequent: a class of few is repeated."""

    def __init__(self, cutouts: Sequence[Cutout]):
        by_label: dict[str, list[Cutout]] = {}
        for cutout in cutouts:
            by_label.setdefault(cutout.label, []).append(cutout)
        most = max(map(len, by_label.values()))
        self.cutouts = [own[place % len(own)] for own in by_label.values() for place in range(most)]

    def __len__(self) -> int:
        return len(self.cutouts)

    def __getitem__(self, place: int) -> Cutout:  # type: ignore[override]
        return self.cutouts[place]


@app.command()
def trees(
    output: Annotated[Path, typer.Argument(help="Directory to write.")] = Path("data/trees"),
    side: Annotated[int, typer.Option(help="Pixels of a tile.", min=64)] = 400,
    cache_dir: Cache = Path("data/cache"),
) -> Path:
    """Tree crowns on aerial photographs, drawn by people."""

    def make_photos() -> list[Photo]:
        remedy = "check the network and pip's settings"
        folder = fetch_once(cache_dir / "deepforest", download_wheel(DEEPFOREST, remedy))
        return list(aerial_photos(cached_file(folder, "*.whl")))

    with errors_in_one_line(False):
        return write_tiles(output, make_photos, TREES_FOR_VALIDATION, side, "tree", typer.echo)


def aerial_photos(wheel: Path) -> Iterator[Photo]:
    """(name, photograph, boxes left, top, right, bottom) of those with drawn crowns."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for name in sorted(name for name in names if name.endswith(".xml")):
            root = ElementTree.fromstring(archive.read(name))
            boxes = [
                [float(entry.findtext(f"bndbox/{edge}") or "nan") for edge in ("xmin", "ymin", "xmax", "ymax")]
                for entry in root.iter("object")
            ]
            picture = next((name[:-4] + end for end in (".png", ".tif") if name[:-4] + end in names), None)
            if picture is not None and boxes:
                yield Path(name).stem, Image.open(io.BytesIO(archive.read(picture))).convert("RGB"), boxes


if __name__ == "__main__":
    app()
