"""`hf-attn info`, `card`, `push` and `convert`: what a model is, its card, the Hub, and weights that are pickled."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from hf_attn.commands_shared import Debug, License, Quiet, option
from hf_attn.console import errors_in_one_line, json_line, text_output
from hf_attn.hub_files import CARD, LocalFiles, open_files

use = typer.Typer()

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a model.")]


@use.command(
    epilog="""
**Examples**

- `hf-attn info runs/photos`
- `hf-attn info google/vit-base-patch16-224 --revision main --json | jq .parameters`
"""
)
def info(
    *,
    model: Annotated[str, typer.Argument(metavar="DIR_OR_REPO", help="Directory, or name on the Hub, of a model.")],
    revision: Annotated[str | None, option("Branch, tag or commit of a model on the Hub.")] = None,
    as_json: Annotated[bool, option("Write all that is known, as JSON.", "--json")] = False,
    debug: Debug = False,
) -> None:
    """Say on one screen what a model is: class, shape, parameters, licence, scores, code and files.

    Only configuration, card and the headers of the weights are read. Nothing is loaded and no code of the model runs,
    so that it is quick and safe, for models of other libraries too.
    """
    if revision is not None and Path(model).exists():
        raise typer.BadParameter(f"--revision is for models on the Hub, and {model} is a directory")
    with errors_in_one_line(debug), text_output(None) as stream:
        from hf_attn.hub_info import describe, lines

        facts = describe(open_files(model, revision))
        stream.writelines([json_line(facts)] if as_json else (printable(line) + "\n" for line in lines(facts)))


def printable(line: str) -> str:
    """Without what would steer the terminal, for a stranger wrote it."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)


@use.command(
    epilog="""
**Examples**

- `hf-attn card runs/photos --license apache-2.0`
- `hf-attn card runs/photos --check`
"""
)
def card(
    *,
    directory: Directory,
    output: Annotated[
        Path | None, option("File to write.", "--output", "-o", show_default="README.md of DIR", dir_okay=False)
    ] = None,
    license: License = None,
    force: Annotated[bool, option("Write over a file that is there.", "--force")] = False,
    check: Annotated[bool, option("Only say what is wrong or missing in README.md.", "--check")] = False,
    debug: Debug = False,
) -> None:
    """Write a model card for a model that has none, or check the one it has.

    The card says what configuration and weights say, and metrics.json and training_settings.json where a training left
    them. With `--check`, what is missing is listed on stdout, and the exit code is 1 if anything is.
    """
    if check and (output or license or force):
        raise typer.BadParameter("--check writes nothing; leave out --output, --license and --force")
    with errors_in_one_line(debug), text_output(None) as stream:
        from hf_attn.hub_card import LICENSES, card_problems

        files = LocalFiles(directory)
        if check:
            problems = card_problems(files)
            stream.writelines(f"{directory / CARD}: {problem}\n" for problem in problems)
            if problems:
                raise ValueError(f"{directory / CARD} is not complete: {len(problems)} to mend, listed above")
            stream.write(f"{directory / CARD}: complete\n")
            return
        path = output or directory / CARD
        if path.exists() and not force:
            raise ValueError(f"{path} is there already; give --force to write over it, or --output to name another")
        if license is not None and license not in LICENSES:
            raise ValueError(f"--license {license} is none that the Hub knows; write it as apache-2.0, mit or other")
        from hf_attn.training.plain_card import plain_card

        text = str(plain_card(files, license))
        with text_output(path) as file:
            file.write(text)
        stream.write(f"{path}: written; read it, and add what no file knows\n")


@use.command(
    epilog="""
**Examples**

- `hf-attn push runs/photos me/photos`
- `hf-attn push runs/photos me/photos --private --revision second --message "Trained twice as long"`
"""
)
def push(
    *,
    directory: Directory,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hub, or the name of one's own.")],
    private: Annotated[bool, option("For nobody else to see.", "--private")] = False,
    revision: Annotated[str | None, option("Branch; made if it is not there.", show_default="main")] = None,
    message: Annotated[str | None, option("Of the commit.")] = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Put a model on the Hub, in one commit, which replaces the one that is there.

    Checkpoints, settings and samples of a training, pickle files and hidden files stay here. Weights and code in the
    repository that the model no longer has are deleted in the same commit. The model must load and have a card.

    The token is that of `hf auth login`, or HF_TOKEN.
    """
    interrupted = f"interrupted; {repo} has no part of it: repeat the command to go on"
    with errors_in_one_line(debug, interrupted), text_output(None) as stream:
        from hf_attn.hub_push import push as push_files

        if quiet:
            from huggingface_hub.utils import disable_progress_bars

            disable_progress_bars()
        address = push_files(
            LocalFiles(directory),
            repo,
            private=private,
            revision=revision,
            message=message,
            tell=lambda line: None if quiet else print(line, file=sys.stderr),
        )
        stream.write(address + "\n")


@use.command(
    epilog="""
**Example**

- `hf-attn convert downloads/old-model`
"""
)
def convert(*, directory: Directory, debug: Debug = False) -> None:
    """Write pickled weights once more, as safetensors, so that the model loads.

    What is pickled can run code when it is read. Here only tensors are read, and a file that holds anything else is
    refused. The pickled files stay.
    """
    with errors_in_one_line(debug), text_output(None) as stream:
        from hf_attn.interchange.pickles import convert_pickled_weights

        stream.writelines(f"{path}: written\n" for path in convert_pickled_weights(directory))
