"""Benchmarks run, with models too small to say anything about speed, and write what they say they write."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_attn import AttnTranslatorConfig, AttnTranslatorForConditionalGeneration, train_tokenizer

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
charts, copier, processes, results, rows, sentences, worker = map(
    importlib.import_module, ("charts", "copier", "processes", "results", "rows", "sentences", "worker")
)
OURS = rows.OURS
PNG = b"\x89PNG"


def run(script: str, *arguments: str | Path) -> str:
    """What a benchmark prints."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, BENCHMARKS / script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What is computed from times


def row(**given) -> rows.Row:
    values = {"family": "vit", "name": "a", "dtype": "fp32", "batch": 2, "sides": (), "unit": "pictures", "units": 2.0}
    return rows.Row(**{**values, **given})


LIMITS = {"fp32": {"per_second": 100.0}, "memory": {"per_second": 10.0}}


def test_ratio_compares_with_the_fastest_of_ours_turn_by_turn():
    turns = {OURS: [4.0, 4.0, 4.0], rows.PREPARED: [1.0, 2.0, 1.0], "timm": [3.0, 6.0, 3.0]}
    record = results.row_record(row(), turns, dict.fromkeys(turns, 0), {}, LIMITS)
    assert record["ours"] == rows.PREPARED
    assert "ratio" not in record["sides"][rows.PREPARED]
    assert record["sides"]["timm"]["ratio"] == [3.0, 3.0, 3.0]
    assert record["sides"]["timm"]["speed"][1] == pytest.approx(2 / 3)


def test_shares_of_what_the_machine_can_do():
    measured = results.row_record(row(operations=50.0, bytes=5.0), {OURS: [1.0, 1.0]}, {OURS: 0}, {}, LIMITS)
    assert measured["sides"][OURS]["peak"] == pytest.approx(0.5)
    assert measured["sides"][OURS]["bandwidth"] == pytest.approx(0.5)
    unknown = results.row_record(row(dtype="int8", operations=50.0), {OURS: [1.0, 1.0]}, {OURS: 0}, {}, LIMITS)
    assert unknown["sides"][OURS]["peak"] is None


def test_agreement_of_numbers_is_relative_and_of_sentences_is_counted():
    numbers = {"numbers": {"logits": [1.0, -4.0]}}
    assert results.agreement(numbers, {"numbers": {"logits": [1.0, -3.0]}})["difference"] == pytest.approx(0.25)
    assert results.agreement(numbers, {"numbers": {"logits": [math.nan, -4.0]}})["difference"] is None
    assert results.agreement(numbers, {"numbers": {"logits": [1.0, math.nan]}})["difference"] is None
    tokens = {"tokens": [[1, 2], [3]]}
    assert results.agreement(tokens, {"tokens": [[1, 2], [4]]}) == {"same": 1, "of": 2}


def test_operations_of_vit_b16_are_those_of_the_paper():
    assert rows.vit_operations(rows.VIT) / 2e9 == pytest.approx(17.6, rel=0.01)


def test_weights_of_a_decoder_step_are_those_of_the_model():
    counted = rows.Translator(rows.TRANSLATOR_QUICK)
    model = AttnTranslatorForConditionalGeneration(AttnTranslatorConfig(**rows.TRANSLATOR_QUICK))
    read_once = {"k_proj", "v_proj"}  # of the cross-attention, which keeps them for each sentence
    matrices = sum(
        parameter.numel()
        for name, parameter in model.model.decoder.layers.named_parameters()
        if parameter.ndim == 2 and not ("cross_attention" in name and any(one in name for one in read_once))
    )
    assert counted.decoder_step == matrices + model.lm_head.weight.numel()
    assert counted.encoder == sum(p.numel() for p in model.model.encoder.layers.parameters() if p.ndim == 2)


# The sides' processes


def test_worker_forgets_its_peak_when_it_builds_anew():
    block = bytearray(64 * 2**20)
    block[::4096] = b"x" * len(block[::4096])
    high = worker.memory("VmHWM")
    del block
    worker.forget_peak()
    assert worker.memory("VmHWM") < high - 32 * 2**20


def test_turn_is_the_mean_of_calls_that_fill_it():
    calls = []
    taken = worker.turn(worker.Task(lambda: calls.append(0)), 0.01)
    assert len(calls) > 2 and 0 < taken < 0.01
    calls.clear()
    worker.turn(worker.Task(lambda: calls.append(0)), 0)
    assert len(calls) == 1


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install openvino.*--side"):
        processes.check_installed({"OpenVINO": "openvino"})


