"""Damage to model folders and GGUF files, drawn by a number: wrong types, absurd sizes, broken text, odd files."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.models.tiny_gguf import write_gguf

MARKER = "executed"
"""A file that code of a model's own would leave beside it."""
JSON_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model.safetensors.index.json",
    "chat_template.json",
    "processor_config.json",
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 100, 2**15, 2**31 - 1, 2**31, 2**32, 2**63, 10**6, 10**8, 10**9),
    *(10**30, -(2**31), -(10**9), 0.0, -0.5, 1e-40, 1e308, math.nan, math.inf, -math.inf),
    *(
        "",
        "x",
        "0",
        "-1",
        "\x1b[2J\x07",
        "\ud800",
        "ａ\u202e",
        "y" * 100_000,
        "9" * 5000,
        "../../etc/passwd",
        "{{",
        "None",
    ),
    *([], [[]], [None], [1, 2, 3], [-1], [2**40], ["a"], [0.5] * 50, list(range(5000)), [{}], {}, {"": ""}),
    *({"type": "x"}, {"a": {"b": [1, {"c": None}]}}, {"content": "<s>", "special": True}, {"default": 1}),
    *(
        {"rope_type": "llama3"},
        {"rope_type": "yarn", "factor": 0},
        {"rope_type": "longrope", "short_factor": [1]},
    ),
    *({"rope_type": "dynamic", "factor": math.inf, "rope_theta": 0}, {"quant_method": "gptq", "bits": 4}),
)
EXTRA: dict[str, tuple[str, ...]] = {
    "config.json": (
        *(
            "rope_scaling",
            "rope_parameters",
            "rope_theta",
            "layer_types",
            "quantization_config",
            "num_labels",
        ),
        *(
            "text_config",
            "torch_dtype",
            "dtype",
            "tie_word_embeddings",
            "sliding_window",
            "id2label",
            "architectures",
        ),
        *(
            "attention_bias",
            "num_experts",
            "max_position_embeddings",
            "partial_rotary_factor",
            "per_layer_config",
        ),
        *(
            "head_dim",
            "use_cache",
            "is_decoder",
            "attn_implementation",
            "_attn_implementation",
            "pruned_heads",
        ),
    ),
    "tokenizer_config.json": (
        *("tokenizer_class", "bos_token", "eos_token", "added_tokens_decoder", "additional_special_tokens"),
        *("chat_template", "extra_special_tokens", "model_max_length", "add_prefix_space", "auto_map"),
    ),
    "generation_config.json": (
        *(
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "do_sample",
            "eos_token_id",
            "suppress_tokens",
            "bad_words_ids",
        ),
        *("min_new_tokens", "max_new_tokens", "stop_strings", "no_repeat_ngram_size", "repetition_penalty"),
        *("begin_suppress_tokens", "num_beams", "cache_implementation", "watermarking_config", "max_length"),
    ),
    "special_tokens_map.json": ("bos_token", "eos_token", "additional_special_tokens", "pad_token"),
    "added_tokens.json": ("<x>", "", "<|im_end|>"),
    "model.safetensors.index.json": ("weight_map", "metadata"),
    "chat_template.json": ("chat_template",),
}
FAMILIES = (
    *("gemma2", "mistral", "mixtral", "mamba", "gpt2", "qwen2", "qwen3", "phi3", "smollm3", "gemma3_text"),
    *("bert", "clip", "t5", "whisper", "qwen2_moe", "gpt_neo", "bloom", "opt", "falcon", "recurrent_gemma"),
)
REGEXES = (
    r"(a+)+b",
    r"(?:a|a)*b",
    r"(.*)*x",
    "(",
    r"\p{Nope}",
    "a{99999}",
    r"(?<=(x))\1+",
    "",
    r"(\s*)*$",
    "[" * 500,
)
TEMPLATES = (
    "",
    "{{",
    "{% for %}",
    "{{ nothing.at.all }}",
    "{{ 1 / 0 }}",
    "{% if %}",
    "{{ messages[99].content }}",
)
KEYS = (
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"),
    *("attention.head_count_kv", "attention.key_length", "rope.freq_base", "rope.dimension_count"),
    *(
        "attention.layer_norm_rms_epsilon",
        "rope.scaling.type",
        "rope.scaling.factor",
        "vocab_size",
        "expert_count",
    ),
)
TOKENIZER_KEYS = (
    *(
        "model",
        "pre",
        "tokens",
        "token_type",
        "merges",
        "scores",
        "bos_token_id",
        "eos_token_id",
        "add_bos_token",
    ),
    *("unknown_token_id", "padding_token_id", "eot_token_id", "add_space_prefix", "precompiled_charsmap"),
)


