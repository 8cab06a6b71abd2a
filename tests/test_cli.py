"""The command line: results on stdout, one line a mistake on stderr, exit codes, and never half a file."""

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import fields
from inspect import signature
from io import StringIO
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

import hf_attn
from hf_attn.__main__ import app
from hf_attn.commands_translator import Size, train_translator_command
from hf_attn.console import Progress, TrainingProgress, errors_in_one_line, read_lines, text_output, whole_file
from hf_attn.training.callbacks import ProgressEvent
from hf_attn.training.data import load_pairs
from hf_attn.training.settings import SIZES, TranslatorSettings

ROOT = Path(__file__).parent.parent
LINES = "Das ist ein Satz.\n\nNoch ein Satz folgt darauf. Das ist ein Satz.\r\n🙂 Satz"


def run(*arguments: object, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def refuse(*arguments: object, stdin: str | bytes = "", code: int = 1) -> str:
    """Run what must fail; gives the one line that was said."""
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    if code == 1:
        assert result.stderr.count("\n") == 1 and result.stderr.startswith("hf-attn: "), result.stderr
    return result.stderr


# --- the whole program -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [[], ["train"], ["evaluate"], ["translate"], ["train", "translator"], ["evaluate", "translator"]]
)
def test_every_command_explains_itself(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Usage: hf-attn" in result.stdout.replace("root", "hf-attn")
    assert len(command) != 2 or "Examples" in result.stdout


def test_version():
    assert run("--version").stdout == f"hf-attn {hf_attn.__version__}\n"


def test_help_is_answered_without_loading_torch():
    script = (
        "import runpy, sys; sys.argv = ['hf-attn', 'train', 'translator', '--help']\n"
        "try: runpy.run_module('hf_attn', run_name='__main__')\n"
        "except SystemExit as leaving: print(leaving.code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["translate", "Satz"],  # no --model
        ["translate", "Satz", "--model", "m", "--beams", "0"],
        ["translate", "Satz", "--model", "m", "--beams", "2", "--n-best", "3"],
        ["translate", "Satz", "--model", "m", "--input", __file__],
        ["translate", "--model", "m", "--input", "no-such-file"],
        ["translate", "Satz", "--model", "m", "--colour"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments):
    refuse(*arguments, code=2)


# --- translate -------------------------------------------------------------------------------------------------------


@pytest.fixture
def translate(translator_directory):
    def call(*arguments: object, stdin: str | bytes = LINES) -> Result:
        return run("translate", "--model", translator_directory, "--max-new-tokens", 8, *arguments, stdin=stdin)

    return call


def test_one_line_out_for_each_line_in_however_they_come(translate, tmp_path):
    (tmp_path / "in.txt").write_bytes(LINES.encode())
    from_stdin = translate()
    assert from_stdin.exit_code == 0
    lines = from_stdin.stdout.split("\n")
    assert len(lines) == 5 and lines[4] == ""  # four lines, each with its end
    assert lines[1] == "" and all(lines[number] for number in (0, 2, 3))
    assert translate("--input", tmp_path / "in.txt", stdin="").stdout == from_stdin.stdout
    assert translate(*LINES.splitlines(), stdin="").stdout == from_stdin.stdout

    assert translate("--output", tmp_path / "out.txt").stdout == ""
    assert (tmp_path / "out.txt").read_bytes().decode() == from_stdin.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.txt"]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_number_format_can_be_chosen(translate, precision):
    assert len(translate("--precision", precision).stdout.splitlines()) == 4


def test_nothing_in_nothing_out(translate):
    result = translate(stdin="")
    assert (result.exit_code, result.stdout) == (0, "")


def test_n_best_scores_and_alignments_as_in_moses(translate):
    rows = [line.split(" ||| ") for line in translate("--beams", 3, "--n-best", 2, "--alignments").stdout.splitlines()]
    assert [row[0] for row in rows] == ["0", "0", "1", "1", "2", "2", "3", "3"]
    assert all(len(row) == 4 for row in rows)
    assert float(rows[0][2]) > float(rows[1][2])
    for link in rows[4][3].split():
        source, target = map(int, link.split("-"))
        assert source < 9 and target < len(rows[4][1].split())

    plain = translate("--beams", 3).stdout.splitlines()
    assert [row[1] for row in rows[::2]] == plain
    scored = [line.split(" ||| ") for line in translate("--beams", 3, "--scores").stdout.splitlines()]
    assert scored == [[row[1], row[2]] for row in rows[::2]]


def test_json_says_the_same(translate):
    entries = [json.loads(line) for line in translate("--beams", 3, "--n-best", 2, "--json").stdout.splitlines()]
    assert [entry["source"] for entry in entries] == LINES.splitlines()
    assert all(set(record) == {"translation_text", "score"} for entry in entries for record in entry["translations"])
    assert [entry["translations"][0]["translation_text"] for entry in entries] == translate(
        "--beams", 3
    ).stdout.splitlines()


def test_what_a_model_is_not_is_said_in_one_line(translator_directory, tmp_path):
    assert "no such directory, and no such model" in refuse("translate", "x", "--model", tmp_path / "nowhere")
    assert "no such directory, and no such model" in refuse("translate", "x", "--model", "nobody/nothing")

    (tmp_path / "file").write_text("x")
    assert "is a file; give the directory" in refuse("translate", "x", "--model", tmp_path / "file")

    (tmp_path / "empty").mkdir()
    assert "no config.json" in refuse("translate", "x", "--model", tmp_path / "empty")

    broken = tmp_path / "broken"
    shutil.copytree(translator_directory, broken)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:1000])
    assert "the weights cannot be read" in refuse("translate", "x", "--model", broken)
    (broken / "config.json").write_text("{")
    assert "not a valid JSON file" in refuse("translate", "x", "--model", broken)
    (broken / "config.json").write_text('{"model_type": "bert"}')
    assert "of type bert, which does not translate" in refuse("translate", "x", "--model", broken)

    without_tokenizer = tmp_path / "without"
    shutil.copytree(translator_directory, without_tokenizer, ignore=shutil.ignore_patterns("tokenizer*"))
    assert "no tokenizer" in refuse("translate", "x", "--model", without_tokenizer)