def test_failing_worker_says_why():
    failing = processes.Worker("nobody", "vit", 1)
    try:
        failing.ready()
        with pytest.raises(RuntimeError, match=r"nobody: .*'turn' was asked of nobody before 'build'"):
            failing.ask("turn", seconds=0)
        with pytest.raises(RuntimeError, match="ended with exit code"):
            failing.ask("memory")
    finally:
        failing.end()


# Weights


def test_copier_says_its_source_and_ends_with_it():
    texts = sentences.made_up_sentences(2000)
    tokenizer = train_tokenizer(texts, rows.TRANSLATOR_QUICK["vocab_size"])
    config = AttnTranslatorConfig(**rows.TRANSLATOR_QUICK, position_layout="halves", dropout=0.0)
    model = copier.make_copier(AttnTranslatorForConditionalGeneration(config)).eval()
    some = texts[:30]
    batch = tokenizer(some, padding=True, return_tensors="pt")
    for dtype in (torch.float32, torch.bfloat16):
        said = model.to(dtype).generate(**batch, num_beams=1, do_sample=False, max_new_tokens=200)
        assert tokenizer.batch_decode(said, skip_special_tokens=True) == some
    with pytest.raises(ValueError, match=r"'interleaved'.*'halves' and 'post'"):
        copier.make_copier(AttnTranslatorForConditionalGeneration(AttnTranslatorConfig(**rows.TRANSLATOR_QUICK)))


# The whole


@pytest.mark.slow
def test_picture_rows_are_measured_in_a_quick_run(tmp_path):
    sides = [option for side in (OURS, "timm") for option in ("--side", side)]
    printed = run(
        *("bench.py", "--quick", "--only", "vit", "--row", "fp32, batch 1", "--threads", "1", *sides),
        *("--output", tmp_path / "bench"),
    )
    record = json.loads((tmp_path / "bench.json").read_text())
    assert {"time", "commit", "machine", "versions", "settings", "limits", "rows", "base_memory"} <= record.keys()
    [measured] = record["rows"]
    assert list(measured["sides"]) == [OURS, "timm"] and measured["ours"] == OURS
    for side, of_side in measured["sides"].items():
        assert len(of_side["turns"]) >= 2 and of_side["memory"] > 0
        if side != OURS:
            assert of_side["agreement"]["difference"] < 1e-5
    assert "timm" in printed
    assert (tmp_path / "bench.png").read_bytes().startswith(PNG)


@pytest.mark.slow
def test_all_rows_are_measured_in_a_quick_run(tmp_path):
    run("bench.py", "--quick", "--threads", "2", "--output", tmp_path / "bench")
    record = json.loads((tmp_path / "bench.json").read_text())
    assert {measured["family"] for measured in record["rows"]} == set(rows.FAMILIES)
    for measured in record["rows"]:
        for side, of_side in measured["sides"].items():
            told = of_side.get("agreement", {})
            if measured["dtype"] == "fp32":
                assert told.get("difference", 0) < 1e-5, (measured["name"], side)
            if measured["family"] == "corpus":
                assert told.get("same") == told.get("of"), (measured["name"], side)


@pytest.mark.slow
def test_starting_up_is_measured_in_a_quick_run(tmp_path):
    run("startup.py", "--quick", "--threads", "1", "--output", tmp_path / "startup.json")
    record = json.loads((tmp_path / "startup.json").read_text())
    for family in ("vit", "detr", "translator"):
        for side in (OURS, "transformers"):
            [seconds] = record["models"][family][side]["seconds"]
            assert len(seconds) == len(record["parts"]) and seconds[-1] == pytest.approx(sum(seconds[:-1]))


@pytest.mark.slow
def test_scaling_is_measured_in_a_quick_run(tmp_path):
    run("scaling.py", "--quick", "--threads", "1", "--output", tmp_path)
    record = json.loads((tmp_path / "scaling.json").read_text())
    assert all(math.isfinite(curve["slope"]) for curve in record["curves"].values()) and len(record["curves"]) == 7
    assert len(record["streaming"]["mib"]) == len(record["streaming"]["sentences"]) == 100
    for name in ("scaling.png", "streaming.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)


@pytest.mark.slow
def test_the_gpu_rows_run_on_a_cpu(tmp_path):
    run("gpu.py", "--quick", "--device", "cpu", "--output", tmp_path / "gpu")
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert {measured["family"] for measured in record["rows"]} == {"vit", "detr", "translator"}


def test_chart_is_drawn_of_peers_only(tmp_path):
    only_ours = {"name": "a", "sides": {OURS: {}, rows.PREPARED: {"ratio": [1, 1, 1]}}}
    charts.draw_ratios([only_ours], "title", tmp_path / "none.png")
    assert not list(tmp_path.iterdir())
