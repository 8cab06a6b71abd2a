"""Fashion-MNIST, complete, from its Debian package, without root.

    python examples/fashion_mnist.py data/fashion_mnist

took 15 seconds on 2 CPU cores (31 MB of downloads, kept in data/cache) and writes the four files of the data set as
their authors distribute them: 60,000 pictures to train with and 10,000 to test on, 28x28 grey pixels, of 10 kinds of
clothing (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747; MIT licence). train_vit.py trains on them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from downloads import Apt, apt_is_there, cached_file, fetch_once, files_in_package

from hf_attn.training.checkpoints import whole_file
from hf_attn.training.picture_files import read_idx

PACKAGE = "dataset-fashion-mnist"
CLASS_NAMES = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
SHAPES = {
    "train-images-idx3-ubyte.gz": (60_000, 28, 28),
    "train-labels-idx1-ubyte.gz": (60_000,),
    "t10k-images-idx3-ubyte.gz": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte.gz": (10_000,),
}
REMEDY = "check the network and the machine's apt sources"


def check_files(directory: Path) -> None:
    """Raise a ValueError that names the file if one of the four is damaged or of another size."""
    for name, shape in SHAPES.items():
        found = read_idx(directory / name, len(shape)).shape
        if found != shape:
            raise ValueError(f"{directory / name} has the shape {found} instead of {shape}; delete it and start again")


def prepare_fashion_mnist(
    output_dir: str | Path, cache_dir: str | Path = "data/cache", say: Callable[[str], None] = typer.echo
) -> Path:
    """Fetch the package and write its four files, unless they are there.

    Raises RuntimeError if there is no apt or a download fails, and ValueError if the files are not the data set.
    """
    directory, cache = Path(output_dir), Path(cache_dir)
    if all((directory / name).is_file() for name in SHAPES):
        check_files(directory)
        say(f"{directory}: Fashion-MNIST is there")
        return directory
    if not apt_is_there():
        raise RuntimeError(
            f"apt-get and dpkg-deb are not here, and Fashion-MNIST comes from Debian's package {PACKAGE}; on another "
            f"system, put {', '.join(SHAPES)} of github.com/zalandoresearch/fashion-mnist into {directory}"
        )
    directory.mkdir(parents=True, exist_ok=True)
    folder = fetch_once(cache / PACKAGE, Apt(cache, REMEDY).download(PACKAGE))
    contents = {Path(path).name: content for path, content in files_in_package(cached_file(folder, "*.deb"), ".gz")}
    for name in SHAPES:
        if name not in contents:
            raise RuntimeError(f"the package {PACKAGE} has no {name}; it has {', '.join(sorted(contents))}")
        with whole_file(directory / name) as file:
            file.write_bytes(contents[name])
    check_files(directory)
    say(f"{directory}: Fashion-MNIST, 60,000 + 10,000 pictures of {len(CLASS_NAMES)} classes")
    return directory


def main(
    output_dir: Annotated[Path, typer.Argument(help="Folder for the four files.")] = Path("data/fashion_mnist"),
    cache_dir: Annotated[Path, typer.Option(help="Folder where the download is kept.")] = Path("data/cache"),
) -> None:
    """Fetch Fashion-MNIST without root, from its Debian package."""
    try:
        prepare_fashion_mnist(output_dir, cache_dir)
    except (ValueError, RuntimeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from error


if __name__ == "__main__":
    typer.run(main)