def test_input_that_is_not_utf_8_is_named_with_its_line_and_nothing_is_written(translate, tmp_path):
    result = translate("--output", tmp_path / "out.txt", stdin="gut\nschön\n".encode("latin1"))
    assert result.exit_code == 1
    assert "stdin:2: byte 0xf6 is not UTF-8; convert the text first" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(tmp_path):
    (tmp_path / "file").write_text("x")
    said = refuse("translate", "x", "--model", "m", "--output", tmp_path / "file" / "out.txt")
    assert f"{tmp_path}/file/out.txt: not a directory; a part of this path is a file" in said
    said = refuse("translate", "x", "--model", "m", "--output", tmp_path / "nowhere" / "out.txt")
    assert f"{tmp_path}/nowhere/out.txt: no such file or directory; check the path" in said
    assert "is a directory; name a file" in refuse("translate", "x", "--model", "m", "--output", tmp_path)


def test_a_full_disk_is_said_in_one_line(translate):
    result = translate("--output", "/dev/full")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "hf-attn: no space left on device; free some space or write elsewhere"


def test_debug_shows_where_an_error_came_from(tmp_path):
    result = run("translate", "x", "--model", tmp_path / "nowhere", "--debug")
    assert isinstance(result.exception, ValueError)
    assert result.exit_code == 1


def test_ctrl_c_leaves_the_old_output_and_no_other_file(translate, tmp_path, monkeypatch):
    def interrupt(number: int, records: list) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_attn.commands_translator.plain_lines", interrupt)
    (tmp_path / "out.txt").write_text("yesterday's")
    result = translate("--output", tmp_path / "out.txt")
    assert (result.exit_code, result.stderr) == (1, "hf-attn: interrupted\n")
    assert (tmp_path / "out.txt").read_text() == "yesterday's"
    assert len(list(tmp_path.iterdir())) == 1


# --- train and evaluate ----------------------------------------------------------------------------------------------

