"""With the same weights the translator computes the numbers of transformers' Marian and of torch's own Transformer."""

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import MarianConfig, MarianMTModel

from hf_attn import AttnTranslatorConfig, AttnTranslatorForConditionalGeneration, MultiHeadAttention
from hf_attn.positions import sinusoids
from tests.tiny import randomise, tiny_translator

PAD, EOS = 1, 2
SOURCE = torch.tensor([[5, 6, 7, 8, 9, EOS], [11, 12, 13, EOS, PAD, PAD], [14, EOS, PAD, PAD, PAD, PAD]])
TARGET = torch.tensor([[0, 15, 16, 17], [0, 18, 19, 20], [0, 21, 22, 23]])


def marian_twin(dtype: torch.dtype) -> tuple[AttnTranslatorForConditionalGeneration, MarianMTModel]:
    """A randomised MarianMTModel shaped as OPUS-MT's are, and our translator with the same weights."""
    vocab_size = 41
    pad = vocab_size - 1
    config = MarianConfig(
        vocab_size=vocab_size,
        d_model=16,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        activation_function="swish",
        scale_embedding=True,
        pad_token_id=pad,
        eos_token_id=0,
        decoder_start_token_id=pad,
        forced_eos_token_id=None,
    )
    theirs = randomise(MarianMTModel(config)).to(dtype).eval()
    theirs.final_logits_bias.normal_(generator=torch.Generator().manual_seed(1))
    for stack in (theirs.model.encoder, theirs.model.decoder):  # a parameter in Marian, to be left as it was
        stack.embed_positions.weight.data = stack.embed_positions.create_weight().to(dtype)
    ours = AttnTranslatorForConditionalGeneration(
        AttnTranslatorConfig(
            vocab_size=vocab_size,
            hidden_size=16,
            encoder_layers=2,
            decoder_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            activation_function="swish",
            position_layout="halves",
            logits_bias=True,
            pad_token_id=pad,
            bos_token_id=None,
            eos_token_id=0,
            decoder_start_token_id=pad,
        )
    )
    ours.to(dtype).eval().load_state_dict(from_marian(theirs.state_dict()))
    return ours, theirs


def from_marian(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {
        "self_attn_layer_norm": "self_attention_add_norm.norm",
        "encoder_attn_layer_norm": "cross_attention_add_norm.norm",
        "final_layer_norm": "feed_forward_add_norm.norm",
        "self_attn": "self_attention",
        "encoder_attn": "cross_attention",
        "fc1": "feed_forward.up_proj",
        "fc2": "feed_forward.down_proj",
    }
    renamed = {}
    for name, weight in weights.items():
        if name == "model.shared.weight" or "embed_positions" in name:
            continue
        parts = [names.get(part, part) for part in name.split(".")]
        renamed[".".join(parts)] = weight
    renamed["logits_bias"] = renamed.pop("final_logits_bias").squeeze(0)
    return renamed


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@torch.no_grad()
def test_same_weights_same_numbers_as_marian(dtype, tolerance):
    ours, theirs = marian_twin(dtype)
    pad = ours.config.pad_token_id
    source = torch.tensor([[5, 6, 7, 8, 0], [9, 0, pad, pad, pad]])
    target = torch.tensor([[pad, 10, 11, 12], [pad, 13, 0, pad]])
    mask = (source != pad).long()
    expected = theirs(input_ids=source, attention_mask=mask, decoder_input_ids=target, output_hidden_states=True)
    found = ours(input_ids=source, decoder_input_ids=target, output_hidden_states=True)
    assert found.logits.dtype == dtype
    assert expected.logits.std() > 0.5
    assert_close(found.logits, expected.logits, rtol=tolerance, atol=tolerance)
    for layer, (a, b) in enumerate(zip(found.encoder_hidden_states, expected.encoder_hidden_states, strict=True)):
        assert_close(a[mask == 1], b[mask == 1], rtol=tolerance, atol=tolerance, msg=lambda m, n=layer: f"{n}: {m}")
    for layer, (a, b) in enumerate(zip(found.decoder_hidden_states, expected.decoder_hidden_states, strict=True)):
        assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, n=layer: f"{n}: {m}")