def damage_folder(folder: Path, draw: random.Random) -> str:
    """Damage a whole model folder in one way or in two; says how."""
    ways = draw.choices(_WAYS, weights=[8, 4, 3, 2, 3, 2, 1, 1, 1], k=draw.choice((1, 1, 1, 2)))
    return "; ".join(f"{way.__name__} {way(folder, draw)}" for way in ways)


def damage_gguf(whole: Path, path: Path, draw: random.Random) -> str:
    """Write a damaged GGUF file: one with odd metadata, or the `whole` one with other bytes; says how."""
    if draw.random() < 0.5:
        return _odd_metadata(path, draw)
    content = bytearray(whole.read_bytes())
    header = content.index(b"tokenizer.chat_template")
    if draw.random() < 0.3:
        del content[draw.randrange(len(content)) :]
    for _ in range(draw.choice((1, 1, 3, 20))):
        if content:
            place = draw.randrange(min(header if draw.random() < 0.8 else len(content), len(content)))
            content[place] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, content[place] ^ 1 << draw.randrange(8)))
    path.write_bytes(content)
    return f"bytes, {len(content)} of them"


def _odd_metadata(path: Path, draw: random.Random) -> str:
    odd: dict[str, Any] = {}
    for _ in range(draw.choice((1, 1, 2))):
        if draw.random() < 0.5:
            name = f"{draw.choice(('llama', 'llama', 'gemma2'))}.{draw.choice(KEYS)}"
        else:
            name = f"tokenizer.ggml.{draw.choice(TOKENIZER_KEYS)}"
        numbers = (None, 0, 1, 3, 2**20, 2**31, 2**32 - 1, 0.0, -1.0, math.nan, math.inf, 1e30)
        texts = ("", "x", "llama", "gpt2", "bert", "t5", "yarn", "\x1b[2J", "y" * 10_000)
        lists = ([1], [0.5] * 9, ["a", "a"], [""] * 320, ["a b"], [3] * 320, list(range(1000)))
        odd[name.replace(".", "__")] = draw.choice((*numbers, *texts, True, *lists))
    if draw.random() < 0.2:
        odd["general__architecture"] = draw.choice(("gemma2", "mamba", "bert", "clip", "x", "qwen2", ""))
    try:
        write_gguf(path, **odd)
    except Exception:  # what the writer refuses can't be in a file
        path.write_bytes(b"GGUF")
    return str(odd)[:200]


def _json_value(folder: Path, draw: random.Random) -> str:
    """Another value under a key, known or new, of one of the JSON files."""
    name = draw.choice((*JSON_FILES[:6], "config.json", "config.json", "tokenizer.json"))
    content = _read(folder / name)
    if name in EXTRA and (not content or draw.random() < 0.6):
        keys = [*content, *EXTRA[name]]
        key = draw.choice(keys)
        content[key] = draw.choice(VALUES)
        what = f"{key} = {str(content[key])[:40]}"
    else:
        what = _mutated(content, draw)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return f"{name}: {what}"


def _mutated(content: Any, draw: random.Random) -> str:
    """Change something somewhere in nested JSON."""
    node, way = content, ["$"]
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return "nothing"
        key = draw.choice(keys[:12] if draw.random() < 0.7 else keys)
        way.append(str(key)[:20])
        if isinstance(node[key], dict | list) and node[key] and draw.random() < 0.8:
            node = node[key]
            continue
        if draw.random() < 0.2:
            del node[key]
            return "/".join(way) + " gone"
        node[key] = draw.choice(VALUES)
        return "/".join(way) + f" = {str(node[key])[:40]}"


def _family(folder: Path, draw: random.Random) -> str:
    content = _read(folder / "config.json")
    content["model_type"] = draw.choice(FAMILIES)
    (folder / "config.json").write_text(json.dumps(content))
    return str(content["model_type"])


