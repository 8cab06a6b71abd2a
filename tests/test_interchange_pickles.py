"""Pickled weights become safetensors, and nothing that is pickled runs."""

import json
import pickle
import random
from argparse import Namespace

import pytest
import torch

from hf_attn.interchange.pickles import convert_pickled_weights, read_pickled_weights, settings_of
from tests.tiny import tiny_translator, tiny_vit


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle ran')",)


@pytest.mark.parametrize("make", [tiny_translator, tiny_vit])
@pytest.mark.parametrize("old", [False, True])
def test_converted_weights_load_to_the_bit(make, old, tmp_path):
    model = make()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
    assert convert_pickled_weights(tmp_path) == [tmp_path / "model.safetensors"]
    loaded = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())


def test_several_files_stay_several(tmp_path):
    model = tiny_vit()
    model.config.save_pretrained(tmp_path)
    names = list(model.state_dict())
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in parts.items():
        torch.save({name: model.state_dict()[name] for name in part}, tmp_path / file)
    where = {name: file for file, part in parts.items() for name in part}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    written = convert_pickled_weights(tmp_path)
    assert [path.name for path in written] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    loaded = type(model).from_pretrained(tmp_path)
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("pytorch_model-00002-of-00002.bin", "no weights", "00002.bin holds more than tensors, or is broken"),
        ("pytorch_model.bin.index.json", "{", "index.json is damaged .*; copy or download it again"),
        ("pytorch_model.bin.index.json", '{"weight_map": 3}', "index.json is damaged .*; copy or download it again"),
    ],
)
def test_of_several_files_all_become_safetensors_or_none(file, content, message, tmp_path):
    two_files(tmp_path)
    there = set(tmp_path.iterdir())
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        convert_pickled_weights(tmp_path)
    assert set(tmp_path.iterdir()) == there


def two_files(directory):
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for name in names:
        torch.save({name: torch.ones(1)}, directory / name)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {name: name for name in names}}))


def test_a_file_that_is_there_already_is_not_replaced(tmp_path):
    two_files(tmp_path)
    mine = tmp_path / "model-00001-of-00002.safetensors"
    mine.write_text("mine")
    with pytest.raises(FileExistsError, match=f"{mine} is there already; move it away"):
        convert_pickled_weights(tmp_path)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (pickle.dumps(Bomb(), 2), r"holds more than tensors, or is broken \(it asks for [\w.]*exec\)"),
        (pickle.dumps(Bomb(), 2)[:5], "holds more than tensors, or is broken"),
        (b"", r"holds more than tensors, or is broken \(it ends too early\)"),
        (b"PK\x03\x04 and no more", "holds more than tensors, or is broken"),
        (b"Dear reader, this is a letter", r"is broken \(it is not what torch.save writes\)"),
        ([1, 2], "holds a list, not tensors by name"),
        ({"weight": 3}, "holds a dict, not tensors by name"),
    ],
    ids=["code", "cut off", "empty", "cut off zip", "text", "list", "number"],
)
def test_what_is_no_weights_is_refused_and_leaves_nothing(held, message, tmp_path):
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(held) if isinstance(held, bytes) else torch.save(held, file)
    with pytest.raises(ValueError, match=message) as refused:
        convert_pickled_weights(tmp_path)
    assert "weights_only" not in str(refused.value)  # torch's advice would run the code
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


@pytest.mark.parametrize("name", ["model", "state_dict"])
def test_of_a_training_script_the_model_is_read_and_its_arguments_run_nothing(name, tmp_path):
    file = tmp_path / "checkpoint.pth"
    rest = {"optimizer": {"state": {0: {"step": torch.ones(1)}}}, "epoch": 3}
    torch.save({name: {"weight": torch.arange(3.0)}, **rest, "args": Namespace(lr=0.1)}, file)
    assert read_pickled_weights(file)["weight"].tolist() == [0, 1, 2]
    torch.save({name: {"weight": torch.ones(1)}, "args": Namespace(lr=Bomb())}, file)
    with pytest.raises(ValueError, match="holds more than tensors, or is broken"):
        read_pickled_weights(file)


@pytest.mark.parametrize(
    "said",
    [{"args": Namespace(heads=4)}, {"args": {"heads": 4}}, {"args": None, "cfg": {"model": Namespace(heads=4)}}],
    ids=str,
)
def test_what_the_script_was_told_is_there_too(said, tmp_path):
    file = tmp_path / "checkpoint.pth"
    torch.save({"model": {"weight": torch.ones(1)}, **said}, file)
    assert settings_of(read_pickled_weights(file)) == {"heads": 4}
    torch.save({"weight": torch.ones(1)}, file)
    assert settings_of(read_pickled_weights(file)) == {}


@pytest.mark.parametrize("old", [False, True])
def test_however_a_file_is_damaged_it_is_read_or_refused_by_name(old, tmp_path):
    file, generator = tmp_path / "weights.pth", random.Random(0)
    torch.save({f"layer.{i}": torch.ones(8) for i in range(9)}, file, _use_new_zipfile_serialization=not old)
    whole = file.read_bytes()
    refused = 0
    for cut in [True] * 60 + [False] * 240:
        bytes_ = bytearray(whole[: generator.randrange(len(whole))] if cut else whole)
        for _ in range(0 if cut else 3):
            bytes_[generator.randrange(len(bytes_))] = generator.randrange(256)
        file.write_bytes(bytes_)
        try:
            read_pickled_weights(file)
        except ValueError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused > 100


def test_without_pickles_or_with_safetensors_there_is_nothing_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither pytorch_model\.bin nor pytorch_model\.bin\.index\.json"):
        convert_pickled_weights(tmp_path)
    tiny_vit().save_pretrained(tmp_path)
    with pytest.raises(FileExistsError, match=r"model\.safetensors is there already"):
        convert_pickled_weights(tmp_path)
