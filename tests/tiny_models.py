"""Tiny random Hugging Face models, saved to a directory, whose greedy text ends its thinking often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bide.engines.mock import CHATML

SPECIAL = ["<|im_end|>", "<|im_start|>", "<think>", "</think>"]
WORDS = ["Final", " Final", " Answer", " answer", " final", "Wait", "Let", " me", " think", "answer"]
"""One token each, so that the end markers of the format "cot" are two tokens long."""
LIKELY = "abcdefgh .\n"
VOCABULARY = 256 + len(SPECIAL) + len(WORDS)


def save_tokenizer(directory: Path) -> Any:
    """Bytes, `SPECIAL` and `WORDS`, with a ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    bpe.add_tokens([AddedToken(text, normalized=False) for text in WORDS])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(directory)
    return tokenizer


def save_model(directory: Path, config: Any, *, seed: int = 0, shape: bool = True) -> Path:
    """A random model with `config`. `shape`: make letters and end markers likely."""
    tokenizer = save_tokenizer(directory)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
        if shape:
            _shape(model, tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    return directory


def _shape(model: Any, tokenizer: Any) -> None:
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    scale = torch.full((len(head), 1), 0.05)
    for text in (*LIKELY, *SPECIAL[:2], *SPECIAL[3:], "Final", " Final", " Answer", " final", " answer"):
        (token,) = tokenizer.encode(text, add_special_tokens=False)
        scale[token] = 3.5 if text in SPECIAL else 3.0
    head *= scale
    for first, second in (("Final", " Answer"), (" Final", " answer"), (" final", " answer")):
        (a,), (b,) = (tokenizer.encode(text, add_special_tokens=False) for text in (first, second))
        head[b] += 3.0 * embeddings[a]  # the second word often follows the first


def config_of(kind: str, **changes: Any) -> Any:
    """A config of transformers with 2 layers and width 32, `kind` as in "Qwen2"."""
    settings: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=256,
        pad_token_id=None,
    )
    return getattr(transformers, kind + "Config")(**{**settings, **changes})