TINY = ["--config", "hidden_size=16", "--config", "intermediate_size=16", "--vocab-size", 300, "--precision", "fp32"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """80 sentence pairs."""
    animals = {"Der Hund": "The dog", "Die Katze": "The cat", "Das Pferd": "The horse", "Die Maus": "The mouse"}
    verbs = {"sieht": "sees", "sucht": "seeks", "findet": "finds", "hört": "hears", "jagt": "hunts"}
    things = {"den Ball": "the ball", "das Haus": "the house", "die Stadt": "the town", "ein Buch": "a book"}
    lines = [
        f"{animal} {verb} {thing}.\t{animals[animal]} {verbs[verb]} {things[thing]}.\n"
        for animal, verb, thing in product(animals, verbs, things)
    ]
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("de\ten\n" + "".join(lines), encoding="utf-8")
    return path


def train(pairs: Path, output: Path, *more: object) -> Result:
    languages = ["--source", "de", "--target", "en", "--size", "tiny", "--evaluate-every", 2]
    return run("train", "translator", pairs, "--output", output, *languages, *TINY, *more)


def test_ctrl_c_leaves_a_run_that_resumes_to_a_translator(pairs, tmp_path, monkeypatch):
    output = tmp_path / "run"
    steps_done = []

    def interrupt_in_step_3(self: TrainingProgress, event: ProgressEvent) -> None:
        if event.stage == "train":
            steps_done.append(event.done)
            if len(steps_done) == 3:
                signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "__call__", interrupt_in_step_3)
        result = train(pairs, output, "--steps", 5)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"hf-attn: interrupted; what is done is saved in {output}: go on with the same command and --resume"
    )
    assert "is not empty; resume" in train(pairs, output, "--steps", 5).stderr

    licences = ["--license", "mit", "--data-license", "CC0"]
    result = train(pairs, output, "--steps", 5, "--resume", *licences)
    assert result.exit_code == 0, result.stderr
    assert "pairs.tsv: de-en pairs: 64 train, 8 validation, 8 test" in result.stderr
    first, second, *signatures = result.stdout.splitlines()
    assert first.startswith(f"{output}: 5 steps in ")
    assert re.fullmatch(r"test: BLEU \d+\.\d, chrF \d+\.\d, loss \d\.\d{3} nats a token, 8 sentences", second)
    assert all("version:" in signature for signature in signatures)
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "learning_curve.png"} <= {
        path.name for path in output.iterdir()
    }

    assert run("card", output, "--check").stdout == f"{output}/README.md: complete\n"
    assert "Licence of the data: CC0." in (output / "README.md").read_text()

    languages = ["--source", "de", "--target", "en", "--model", output]
    evaluated = run("evaluate", "translator", pairs, *languages, "--output", tmp_path / "translations.txt")
    assert evaluated.exit_code == 0, evaluated.stderr
    assert evaluated.stdout.splitlines() == [second, *signatures]
    assert len((tmp_path / "translations.txt").read_text().splitlines()) == 8

    everything = run("evaluate", "translator", pairs, *languages, "--split", "all", "--beams", 1, "--json")
    assert json.loads(everything.stdout)["sentences"] == 80
    assert json.loads(everything.stdout)["num_beams"] == 1
    assert run("translate", "Der Hund sieht das Haus.", "--model", output).exit_code == 0


def test_nothing_is_left_where_data_are_refused(tmp_path):
    output = tmp_path / "run"

    def said(name: str, content: bytes, *languages: str) -> str:
        (tmp_path / name).write_bytes(content)
        source, target = languages or ("de", "en")
        arguments = [tmp_path / name, "-s", source, "-t", target, "-o", output, "--steps", 1]
        return refuse("train", "translator", *arguments)

    assert "3 columns instead of 2" in said("three.tsv", b"a\tb\tc\n" * 9)
    assert "latin.tsv:1: byte 0xf6 at position 2 is not UTF-8" in said("latin.tsv", "h\u00f6\tb\n".encode("latin1"))
    assert "no fr in the data; there are de, en" in said("pairs.tsv", b"de\ten\na\tb\n", "de", "fr")
    assert "no such file or directory" in refuse(
        "train", "translator", tmp_path / "none.tsv", "-s", "de", "-t", "en", "-o", output, "--steps", 1
    )
    assert not output.exists()


