"""Tiny random models with fixed seeds, small enough to compute everything twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

from kvchat.config import Config, load_config
from kvchat.models.kinds import as_generated, ids_of
from kvchat.models.loaded import LoadedModel
from kvchat.models.stock import attention
from kvchat.models.stock.network import describe

VOCABULARY = 320

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def tiny_model(
    family: str = "llama", *, seed: int = 0, context: int | None = None, **overrides: Any
) -> LoadedModel:
    """A random float32 model of `family` whose logits depend on every token. It goes on anywhere, as on a GPU."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(SHAPE | overrides))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
        elif "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.1)
    attention.enable(model)
    loaded = describe(model, name=f"tiny-{family}", context=context)
    return replace(loaded, is_exact=False, page=1)


def transformers_model(folder: Path) -> Any:
    """A folder's model as transformers alone loads it, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def random_tokens(length: int, *, seed: int = 0) -> list[int]:
    """Token ids that stop nothing."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (length,), generator=generator).tolist()


def said(loaded: LoadedModel, ids: list[int]) -> list[int]:
    """Ids that a model generated, as tokens that a next prompt holds."""
    return as_generated(ids) if loaded.is_exact else ids


def stock_logits(loaded: LoadedModel, tokens: list[int]) -> torch.Tensor:
    """The last position's logits, computed from scratch by transformers' plain attention and no cache."""
    used = loaded.model.config._attn_implementation
    loaded.model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            return (
                loaded.model(input_ids=torch.tensor([ids_of(tokens)]), use_cache=False).logits[0, -1].float()
            )
    finally:
        loaded.model.set_attn_implementation(used)


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<pad>", "<|im_end|>", "<|im_start|>", "<s>", "</s>"]
CORPUS = ["the quick brown fox jumps over the lazy dog", "user assistant system hello world, and so on"] * 4


def byte_level_tokenizer(*plain_added: str) -> Tokenizer:
    """A byte-level BPE of 320 tokens; `plain_added` are added tokens that are not marked special, as `<think>` often is."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(plain_added),
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(token, special=False) for token in plain_added])
    return tokenizer


def tiny_folder(
    folder: Path, *, template: str | None = CHATML, seed: int = 0, family: str = "llama", **overrides: Any
) -> Path:
    """A whole model on disk, as somebody would download it: weights, tokenizer, template."""
    loaded = tiny_model(family, seed=seed, **overrides)
    loaded.model.lm_head.weight.data[1] = 0  # it never ends a greedy answer by itself
    loaded.model.save_pretrained(folder)
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def tiny_config(model: Path, folder: Path, **flags: Any) -> Config:
    """Settings for a tiny model with every folder of its own; `cache__mode="off"` sets `cache.mode`."""
    own = {f"paths.{name}": folder / name for name in ("models", "cache", "data", "runtime")}
    named = {key.replace("__", "."): value for key, value in flags.items()}
    base = {"model.name": str(model), "model.dtype": "float32", "cache.disk": "100MB", "cache.ram": "50MB"}
    return load_config(base | own | named, environ={"KVCHAT_CONFIG": str(folder / "none.toml")})
