"""Configuration of the translator; the defaults are the base model of Vaswani et al. 2017, table 3."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .configuration_checks import check_counts, check_given, check_parameters
from .positions import LAYOUTS

SIZES = (
    "vocab_size",
    "decoder_vocab_size",
    "hidden_size",
    "encoder_layers",
    "decoder_layers",
    "num_attention_heads",
    "intermediate_size",
)


@strict
class AttnTranslatorConfig(PreTrainedConfig):
    """The shape of an encoder-decoder Transformer.

    Raises:
        ValueError: if a size, probability or choice is out of range; the message names the value and the rule.
    """

    model_type = "attn_translator"
    keys_to_ignore_at_inference = ["cache"]
    attribute_map = {"num_hidden_layers": "encoder_layers"}

    vocab_size: int = 37000  # joint byte-pair vocabulary of the paper's English-German
    decoder_vocab_size: int | None = None  # None: the source's; another size needs share_embeddings=False
    hidden_size: int = 512
    encoder_layers: int = 6
    decoder_layers: int = 6
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    activation_function: str = "relu"  # OPUS-MT: "swish"
    norm_position: str = "post"  # "post": norm(x + f(x)), the paper; "pre": x + f(norm(x)), tensor2tensor v2, fairseq
    scale_embedding: bool = True  # words times √hidden_size
    position_layout: str = "interleaved"  # sine, cosine, sine, ... as in the paper; "halves": OPUS-MT; "fairseq"
    first_position: int = 0  # number of the first word's place; fairseq counts from the padding's id on: 2
    logits_bias: bool = False  # OPUS-MT has a bias on the vocabulary
    share_embeddings: bool = True  # one table for source and target words; tie_word_embeddings adds the output layer

    dropout: float | int = 0.1  # on every sub-layer's output and on the embedded words
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    label_smoothing: float | int = 0.1  # of the training loss; the loss in evaluation is the plain cross-entropy

    use_cache: bool = True
    is_encoder_decoder: bool = True
    is_decoder: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 0
    pad_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    unk_token_id: int | None = 3
    decoder_start_token_id: int = 0

    def __post_init__(self, **kwargs):
        check_given(self, kwargs)
        if self.decoder_vocab_size is None:
            self.decoder_vocab_size = self.vocab_size
        self._check()
        super().__post_init__(**kwargs)

    @property
    def target_vocab_size(self) -> int:
        """Words that the decoder knows and the output layer chooses from."""
        return self.decoder_vocab_size or self.vocab_size

    def _check(self) -> None:
        check_counts(self, SIZES)
        words, layers = self.vocab_size + self.target_vocab_size, self.encoder_layers + self.decoder_layers
        check_parameters(words, layers, self.hidden_size, self.intermediate_size)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.norm_position not in ("post", "pre"):
            raise ValueError(f"norm_position {self.norm_position!r} is unknown; use 'post' or 'pre'")
        if self.position_layout not in LAYOUTS:
            known = ", ".join(map(repr, LAYOUTS))
            raise ValueError(f"position_layout {self.position_layout!r} is unknown; use {known}")
        if self.first_position < 0:
            raise ValueError(f"first_position {self.first_position} is negative; the first place is 0, or later")
        if self.activation_function not in ACT2FN:
            raise ValueError(f"activation_function {self.activation_function!r} is unknown; use one of {list(ACT2FN)}")
        for name in ("dropout", "attention_dropout", "activation_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not in [0, 1)")
        if self.share_embeddings and self.decoder_vocab_size != self.vocab_size:
            raise ValueError(
                f"vocab_size {self.vocab_size} and decoder_vocab_size {self.decoder_vocab_size} cannot share one "
                "embedding; set share_embeddings=False"
            )
        words = min(size for size in (self.vocab_size, self.decoder_vocab_size) if size is not None)
        for name in ("pad_token_id", "decoder_start_token_id"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < words:
                raise ValueError(f"{name} {getattr(self, name)} is outside the vocabulary of {words}")