def test_training_is_refused_where_its_output_cannot_be_written(pairs, tmp_path):
    (tmp_path / "file").write_text("x")
    result = train(pairs, tmp_path / "file" / "run", "--steps", 1)
    assert result.exit_code == 1
    assert f"{tmp_path}/file/run: not a directory; a part of this path is a file" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say when to stop"),
        (["--steps", 1, "--config", "hidden_size"], "has no '='"),
        (["--steps", 1, "--size", "huge"], "huge"),
    ],
)
def test_wrong_usage_of_train_is_exit_code_2(pairs, tmp_path, arguments, said):
    result = train(pairs, tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_field_that_the_configuration_does_not_have_is_refused(pairs, tmp_path):
    result = train(pairs, tmp_path / "run", "--steps", 1, "--config", "hidden_sise=32")
    assert result.exit_code == 1
    assert "--config cannot set hidden_sise, but activation_dropout, " in result.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_defaults_of_the_command_line_are_those_of_the_library():
    here = {name: parameter.default for name, parameter in signature(train_translator_command).parameters.items()}
    there = {field.name: field.default for field in fields(TranslatorSettings)}
    same = {
        "size": "model_size",
        "batch_tokens": "max_tokens_per_batch",
        "accumulate": "gradient_accumulation_steps",
        "max_length": "max_length",
        "average_last": "average_last",
        "precision": "bf16",
        "evaluate_every": "eval_steps",
        "seed": "seed",
    }
    assert {name: here[name] for name in same} == {name: there[same[name]] for name in same}
    assert here["max_bad_share"] == signature(load_pairs).parameters["max_bad_share"].default
    assert set(get_args(Size)) == set(SIZES)


# --- console ---------------------------------------------------------------------------------------------------------


def test_stdout_on_a_full_disk_is_one_line_and_exit_code_1_to_the_very_end():
    script = (
        "import sys; sys.argv = ['hf-attn']\nimport typer\n"
        "from hf_attn.console import errors_in_one_line, text_output\napp = typer.Typer()\n"
        "@app.command()\ndef command():\n"
        "    with errors_in_one_line(False), text_output(None) as stream:\n        stream.write('x')\n"
        "app()"
    )
    with open("/dev/full", "w") as full:
        run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (
        1,
        "hf-attn: no space left on device; free some space or write elsewhere\n",
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("width 7 is odd;\n  make it even"), "width 7 is odd; make it even"),
        (
            PermissionError(13, "Permission denied", "out"),
            "out: permission denied; change its permissions or name another",
        ),
        (OSError(5, "Input/output error"), "input/output error"),
        (FileNotFoundError("no model in m"), "no model in m"),
        (
            torch.OutOfMemoryError("2 GiB wanted"),
            "the device has too little memory; make the batches smaller (2 GiB wanted)",
        ),
        (KeyError("name"), "KeyError: 'name'; run again with --debug to see where"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_every_error_is_one_line(error, said, capsys):
    with pytest.raises(SystemExit) as leaving, errors_in_one_line(debug=False):
        raise error
    assert leaving.value.code == 1
    assert capsys.readouterr().err == f"hf-attn: {said}\n"


def test_a_reader_that_goes_away_ends_the_program_without_a_word():
    script = """
import sys
sys.argv = ["hf-attn"]
from hf_attn.console import errors_in_one_line, text_output
with errors_in_one_line(debug=False), text_output(None) as stream:
    stream.writelines("line\\n" for _ in range(100_000))
"""
    command = f"{sys.executable} -c '{script}' | head -n 1; exit ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (1, "line\n", "")


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    path.chmod(0o640)
    with pytest.raises(ValueError), whole_file(path) as stream:
        stream.write("new")
        raise ValueError
    assert path.read_text() == "old"
    with whole_file(path) as stream:
        stream.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_keeps_pointing_to_the_file_that_is_replaced(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with text_output(tmp_path / "link") as stream:
        stream.write("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes("\ufeffeins\r\nz\u2028wei\n\ndr\x0cei".encode())
    with path.open("rb") as stream:
        assert list(read_lines(stream, "lines")) == ["eins", "z\u2028wei", "", "dr\x0cei"]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_a_line_every_ten_seconds_elsewhere(terminal):
    seconds = iter(range(0, 1000, 4))
    written = StringIO()
    console = Console(file=written, force_terminal=terminal, width=100)
    with Progress(console=console, clock=lambda: next(seconds)) as progress:
        for done in range(1, 8):
            progress.show("train", done, 7, f"{done} of 7 steps, loss {1 / done:.2f}")
            progress.bar.refresh()
    if terminal:
        assert "7 of 7 steps, loss 0.14" in written.getvalue() and "━" in written.getvalue()
    else:
        assert written.getvalue() == "train: 3 of 7 steps, loss 0.33\ntrain: 6 of 7 steps, loss 0.17\n"