def test_same_weights_same_gradients_as_marian():
    ours, theirs = marian_twin(torch.float64)
    source, target = torch.tensor([[5, 6, 7, 0], [9, 8, 4, 0]]), torch.tensor([[40, 10, 11], [40, 13, 0]])
    for model in (ours, theirs):
        model(input_ids=source, decoder_input_ids=target).logits.square().sum().backward()
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    expected = from_marian(
        {name: p.grad for name, p in theirs.named_parameters(remove_duplicate=False) if p.requires_grad}
        | {"final_logits_bias": gradients["logits_bias"].unsqueeze(0)}  # a buffer in Marian
    )
    assert set(gradients) <= set(expected)
    for name, gradient in gradients.items():
        assert gradient.abs().sum() > 0, name
        assert_close(gradient, expected[name], rtol=1e-8, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def copy_attention(theirs: torch.nn.MultiheadAttention, ours: MultiHeadAttention) -> None:
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    theirs.in_proj_weight.data = torch.cat([p.weight.data for p in projections])
    theirs.in_proj_bias.data = torch.cat([p.bias.data for p in projections])
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())


def copy_layer(theirs: torch.nn.Module, ours: torch.nn.Module, add_norms: list[str]) -> None:
    copy_attention(theirs.self_attn, ours.self_attention)
    if hasattr(ours, "cross_attention"):
        copy_attention(theirs.multihead_attn, ours.cross_attention)
    theirs.linear1.load_state_dict(ours.feed_forward.up_proj.state_dict())
    theirs.linear2.load_state_dict(ours.feed_forward.down_proj.state_dict())
    for i, name in enumerate(add_norms, start=1):
        getattr(theirs, f"norm{i}").load_state_dict(ours.get_submodule(f"{name}_add_norm.norm").state_dict())


@pytest.mark.parametrize("norm_position", ["post", "pre"])
@pytest.mark.parametrize("scale_embedding", [True, False])
@torch.no_grad()
def test_same_weights_same_numbers_as_torch_transformer(norm_position, scale_embedding):
    model = tiny_translator(norm_position=norm_position, scale_embedding=scale_embedding).double()
    shape: dict[str, Any] = {"d_model": 16, "nhead": 2, "dim_feedforward": 32, "dropout": 0.0, "batch_first": True}
    shape |= {"norm_first": norm_position == "pre", "dtype": torch.float64}
    encoder = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(**shape), 2, enable_nested_tensor=False)
    decoder = torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(**shape), 2)
    parts = ["self_attention", "feed_forward"], ["self_attention", "cross_attention", "feed_forward"]
    for theirs, ours, names in ((encoder, model.model.encoder, parts[0]), (decoder, model.model.decoder, parts[1])):
        for their_layer, our_layer in zip(theirs.layers, ours.layers, strict=True):
            copy_layer(their_layer, our_layer, names)
        if norm_position == "pre":
            theirs.norm = ours.final_norm

    def words(ids: torch.Tensor) -> torch.Tensor:
        scale = math.sqrt(16) if scale_embedding else 1.0
        return model.get_input_embeddings()(ids) * scale + sinusoids(torch.arange(ids.shape[1]), 16)

    memory = encoder(words(SOURCE), src_key_padding_mask=SOURCE == PAD)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(TARGET.shape[1], dtype=torch.float64)
    expected = decoder(words(TARGET), memory, tgt_mask=causal, memory_key_padding_mask=SOURCE == PAD)
    found = model.model(input_ids=SOURCE, decoder_input_ids=TARGET)
    tokens = SOURCE != PAD
    assert_close(found.encoder_last_hidden_state[tokens], memory[tokens], rtol=1e-10, atol=1e-10)
    assert_close(found.last_hidden_state, expected, rtol=1e-10, atol=1e-10)
