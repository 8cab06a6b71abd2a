"""Models prepared for inference against themselves: same answers, and the layers answer where a twin may not."""

import copy
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

import hf_attn.inference
from hf_attn import record_attention
from hf_attn.inference import Int8Linear, OneDnnLinear, ReadyLinear, int8_works
from hf_attn.linear import Linear, onednn_works
from tests.tiny import tiny_detr, tiny_translator, tiny_vit

VITS = {
    "plain": {},
    "dinov2": {"layer_scale_init": 0.3, "num_register_tokens": 2},
    "query and key norms, mean": {"query_key_norm": True, "pooling": "mean", "class_token": False},
    "attention pooling, quick gelu": {"pooling": "attention", "activation_function": "quick_gelu"},
    "approximate gelu": {"activation_function": "gelu_pytorch_tanh"},
}
TRANSLATORS = {
    "post-norm": {},
    "pre-norm": {"norm_position": "pre", "activation_function": "swish", "logits_bias": True},
}
SOURCES = torch.tensor([[5, 6, 7, 8, 2], [9, 4, 2, 1, 1], [7, 2, 1, 1, 1]])


@pytest.fixture(params=[ReadyLinear, OneDnnLinear])
def kind(request, monkeypatch):
    """As on a machine where this kind of product is fastest."""
    if request.param is OneDnnLinear and not onednn_works(torch.float32):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(hf_attn.inference, "kind_of_linear", lambda dtype, device: request.param)


def pictures() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(pictures()).logits


@pytest.mark.parametrize("name", VITS)
def test_a_prepared_vit_answers_as_before(kind, name):
    model = tiny_vit(**VITS[name])
    before = logits(model)
    assert model.prepare_for_inference() is model
    assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    assert model.model.ready() is None  # gradients are wanted here
    with torch.no_grad():
        assert model.model.ready() is not None


@pytest.mark.parametrize("name", TRANSLATORS)
def test_a_prepared_encoder_gives_the_same_memory(kind, name):
    model = tiny_translator(**TRANSLATORS[name])
    mask = (SOURCES != 1).long()
    with torch.no_grad():
        before = model.model.encoder(SOURCES, mask).last_hidden_state
        model.prepare_for_inference()
        after = model.model.encoder(SOURCES, mask).last_hidden_state
        assert_close(after[mask.bool()], before[mask.bool()], rtol=1e-5, atol=1e-5)
        nothing = torch.stack([mask[0], 0 * mask[0]])  # a text of nothing but padding reads nothing
        assert_close(
            model.model.encoder(SOURCES[:2], nothing).last_hidden_state,
            tiny_translator(**TRANSLATORS[name]).model.encoder(SOURCES[:2], nothing).last_hidden_state,
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.skipif(not onednn_works(torch.bfloat16), reason="no bfloat16 by oneDNN")
def test_bfloat16_is_asked_for_and_leaves_weights_and_answers_in_their_format():
    model = tiny_vit()
    before = logits(model)
    model.prepare_for_inference(torch.bfloat16)
    after = logits(model)
    assert after.dtype == torch.float32 and next(model.parameters()).dtype == torch.float32
    assert 0 < (after - before).abs().max() < 0.05 * before.abs().max()


def test_nothing_of_it_is_saved_and_everything_can_be_copied(tmp_path):
    model = tiny_vit()
    state, before = {name: one.clone() for name, one in model.state_dict().items()}, logits(model)
    model.prepare_for_inference()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
    assert torch.equal(logits(copy.deepcopy(model)), before)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(type(model).from_pretrained(tmp_path)), before)


@pytest.mark.parametrize("make", [tiny_translator, tiny_vit, tiny_detr])
def test_random_numbers_that_follow_are_the_same(make):
    for asked in (hf_attn.inference.int8_works, hf_attn.inference_detr.convolutions_work, onednn_works):
        asked.cache_clear()  # as in a new process
    model = make()
    before = torch.get_rng_state()
    model.prepare_for_inference()
    hf_attn.inference.int8_works()
    assert torch.equal(torch.get_rng_state(), before)


def test_training_undoes_it():
    model = tiny_vit(dropout=0.5)
    before = logits(model)
    model.prepare_for_inference().train()
    assert model.model._twin is None
    assert torch.equal(logits(model.eval()), before)


