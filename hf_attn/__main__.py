"""The command line, installed as `hf-attn`: train, evaluate, use and publish models.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 the work failed, 2 the command was wrong.
The commands of each model stand in a file of their own, commands_*.py; those for any model in commands_hub.py
and commands_interchange.py.
"""

from typing import Annotated

import typer

from hf_attn import (
    __version__,
    commands_detr,
    commands_hub,
    commands_interchange,
    commands_translator,
    commands_vit,
)
from hf_attn.commands_shared import option

app = typer.Typer(
    name="hf-attn",
    help="Train, evaluate, use and publish attention models as citizens of the Hugging Face libraries.",
    epilog="`hf-attn COMMAND --help` explains a command, with examples.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
train_app = typer.Typer(help="Train a model: a translator, a ViT or a DETR.", no_args_is_help=True)
evaluate_app = typer.Typer(help="Measure a model on held-out data.", no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")
for commands in (commands_translator, commands_vit, commands_detr):
    # What has no name joins the commands of what it is added to
    train_app.add_typer(commands.train)
    evaluate_app.add_typer(commands.evaluate)
    app.add_typer(commands.use)
app.add_typer(commands_hub.use)
app.add_typer(commands_interchange.use)


def main() -> None:
    """Run the command line; ends the process."""
    app(prog_name="hf-attn")


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, option("Show the version.", "--version")] = False) -> None:
    if version:
        print(f"hf-attn {__version__}")
        raise typer.Exit


if __name__ == "__main__":
    main()
