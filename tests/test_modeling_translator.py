"""The translator computes the same, however its input is presented: padded, cached, compiled, in another precision."""

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from hf_attn import MultiHeadAttention
from hf_attn.positions import sinusoids
from tests.tiny import tiny_translator

PAD, EOS = 1, 2
SENTENCES = [[5, 6, 7, 8, 9, 10, EOS], [11, 12, 13, EOS], [14, EOS]]
TARGET = torch.tensor([[0, 15, 16, 17], [0, 18, 19, 20], [0, 21, 22, 23]])


def batch(sentences: list[list[int]] = SENTENCES, side: str = "right") -> torch.Tensor:
    """(sentences, longest), padded on one side."""
    longest = max(map(len, sentences))
    pad = [[PAD] * (longest - len(sentence)) for sentence in sentences]
    rows = zip(sentences, pad, strict=True)
    return torch.tensor([s + p if side == "right" else p + s for s, p in rows])


SOURCE = batch()
MASK = (SOURCE != PAD).long()


# --- padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("mask", ["derived", "given"])
@torch.no_grad()
def test_a_sentence_in_a_padded_batch_reads_as_it_does_alone(side, kernel, mask):
    model = tiny_translator()
    model.set_attn_implementation(kernel)
    source = batch(side=side)
    given = {"attention_mask": (source != PAD).long()} if mask == "given" else {}
    together = model(input_ids=source, decoder_input_ids=TARGET, **given)
    for i, sentence in enumerate(SENTENCES):
        alone = model(input_ids=torch.tensor([sentence]), decoder_input_ids=TARGET[i : i + 1])
        memory = together.encoder_last_hidden_state[i][source[i] != PAD]
        assert_close(memory, alone.encoder_last_hidden_state[0], rtol=0, atol=1e-5)
        assert_close(together.logits[i], alone.logits[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_padded_target_reads_as_it_does_alone():
    model = tiny_translator()
    source = torch.tensor([SENTENCES[0]] * 2)
    alone = model(input_ids=source[:1], decoder_input_ids=torch.tensor([[0, 15, 16]])).logits[0]
    right = model(input_ids=source, decoder_input_ids=torch.tensor([[0, 15, 16, PAD, PAD], [0, 9, 9, 9, 9]]))
    assert_close(right.logits[0, :3], alone, rtol=0, atol=1e-5)
    left = torch.tensor([[PAD, PAD, 0, 15, 16], [0, 9, 9, 9, 9]])
    outputs = model(input_ids=source, decoder_input_ids=left, decoder_attention_mask=(left != PAD).long())
    assert outputs.logits.isfinite().all()
    assert_close(outputs.logits[0, 2:], alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_mask_of_ones_is_believed_over_the_pad_id():
    model = tiny_translator()
    believed = model(input_ids=SOURCE, decoder_input_ids=TARGET, attention_mask=torch.ones_like(SOURCE)).logits
    assert not torch.allclose(believed, model(input_ids=SOURCE, decoder_input_ids=TARGET).logits, atol=1e-3)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_source_of_padding_alone_gives_finite_numbers_and_gradients(kernel):
    model = tiny_translator()
    model.set_attn_implementation(kernel)
    source = batch([SENTENCES[0], [PAD]])
    loss = model(input_ids=source, labels=TARGET[:2]).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_a_four_dimensional_mask_is_taken_as_it_is():
    model = tiny_translator()
    length = TARGET.shape[1]
    causal = torch.ones(3, 1, length, length, dtype=torch.bool).tril()
    found = model(input_ids=SOURCE, decoder_input_ids=TARGET, decoder_attention_mask=causal).logits
    assert_close(found, model(input_ids=SOURCE, decoder_input_ids=TARGET).logits)


# --- other ways in, and what comes out -------------------------------------------------------------------------------


@torch.no_grad()
def test_embeddings_in_place_of_ids():
    model = tiny_translator()
    words = model.get_input_embeddings()
    found = model(inputs_embeds=words(SOURCE), attention_mask=MASK, decoder_inputs_embeds=words(TARGET)).logits
    assert_close(found, model(input_ids=SOURCE, decoder_input_ids=TARGET).logits, rtol=0, atol=0)


@pytest.mark.parametrize("wrap", [tuple, lambda memory: BaseModelOutput(last_hidden_state=memory[0])])
@torch.no_grad()
def test_an_encoder_that_has_run_already(wrap):
    model = tiny_translator()
    memory = model.get_encoder()(SOURCE).to_tuple()
    found = model(encoder_outputs=wrap(memory), attention_mask=MASK, decoder_input_ids=TARGET)
    expected = model(input_ids=SOURCE, decoder_input_ids=TARGET)
    assert_close(found.logits, expected.logits, rtol=0, atol=0)
    assert_close(found.encoder_last_hidden_state, expected.encoder_last_hidden_state, rtol=0, atol=0)


@torch.no_grad()
def test_a_tuple_on_request():
    model = tiny_translator()
    for part in (model, model.model):
        expected = part(input_ids=SOURCE, decoder_input_ids=TARGET, use_cache=False)
        found = part(input_ids=SOURCE, decoder_input_ids=TARGET, use_cache=False, return_dict=False)
        assert isinstance(found, tuple)
        for a, b in zip(found, expected.to_tuple(), strict=True):
            assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("kept", [1, 2, torch.tensor([0, 2])], ids=str)
@torch.no_grad()
def test_only_the_logits_to_keep(kept):
    model = tiny_translator(logits_bias=True)
    whole = model(input_ids=SOURCE, decoder_input_ids=TARGET).logits
    found = model(input_ids=SOURCE, decoder_input_ids=TARGET, logits_to_keep=kept).logits
    assert_close(found, whole[:, -kept:] if isinstance(kept, int) else whole[:, kept])


@pytest.mark.parametrize("norm_position", ["post", "pre"])
@torch.no_grad()
def test_hidden_states_are_the_embedded_words_and_every_layer_s_output(norm_position):
    model = tiny_translator(encoder_layers=3, decoder_layers=1, norm_position=norm_position)
    outputs = model.model(input_ids=SOURCE, decoder_input_ids=TARGET, output_hidden_states=True)
    assert (len(outputs.encoder_hidden_states), len(outputs.decoder_hidden_states)) == (3 + 1, 1 + 1)
    assert_close(outputs.encoder_hidden_states[-1], outputs.encoder_last_hidden_state)
    assert_close(outputs.decoder_hidden_states[-1], outputs.last_hidden_state)
    words = model.get_input_embeddings()(TARGET) * 4.0 + sinusoids(torch.arange(4), 16)
    assert_close(outputs.decoder_hidden_states[0], words)


@torch.no_grad()
def test_chosen_hidden_states_are_counted_in_their_own_stack():
    model = tiny_translator(encoder_layers=3, decoder_layers=1).model
    whole = model(input_ids=SOURCE, decoder_input_ids=TARGET, output_hidden_states=True)
    chosen = model(input_ids=SOURCE, decoder_input_ids=TARGET, output_hidden_states=[-2])
    for name, kept in (("encoder_hidden_states", 2), ("decoder_hidden_states", 0)):
        for i, (found, expected) in enumerate(zip(chosen[name], whole[name], strict=True)):
            assert found is None if i != kept else torch.equal(found, expected), (name, i)


# --- the cache -------------------------------------------------------------------------------------------------------


def empty_cache(model) -> EncoderDecoderCache:
    return EncoderDecoderCache(DynamicCache(config=model.config), DynamicCache(config=model.config))


@pytest.mark.parametrize("layers", [(2, 2), (1, 3), (3, 1)], ids=str)
@pytest.mark.parametrize("steps", [[1, 1, 1, 1], [2, 2], [1, 3]], ids=str)
@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@torch.no_grad()
def test_cached_equals_uncached(layers, steps, kernel):
    model = tiny_translator(encoder_layers=layers[0], decoder_layers=layers[1])
    model.set_attn_implementation(kernel)
    expected = model(input_ids=SOURCE, decoder_input_ids=TARGET, use_cache=False)
    assert expected.cache is None
    memory, cache, found, seen = model.get_encoder()(SOURCE), None, [], 0
    for step in steps:
        new = TARGET[:, seen : seen + step]
        outputs = model(
            encoder_outputs=memory, attention_mask=MASK, decoder_input_ids=new, cache=cache, use_cache=True
        )
        found.append(outputs.logits)
        cache, seen = outputs.cache, seen + step
        assert cache.get_seq_length() == seen
    assert_close(torch.cat(found, dim=1), expected.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("cache", [None, "static"])
def test_the_memory_is_projected_once_a_sentence(num_beams, cache):
    model = tiny_translator(decoder_layers=3)
    calls = dict.fromkeys((n for n, m in model.named_modules() if isinstance(m, MultiHeadAttention)), 0)

    def count(name: str):
        calls[name] += 1

    for name in calls:
        model.get_submodule(name).k_proj.register_forward_hook(lambda *_, name=name: count(name))
    model.generate(
        SOURCE, max_new_tokens=5, min_new_tokens=5, num_beams=num_beams, do_sample=False, cache_implementation=cache
    )
    for name, count in calls.items():
        assert count == (5 if "decoder" in name and "self_attention" in name else 1), name


def test_a_static_cache_writes_the_same_words_after_a_padded_beginning():
    model = tiny_translator()
    begun = torch.tensor([[PAD, PAD, 0], [0, 15, 16], [PAD, 0, 17]])
    inputs = {"decoder_input_ids": begun, "decoder_attention_mask": (begun != PAD).long(), "max_new_tokens": 6}
    dynamic = model.generate(SOURCE, num_beams=1, do_sample=False, **inputs)
    static = model.generate(SOURCE, num_beams=1, do_sample=False, cache_implementation="static", **inputs)
    assert static.tolist() == dynamic.tolist()
    alone = model.generate(SOURCE[:1], num_beams=1, do_sample=False, max_new_tokens=6)
    assert static[0, 2:].tolist() == alone[0].tolist()


@pytest.mark.parametrize("part", ["", "model", "model.decoder"])
@torch.no_grad()
def test_a_cache_is_taken_under_its_old_name_too(part):
    torch.compiler.reset()
    model = tiny_translator(decoder_layers=1)
    inputs = {"input_ids": SOURCE, "decoder_input_ids": TARGET}
    if part == "model.decoder":
        inputs = {"input_ids": TARGET, "encoder_hidden_states": model.get_encoder()(SOURCE).last_hidden_state}
    module = model.get_submodule(part)
    expected = module(**inputs, use_cache=False)[0]

    cache = empty_cache(model)
    with pytest.warns(FutureWarning, match="`past_key_values` is deprecated .* Use `cache` instead"):
        outputs = module(**inputs, past_key_values=cache)
    assert outputs.cache is cache and outputs.past_key_values is cache
    assert cache.get_seq_length() == TARGET.shape[1]
    assert_close(outputs[0], expected)

    cache = empty_cache(model)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    assert_close(compiled(**inputs, past_key_values=cache)[0], expected)
    assert cache.get_seq_length() == TARGET.shape[1]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generate_takes_a_cache_under_its_old_name_too(num_beams):
    model = tiny_translator()
    search = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": num_beams, "do_sample": False}
    expected = model.generate(SOURCE, **search)
    cache = empty_cache(model)
    with pytest.warns(FutureWarning, match="`past_key_values` is deprecated .* Use `cache` instead") as warned:
        found = model.generate(SOURCE, past_key_values=cache, **search)
    assert [warning.filename for warning in warned] == [__file__]
    assert found.tolist() == expected.tolist()
    assert cache.get_seq_length() == 4


def test_a_cache_in_training_with_checkpoints_is_left_alone():
    model = tiny_translator().train()
    model.activation_checkpointing_enable()
    cache = empty_cache(model)
    outputs = model(input_ids=SOURCE, decoder_input_ids=TARGET, cache=cache)
    outputs.logits.sum().backward()
    assert cache.get_seq_length() == 0


# --- compiling, checkpointing, precision -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "given", "outputs"),
    [
        ("eager", "decoder_input_ids", {}),
        ("eager", "labels", {"output_attentions": True, "output_hidden_states": True}),
        ("sdpa", "decoder_input_ids", {"output_attentions": True, "output_hidden_states": True}),
    ],
)
def test_compiles_without_a_graph_break(kernel, given, outputs):
    torch.compiler.reset()
    model = tiny_translator(encoder_layers=1, decoder_layers=1)
    model.set_attn_implementation(kernel)
    inputs = {"input_ids": SOURCE, "attention_mask": MASK, given: TARGET, "use_cache": False, **outputs}
    expected = model(**inputs)
    found = torch.compile(model, fullgraph=True, backend="eager")(**inputs)
    assert found.keys() == expected.keys()
    assert_close(found.logits, expected.logits)
    if outputs:
        assert_close(found.cross_attentions, expected.cross_attentions)
        assert_close(found.encoder_hidden_states, expected.encoder_hidden_states)
    if given == "labels":
        assert_close(found.loss, expected.loss)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@torch.no_grad()
def test_exported_for_any_batch_and_any_lengths(kernel):
    model = tiny_translator()
    model.set_attn_implementation(kernel)
    batch, source, target = (torch.export.Dim(name, min=1) for name in ("batch", "source", "target"))
    of_source = {0: batch, 1: source}
    sizes = {"input_ids": of_source, "attention_mask": of_source, "decoder_input_ids": {0: batch, 1: target}}
    given = {"input_ids": SOURCE, "attention_mask": MASK, "decoder_input_ids": TARGET}
    exported = torch.export.export(
        model, (), {**given, "use_cache": False}, dynamic_shapes={**sizes, "use_cache": None}
    )
    for shape in ((2, 11, 5), (1, 300, 1)):
        ids = torch.randint(4, 41, shape[:2])
        mask = (torch.arange(shape[1]) < torch.tensor([[shape[1]], [4]])[: shape[0]]).long()
        given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, : shape[2]]}
        assert_close(exported.module()(**given, use_cache=False).logits, model(**given).logits, rtol=0, atol=1e-5)


def test_a_training_step_compiles():
    torch.compiler.reset()
    losses, gradients = [], []
    for compiled in (False, True):
        model = tiny_translator(encoder_layers=1, decoder_layers=1).train()
        call = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        losses.append(call(input_ids=SOURCE, labels=TARGET, num_items_in_batch=torch.tensor(12)).loss)
        losses[-1].backward()
        gradients.append([p.grad for p in model.parameters()])
    assert_close(losses[1], losses[0])
    assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_checkpoints_change_neither_loss_nor_gradients(use_reentrant):
    losses, gradients = [], []
    for checkpointing in (False, True):
        model = tiny_translator(dropout=0.2).train()
        if checkpointing:
            options = None if use_reentrant is None else {"use_reentrant": use_reentrant}
            model.activation_checkpointing_enable(options)
        torch.manual_seed(0)
        losses.append(model(input_ids=SOURCE, labels=TARGET).loss)
        losses[-1].backward()
        gradients.append([p.grad for p in model.parameters()])
    assert_close(losses[1], losses[0])
    assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("config", [{}, {"logits_bias": True, "share_embeddings": False, "norm_position": "pre"}])
def test_every_parameter_takes_part_in_a_training_step(config):
    model = tiny_translator(**config).train()
    model(input_ids=SOURCE, labels=TARGET).loss.backward()
    unused = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # softmax does not see what a key's bias adds to all of a query's scores: its gradient is zero up to rounding
    assert [name for name in unused if not name.endswith("k_proj.bias")] == []
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_other_precisions_are_kept_and_near(dtype):
    model = tiny_translator()
    expected = model(input_ids=SOURCE, decoder_input_ids=TARGET).logits
    found = model.to(dtype)(input_ids=SOURCE, decoder_input_ids=TARGET).logits
    assert found.dtype == dtype
    assert_close(found.float(), expected, rtol=0.1, atol=0.2 if dtype == torch.bfloat16 else 0.02)


def test_bfloat16_autocast_trains_with_a_float32_loss():
    model = tiny_translator().train()
    expected = model(input_ids=SOURCE, labels=TARGET).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(input_ids=SOURCE, labels=TARGET)
    outputs.loss.backward()
    assert (outputs.logits.dtype, outputs.loss.dtype) == (torch.bfloat16, torch.float32)
    assert_close(outputs.loss, expected, rtol=0.05, atol=0.05)
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


@torch.no_grad()
def test_4096_tokens_are_no_limit():
    model = tiny_translator()
    source = torch.randint(4, 41, (1, 4097))
    outputs = model(input_ids=source, decoder_input_ids=TARGET[:1])
    assert outputs.encoder_last_hidden_state.shape == (1, 4097, 16)
    assert outputs.logits.isfinite().all()


def test_kernels_can_be_switched_and_an_unknown_one_is_refused():
    model = tiny_translator()
    expected = model(input_ids=SOURCE, decoder_input_ids=TARGET).logits
    model.set_attn_implementation("eager")
    assert {m.config._attn_implementation for m in model.modules() if isinstance(m, MultiHeadAttention)} == {"eager"}
    assert_close(model(input_ids=SOURCE, decoder_input_ids=TARGET).logits, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="eagre"):
        model.set_attn_implementation("eagre")


# --- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["input_ids", "decoder_input_ids"])
@pytest.mark.parametrize("wrong", [41, -1, 100_000])
def test_a_token_outside_the_vocabulary_is_named(at, wrong):
    inputs = {"input_ids": SOURCE.clone(), "decoder_input_ids": TARGET.clone()}
    inputs[at][1, 2] = wrong
    message = f"token id {wrong} at row 1, position 2 is outside the vocabulary: it must be from 0 to 40; .*tokenizer"
    with pytest.raises(ValueError, match=message):
        tiny_translator()(**inputs)


def test_the_two_vocabularies_are_told_apart():
    model = tiny_translator(share_embeddings=False, decoder_vocab_size=30)
    model(input_ids=torch.tensor([[40, EOS]]), labels=torch.tensor([[29, EOS]]))
    with pytest.raises(ValueError, match=r"label 30 at row 0, position 0 .* from 0 to 29, or -100 to ignore it"):
        model(input_ids=torch.tensor([[40, EOS]]), labels=torch.tensor([[30, EOS]]))
    with pytest.raises(ValueError, match=r"token id 30 .* from 0 to 29;"):
        model(input_ids=torch.tensor([[40, EOS]]), decoder_input_ids=torch.tensor([[30]]))


def test_an_empty_text_is_refused():
    with pytest.raises(ValueError, match="0 tokens in a batch of 3; a text of no words still ends in </s>"):
        tiny_translator()(input_ids=SOURCE[:, :0], decoder_input_ids=TARGET)
    with pytest.raises(ValueError, match="0 tokens in a batch of 3"):
        tiny_translator()(input_ids=SOURCE, decoder_input_ids=TARGET[:, :0])


def test_ids_and_embeddings_exclude_each_other():
    model = tiny_translator()
    words = model.get_input_embeddings()
    with pytest.raises(ValueError, match="exactly one of the two; both came"):
        model(input_ids=SOURCE, inputs_embeds=words(SOURCE), decoder_input_ids=TARGET)
    with pytest.raises(ValueError, match="exactly one of the two; neither came"):
        model(decoder_input_ids=TARGET)
    with pytest.raises(ValueError, match="exactly one of the two; neither came"):
        model(input_ids=SOURCE)
