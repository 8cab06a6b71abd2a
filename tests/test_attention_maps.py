"""Attention can be seen under every kernel: what is recorded is what the formula gives, and seeing changes nothing."""

from contextlib import nullcontext

import pytest
import torch
from torch.testing import assert_close
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from hf_attn import MultiHeadAttention, eager_attention, record_attention
from tests.tiny import randomise, tiny_translator

pytestmark = [
    # transformers' own call; flex without a compiler computes the same scores, and takes no minute to compile
    pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
]

KERNELS = ("eager", "sdpa", "flex_attention")
SOURCE = torch.tensor([[5, 6, 7, 8, 9, 2], [10, 11, 2, 1, 1, 1]])
TARGET = torch.tensor([[0, 12, 13, 14], [1, 1, 0, 15]])  # the second is padded on the left
TARGET_MASK = (TARGET != 1).long()
ENCODER = [f"model.encoder.layers.{i}.self_attention" for i in range(2)]
DECODER = [f"model.decoder.layers.{i}.self_attention" for i in range(2)]
CROSS = [f"model.decoder.layers.{i}.cross_attention" for i in range(2)]


def inputs() -> dict[str, torch.Tensor]:
    return {"input_ids": SOURCE, "decoder_input_ids": TARGET, "decoder_attention_mask": TARGET_MASK}


def flex_without_compiler(kernel: str):
    return torch.compiler.set_stance("force_eager") if kernel == "flex_attention" else nullcontext()