@pytest.mark.parametrize("change", ["a step", "other weights", "another format"])
def test_weights_that_change_are_noticed(change):
    model, other = tiny_vit().prepare_for_inference(), tiny_vit(seed=5)
    before = logits(model)
    if change == "a step":
        with torch.no_grad():
            model.model.layers[0].feed_forward.up_proj.weight.mul_(3)
            other = tiny_vit()
            other.model.layers[0].feed_forward.up_proj.weight.mul_(3)
    elif change == "other weights":
        model.load_state_dict(other.state_dict())
    else:
        model, other = model.double(), tiny_vit().double()
        assert_close(model(pictures().double()).logits, other(pictures().double()).logits)
        return
    assert (logits(model) - before).abs().max() > 1e-3
    assert_close(logits(model), logits(other), rtol=1e-5, atol=1e-5)


WATCHED = {
    "gradients": lambda model: model(pictures()).logits.sum().backward(),
    "attention": lambda model: model(pictures(), output_attentions=True).attentions[1],
    "hidden states": lambda model: model(pictures(), output_hidden_states=True).hidden_states[1],
    "the formula": lambda model: model.set_attn_implementation("eager") or model(pictures()),
    "autocast": lambda model: torch.autocast("cpu", torch.bfloat16)(model)(pictures()),
}


def refuse(*args):
    raise AssertionError("the twin answered")


@pytest.mark.parametrize("way", WATCHED)
def test_layers_answer_where_they_are_to_be_seen(way, monkeypatch):
    model = tiny_vit().prepare_for_inference()
    monkeypatch.setattr(hf_attn.inference_vit.ReadyViT, "__call__", refuse)
    with torch.set_grad_enabled(way == "gradients"):
        assert WATCHED[way](model) is not None or model.classifier.weight.grad is not None


def test_hooks_and_records_see_the_layers():
    model, seen = tiny_vit().prepare_for_inference(), []
    handle = model.model.layers[1].register_forward_hook(lambda *a: seen.append(1))
    logits(model)
    assert seen == [1]
    handle.remove()
    with record_attention(model) as record:
        logits(model)
    assert len(record.maps) == 2


class Adapter(torch.nn.Linear):
    """More than a weight and a bias."""

    def forward(self, x):
        return super().forward(x) + 1


def test_an_adapter_is_not_passed_over():
    models = [tiny_vit(), tiny_vit().prepare_for_inference()]
    for model in models:
        model.model.layers[0].attention.q_proj = Adapter(16, 16)
        torch.nn.init.ones_(model.model.layers[0].attention.q_proj.weight)
        torch.nn.init.zeros_(model.model.layers[0].attention.q_proj.bias)
    assert torch.equal(logits(models[0]), logits(models[1]))


def test_another_number_format_is_refused():
    with pytest.raises(ValueError, match=r"torch\.float16.*AttnViTForImageClassification.*float32, torch\.bfloat16"):
        tiny_vit().prepare_for_inference(torch.float16)
    with pytest.raises(ValueError, match="int8"):
        tiny_vit().prepare_for_inference(torch.int8)


def mapped_bytes() -> int:
    """Of files, in this process's memory."""
    return 1024 * int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that is told")
def test_weights_of_a_file_that_a_twin_has_copied_leave_memory_and_come_back(tmp_path):
    tiny_translator(vocab_size=200_000, hidden_size=64).save_pretrained(tmp_path)  # 51 MB
    before = mapped_bytes()
    model = type(tiny_translator()).from_pretrained(tmp_path)
    total = sum(weight.double().sum() for weight in model.state_dict().values())
    assert mapped_bytes() - before > 40e6
    model.prepare_for_inference()
    assert mapped_bytes() - before < 10e6
    assert sum(weight.double().sum() for weight in model.state_dict().values()) == total


@pytest.mark.skipif(not int8_works(), reason="no quantized operators")
def test_rows_of_eight_bits_do_not_depend_on_their_neighbours():
    generator = torch.Generator().manual_seed(0)
    layer, x = Linear(64, 96), torch.randn(9, 64, generator=generator)
    with torch.no_grad():
        product, expected = Int8Linear(layer, torch.float32, "relu"), functional.relu(layer(x))
        together = product(x * torch.logspace(-3, 3, 9)[:, None])
        for row in range(9):
            assert torch.equal(together[row : row + 1], product(x[row : row + 1] * torch.logspace(-3, 3, 9)[row]))
        assert (product(x) - expected).abs().max() < 0.02 * expected.abs().max()
        assert_close(product(0 * x), functional.relu(layer.bias).expand(9, -1))
        assert_close(product(x, add=x.repeat(1, 2)[:, :96]), product(x) + x.repeat(1, 2)[:, :96])
