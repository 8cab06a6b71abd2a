"""fairseq's .pt files, against its model built once more of torch's own layers: fairseq cannot be installed here."""

import argparse
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hf_attn.interchange.fairseq import load_fairseq
from hf_attn.interchange.importing import import_checkpoint
from tests.tiny import randomise

BOS, PAD, END = range(3)
WIDTH, HEADS, LAYERS, WORDS = 16, 4, 2, 31
ARGS = {
    "arch": "transformer",
    "encoder_embed_dim": WIDTH,
    "decoder_embed_dim": WIDTH,
    "encoder_ffn_embed_dim": 24,
    "decoder_ffn_embed_dim": 24,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_normalize_before": False,
    "decoder_normalize_before": False,
    "activation_fn": "relu",
    "dropout": 0.3,
    "no_scale_embedding": False,
    "encoder_learned_pos": False,
    "decoder_learned_pos": False,
    "adaptive_softmax_cutoff": None,
}


class Oracle(nn.Module):
    """The model, with torch.nn's layers, which compute the same from other names."""

    def __init__(self, pre_norm: bool = False, target_words: int = WORDS, activation: str = "relu"):
        super().__init__()
        shape = {"activation": activation, "batch_first": True, "norm_first": pre_norm, "dropout": 0.0}
        encoder, decoder = (
            layer(WIDTH, HEADS, 24, **shape) for layer in (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
        )
        norms = [nn.LayerNorm(WIDTH) if pre_norm else None for _ in range(2)]
        self.encoder = nn.TransformerEncoder(encoder, LAYERS, norms[0], enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, LAYERS, norms[1])
        self.source = nn.Embedding(WORDS, WIDTH)
        self.target = nn.Embedding(target_words, WIDTH)
        self.output = nn.Linear(WIDTH, target_words, bias=False)

    def places(self, ids: torch.Tensor) -> torch.Tensor:
        """fairseq/modules/sinusoidal_positional_embedding.py: from the padding's index on; padding itself has none."""
        half = WIDTH // 2
        waves = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
        places = (ids.ne(PAD).cumsum(1) * ids.ne(PAD)) + PAD
        angles = places.unsqueeze(-1) * waves
        return torch.cat([angles.sin(), angles.cos()], dim=-1) * ids.ne(PAD).unsqueeze(-1)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        padding = source.eq(PAD)
        memory = self.encoder(
            self.source(source) * math.sqrt(WIDTH) + self.places(source), src_key_padding_mask=padding
        )
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.output(
            self.decoder(
                self.target(target) * math.sqrt(WIDTH) + self.places(target),
                memory,
                tgt_mask=causal,
                memory_key_padding_mask=padding,
            )
        )


def names(oracle: Oracle, in_proj: bool = False) -> dict[str, torch.Tensor]:
    """Its tensors by fairseq's names."""
    tensors = {}
    for name, tensor in oracle.state_dict().items():
        for old, new in (
            ("multihead_attn", "encoder_attn"),
            ("linear1", "fc1"),
            ("linear2", "fc2"),
            ("norm1", "self_attn_layer_norm"),
            ("norm2", "encoder_attn_layer_norm" if name.startswith("decoder") else "final_layer_norm"),
            ("norm3", "final_layer_norm"),
            ("coder.norm", "coder.layer_norm"),
        ):
            name = name.replace(old, new)
        stem, _, part = name.partition("in_proj_")
        if part and not in_proj:
            for kind, projection in zip("qkv", tensor.chunk(3), strict=True):
                tensors[f"{stem}{kind}_proj.{part}"] = projection.clone()
        else:
            tensors[name] = tensor
    for stack in ("encoder", "decoder"):
        tensors[f"{stack}.version"] = torch.tensor([3.0])
        tensors[f"{stack}.embed_positions._float_tensor"] = torch.zeros(1)
    tensors["encoder.embed_tokens.weight"] = tensors.pop("source.weight")
    tensors["decoder.embed_tokens.weight"] = tensors.pop("target.weight")
    tensors["decoder.output_projection.weight"] = tensors.pop("output.weight")
    return tensors


def oracle(seed: int = 0, tied: str = "all", **shape) -> Oracle:
    model = randomise(Oracle(**shape), seed).eval()
    if tied in ("all", "output"):
        model.output.weight = model.target.weight
    if tied == "all":
        model.source.weight = model.target.weight
    return model


def save(path: Path, tensors: dict[str, torch.Tensor], hydra: bool = False, **args) -> Path:
    settings = argparse.Namespace(**{**ARGS, **args})
    said = {"args": None, "cfg": {"_name": None, "model": settings}} if hydra else {"args": settings}
    torch.save({**said, "model": tensors, "extra_state": {"epoch": 3}, "last_optimizer_state": {"state": {}}}, path)
    return path


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    source, target = (torch.randint(4, WORDS, (3, length), generator=generator) for length in (9, 7))
    source[:, -1] = END
    source[1, 5:] = torch.tensor([END, PAD, PAD, PAD])
    target[:, 0] = END
    return source, target


@pytest.mark.parametrize(
    ("shape", "args"),
    [
        ({}, {}),
        ({}, {"hydra": True}),
        ({"pre_norm": True}, {"encoder_normalize_before": True, "decoder_normalize_before": True}),
        ({"tied": "output", "target_words": 37}, {}),
        ({"tied": "none", "activation": "gelu"}, {"activation_fn": "gelu", "hydra": True}),
    ],
    ids=str,
)
@torch.no_grad()
def test_logits_are_equal(shape, args, tmp_path):
    theirs = oracle(**shape)
    ours = load_fairseq(save(tmp_path / "model.pt", names(theirs), **args)).eval()
    source, target = batch()
    found = ours(source, decoder_input_ids=target, use_cache=False).logits
    assert_close(found, theirs(source, target), rtol=0, atol=1e-5)
    assert ours.config.dropout == 0.3 and ours.config.tie_word_embeddings == (shape.get("tied") != "none")


@torch.no_grad()
def test_old_files_have_stacked_projections_and_no_output_layer(tmp_path):
    theirs = oracle()
    tensors = names(theirs, in_proj=True)
    del tensors["decoder.output_projection.weight"]
    assert "decoder.layers.1.encoder_attn.in_proj_weight" in tensors
    ours = load_fairseq(save(tmp_path / "model.pt", tensors)).eval()
    source, target = batch()
    assert_close(
        ours(source, decoder_input_ids=target, use_cache=False).logits, theirs(source, target), rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_greedy_translations_are_equal(tmp_path):
    theirs = oracle(5, tied="none")
    ours = load_fairseq(save(tmp_path / "model.pt", names(theirs))).eval()
    source, _ = batch()
    expected = torch.full((len(source), 1), END)
    for _ in range(8):
        expected = torch.cat([expected, theirs(source, expected)[:, -1:].argmax(-1)], dim=1)
    found = ours.generate(source, max_new_tokens=8, eos_token_id=[WORDS], do_sample=False)
    assert torch.equal(found, expected)


def test_the_command_takes_it(tmp_path):
    file = save(tmp_path / "model.pt", names(oracle()))
    assert import_checkpoint(file, tmp_path / "ours", format="fairseq").model_class.startswith("AttnTranslator")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"encoder_learned_pos": True}, "encoder_learned_pos is True, which this model has not"),
        ({"adaptive_softmax_cutoff": [4, 9]}, r"adaptive_softmax_cutoff is \[4, 9\], which"),
        ({"activation_fn": "tanh"}, "activation_fn is 'tanh' and can be one of relu, gelu"),
        ({"decoder_attention_heads": 2}, "encoder_attention_heads is 4 and decoder_attention_heads 2"),
    ],
)
def test_what_our_model_cannot_be_is_refused(args, message, tmp_path):
    with pytest.raises(ValueError, match=rf"model.pt \(a translator of fairseq\): .*{message}"):
        load_fairseq(save(tmp_path / "model.pt", names(oracle()), **args))


class Code:
    def __reduce__(self):
        return print, ("code ran",)


def test_other_files_are_refused(tmp_path, capsys):
    tensors = names(oracle())
    torch.save({"args": Code(), "model": tensors}, tmp_path / "code.pt")
    torch.save(tensors, tmp_path / "weights.pt")
    torch.save({"model": tensors, "args": None}, tmp_path / "plain.pt")
    (tmp_path / "broken.pt").write_bytes((tmp_path / "plain.pt").read_bytes()[:999])
    for name, message in {
        "code.pt": "holds more than tensors",
        "weights.pt": "has no settings, neither 'args' nor 'cfg'",
        "plain.pt": "has no settings, neither 'args' nor 'cfg'",
        "broken.pt": "is broken",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_fairseq(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_fairseq(tmp_path / "none.pt")
    assert not capsys.readouterr().out