@pytest.fixture
def weights_of_the_formula() -> dict[str, torch.Tensor]:
    """By the name of each attention: the weights that `eager_attention` itself makes, told by a spying kernel."""
    seen = {}

    def spy(module, *args, **kwargs):
        attended, seen[module] = eager_attention(module, *args, **kwargs)
        return attended, None

    AttentionInterface.register("spy", spy)
    AttentionMaskInterface.register("spy", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    model = tiny_translator()
    model.set_attn_implementation("spy")
    model(**inputs(), use_cache=False)
    AttentionInterface._global_mapping.pop("spy")
    AttentionMaskInterface._global_mapping.pop("spy")
    return {name: seen[module].detach() for name, module in model.named_modules() if module in seen}


# --- what is recorded ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_recorded_maps_are_those_of_the_formula(kernel, weights_of_the_formula):
    model = tiny_translator()
    model.set_attn_implementation(kernel)
    with flex_without_compiler(kernel), record_attention(model) as record:
        model(**inputs())
    assert list(record.maps) == ENCODER + DECODER + CROSS
    for name, expected in weights_of_the_formula.items():
        assert len(record.maps[name]) == 1
        assert_close(record.maps[name][0], expected, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_output_attentions_are_those_of_the_formula(kernel, weights_of_the_formula):
    model = tiny_translator()
    model.set_attn_implementation(kernel)
    with flex_without_compiler(kernel):
        outputs = model(**inputs(), output_attentions=True)
    for found, names in (
        (outputs.encoder_attentions, ENCODER),
        (outputs.decoder_attentions, DECODER),
        (outputs.cross_attentions, CROSS),
    ):
        for weights, name in zip(found, names, strict=True):
            assert_close(weights, weights_of_the_formula[name], rtol=0, atol=1e-5)


def test_output_attentions_can_be_asked_for_in_the_configuration():
    model = tiny_translator(output_attentions=True)
    outputs = model(**inputs())
    assert [weights.shape for weights in outputs.cross_attentions] == [(2, 2, 4, 6)] * 2
    assert model(**inputs(), output_attentions=False).cross_attentions is None


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("kind", "layers", "heads", "queries", "names"),
    [
        ("cross_attention", [1], [0], [2], CROSS[1:]),
        ("cross_attention", [-1], [-1, 0], [-1], CROSS[1:]),
        ("decoder", [-2], None, [3, 0], [DECODER[0], CROSS[0]]),
        ("encoder.", None, [1], None, ENCODER),
        ("self_attention", [0, 1], [1, 1], [1], ENCODER + DECODER),
        ("", [0], [], None, [ENCODER[0], DECODER[0], CROSS[0]]),
    ],
)
@torch.no_grad()
def test_the_chosen_part_is_that_part_of_the_whole(kernel, kind, layers, heads, queries, names):
    model = tiny_translator()
    model.set_attn_implementation(kernel)
    chosen = record_attention(model, kind=kind, layers=layers, heads=heads, queries=queries)
    with flex_without_compiler(kernel), record_attention(model) as whole, chosen as part:
        model(**inputs())
    assert sorted(part.maps) == sorted(names)
    for name, (found,) in part.maps.items():
        (expected,) = whole.maps[name]
        expected = expected if heads is None else expected[:, heads]
        assert_close(found, expected if queries is None else expected[:, :, queries])


@torch.no_grad()
def test_only_what_is_chosen_is_computed(monkeypatch):
    sizes = []
    weights = MultiHeadAttention.weights

    def counting(self, *args, **kwargs):
        made = weights(self, *args, **kwargs)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(MultiHeadAttention, "weights", counting)
    model = tiny_translator()
    model(**inputs())
    assert sizes == []
    with record_attention(model, kind="cross_attention", layers=[-1], heads=[0], queries=[-1]):
        model(**inputs())
    assert sizes == [len(SOURCE) * SOURCE.shape[1]]


@torch.no_grad()
def test_a_two_dimensional_mask_as_flash_attention_has_it_means_the_same():
    module = tiny_translator().get_submodule(DECODER[0])
    q, k = torch.randn(2, 2, 4, 8), torch.randn(2, 2, 4, 8)
    causal = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    visible = TARGET_MASK.bool()[:, None, None, :] & causal
    assert_close(module.weights(q, k, TARGET_MASK), module.weights(q, k, visible))
    assert_close(module.weights(q, k, None), module.weights(q, k, causal))
    # with a cache, the queries are the last words
    assert_close(module.weights(q[:, :, 2:], k, TARGET_MASK), module.weights(q, k, visible)[:, :, 2:])


def test_weights_of_eager_are_those_that_made_the_output():
    model = tiny_translator()
    model.set_attn_implementation("eager")
    outputs = model(**inputs(), output_attentions=True)
    weights = [*outputs.encoder_attentions, *outputs.decoder_attentions, *outputs.cross_attentions]
    gradients = torch.autograd.grad(outputs.logits.square().sum(), weights)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


# --- seeing changes nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_recording_leaves_the_output_as_it_is(kernel):
    model = tiny_translator()
    model.set_attn_implementation(kernel)
    with flex_without_compiler(kernel):
        before = model(**inputs()).logits
        with record_attention(model):
            during = model(**inputs()).logits
        assert torch.equal(during, before)
        assert torch.equal(model(**inputs(), output_attentions=True).logits, before)


def test_nothing_is_recorded_after_the_end_nor_after_an_error():
    model = tiny_translator()
    with record_attention(model) as record:
        model(**inputs())
    with pytest.raises(ValueError, match="token id 99"), record_attention(model) as failed:
        model(input_ids=SOURCE, decoder_input_ids=torch.tensor([[99], [0]]))
    model(**inputs())
    assert {len(maps) for maps in record.maps.values()} == {1}
    assert [len(failed.maps[name]) for name in (*ENCODER, *DECODER, *CROSS)] == [1, 1, 0, 0, 0, 0]
    assert all(m.recorders == [] for m in model.modules() if isinstance(m, MultiHeadAttention))


def test_recordings_may_be_nested():
    model = tiny_translator()
    with record_attention(model, kind="cross") as outer:
        with record_attention(model, kind="cross") as inner:
            model(**inputs())
        model(**inputs())
    assert [len(inner.maps[name]) for name in CROSS] == [1, 1]
    assert [len(outer.maps[name]) for name in CROSS] == [2, 2]


def test_recorded_maps_hold_no_graph():
    model = tiny_translator()
    with record_attention(model) as record:
        assert model(**inputs()).logits.requires_grad
    assert not any(maps[0].requires_grad for maps in record.maps.values())


# --- around generate() -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [None, "static"])
def test_generate_records_one_map_a_word_and_they_are_those_of_one_forward(cache):
    model = tiny_translator()
    with record_attention(model, kind="cross_attention") as steps:
        words = model.generate(SOURCE, max_new_tokens=5, min_new_tokens=5, num_beams=1, cache_implementation=cache)
    with torch.no_grad(), record_attention(model, kind="cross_attention") as whole:
        model(input_ids=SOURCE, decoder_input_ids=words[:, :-1])
    for name in CROSS:
        assert [weights.shape for weights in steps.maps[name]] == [(2, 2, 1, SOURCE.shape[1])] * 5
        assert_close(torch.cat(steps.maps[name], dim=2), whole.maps[name][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("cache", [None, "static"])
def test_self_attention_in_generate_covers_the_words_so_far_and_no_others(cache):
    model = tiny_translator()
    with record_attention(model, kind="decoder.layers.0.self_attention") as record:
        model.generate(SOURCE, max_new_tokens=3, min_new_tokens=3, num_beams=1, cache_implementation=cache)
    for step, weights in enumerate(record.maps[DECODER[0]]):
        assert_close(weights[..., : step + 1].sum(-1), torch.ones(2, 2, 1))
        assert (weights[..., step + 1 :] == 0).all()


# --- what cannot be recorded -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"kind": "decode_attention"}, "no attention module's name contains 'decode_attention'; there are"),
        ({"layers": [2]}, "layer 2 is out of range: there are 2, so -2 to 1"),
        ({"layers": [-3]}, "layer -3 is out of range: there are 2, so -2 to 1"),
    ],
)
def test_a_module_that_is_not_there_is_refused_before_anything_runs(choice, message):
    with pytest.raises(ValueError, match=message), record_attention(tiny_translator(), **choice):
        pass


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"heads": [2]}, "head 2 is out of range: there are 2, so -2 to 1"),
        ({"heads": [0, -3]}, "head -3 is out of range: there are 2, so -2 to 1"),
        ({"kind": "cross", "queries": [4]}, "query 4 is out of range: there are 4, so -4 to 3"),
    ],
)
def test_a_head_or_query_that_is_not_there_is_refused(choice, message):
    model = tiny_translator()
    with pytest.raises(ValueError, match=message), record_attention(model, **choice):
        model(**inputs())


def test_a_model_without_attention_is_refused():
    with pytest.raises(ValueError, match="no attention module"), record_attention(torch.nn.Linear(2, 2)):
        pass


def test_a_single_attention_can_be_recorded():
    module = randomise(MultiHeadAttention(tiny_translator().config))
    x = torch.randn(1, 3, 16)
    with record_attention(module) as record:
        _, weights = module(x, x, x, output_attentions=True)
    assert_close(record.maps[""][0], weights)