def _odd_file(folder: Path, draw: random.Random) -> str:
    """Something else where a file should be."""
    names = (
        *JSON_FILES,
        "chat_template.jinja",
        "model.safetensors",
        "merges.txt",
        "vocab.json",
        "tokenizer.model",
    )
    path = folder / draw.choice(names)
    path.unlink(missing_ok=True)
    ways: dict[str, Callable[[], object]] = {
        "folder": path.mkdir,
        "FIFO": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "dangling link": lambda: path.symlink_to("nowhere"),
        "link to itself": lambda: path.symlink_to(path),
        "pointer": lambda: path.write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        ),
        "empty": path.touch,
        "sparse": lambda: (path.touch(), os.truncate(path, 1 << 36)),
        "deep": lambda: path.write_text("[" * 100_000),
        "deep object": lambda: path.write_text('{"a":' * 900 + "1" + "}" * 900),
        "digits": lambda: path.write_text('{"model_type": "llama", "a": ' + "9" * 6000 + "}"),
        "no UTF-8": lambda: path.write_bytes(b'{"model_type": "ll\xffama"}'),
        "UTF-16": lambda: path.write_bytes('{"model_type": "llama"}'.encode("utf-16")),
        "list": lambda: path.write_text("[1, 2]"),
        "gone": lambda: None,
    }
    what = draw.choice(list(ways))
    ways[what]()
    return f"{path.name}: {what}"


def _bytes(folder: Path, draw: random.Random) -> str:
    """A few other bytes, or fewer, in one of the files."""
    path = draw.choice(sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"))
    content = bytearray(path.read_bytes())
    if draw.random() < 0.3:
        del content[draw.randrange(len(content) + 1) :]
    for _ in range(draw.choice((1, 2, 10))):
        if content:
            place = draw.randrange(min(len(content), 3000))
            content[place] = draw.choice((0, 0xFF, content[place] ^ 1 << draw.randrange(8)))
    path.write_bytes(content)
    return path.name


def _header(folder: Path, draw: random.Random) -> str:
    """Another header of the weights."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return "nothing"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
    except ValueError:
        return "nothing"
    what = _mutated(header, draw)
    if draw.random() < 0.3 and header:
        name = draw.choice(list(header))
        header[f"{name}x"] = header.pop(name)
        what += f", {name} renamed"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return what


def _pattern(folder: Path, draw: random.Random) -> str:
    """A regex of somebody's own in the tokenizer."""
    content, regex = _read(folder / "tokenizer.json"), draw.choice(REGEXES)
    part = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    if draw.random() < 0.5:
        content["pre_tokenizer"] = part
    else:
        written = draw.choice(("aa", "a" * 100_000))
        content["normalizer"] = {"type": "Replace", "pattern": {"Regex": regex}, "content": written}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return regex[:30]


def _number(folder: Path, draw: random.Random) -> str:
    """An id that no vocabulary has, in the tokenizer."""
    content, number = _read(folder / "tokenizer.json"), draw.choice(VALUES)
    if draw.random() < 0.5:
        content["added_tokens"] = [{"id": number, "content": "zzz", "special": True}]
    else:
        content["model"] = {"type": "BPE", "vocab": {"a": 0, "zzz": number}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return str(number)[:40]


def _template(folder: Path, draw: random.Random) -> str:
    template = draw.choice(TEMPLATES)
    path = folder / "chat_template.jinja"
    if path.is_file():
        path.write_text(template)
    return template


def _code(folder: Path, draw: random.Random) -> str:
    """Code of its own, which nobody has trusted."""
    content = _read(folder / "config.json")
    (folder / "own.py").write_text(f"open({str(folder / MARKER)!r}, 'w')\n")
    content["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    if draw.random() < 0.5:
        content["model_type"] = "own"
    (folder / "config.json").write_text(json.dumps(content))
    return "auto_map"


_WAYS = (_json_value, _odd_file, _bytes, _family, _header, _pattern, _template, _code, _number)


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > 1 << 24:
            raise ValueError
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = {}
    if path.is_dir():
        shutil.rmtree(path)
    elif not path.is_file():
        path.unlink(missing_ok=True)
    return content if isinstance(content, dict) else {}
