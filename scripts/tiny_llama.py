"""tiny_llama.py FOLDER: write a model that vLLM serves within seconds of its own start and answers nonsense with.

Half a megabyte in the Hugging Face layout (configuration, tokenizer, safetensors): two layers of the Llama architecture
with random (but always the same) weights, and a vocabulary of the 256 bytes. For `make test-vllm`. Needs numpy, which
the extra ``dev`` installs, and no network.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

# A head of 32 is the smallest that every attention kernel of vLLM for CPUs has; the context is long enough for a request
# that takes a while.
HIDDEN, FEED_FORWARD, HEADS, LAYERS, CONTEXT = 64, 128, 2, 2, 32768
HEAD = HIDDEN // HEADS
SPECIAL = ("<unk>", "<s>", "</s>")
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def byte_symbols() -> list[str]:
    """How byte-level BPE writes each byte: printable ones as themselves, the others as characters from 256 on (GPT-2)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def tokenizer() -> dict[str, object]:
    """tokenizer.json: a token for each byte, and no merges."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *byte_symbols()])}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": token, **flags} for number, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "vocab": vocabulary, "merges": []},
    }


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by name; one dimension means a norm, whose weights are ones."""
    tokens = len(SPECIAL) + 256
    tensors: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (tokens, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (tokens, HIDDEN),
    }
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
        **{f"self_attn.{part}_proj": (HIDDEN, HIDDEN) for part in "qkvo"},
        "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
        "mlp.up_proj": (FEED_FORWARD, HIDDEN),
        "mlp.down_proj": (HIDDEN, FEED_FORWARD),
    }
    for number in range(LAYERS):
        tensors |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return tensors


def safetensors() -> bytes:
    """model.safetensors: the header's length in 8 bytes, the header as JSON, the weights."""
    random = np.random.default_rng(seed=0)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape in shapes().items():
        weights = np.ones(shape) if len(shape) == 1 else random.standard_normal(shape) * 0.05
        part = weights.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(part)]}
        data += part
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def configuration() -> dict[str, object]:
    """config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD,
        "num_hidden_layers": LAYERS,
        "max_position_embeddings": CONTEXT,
        "vocab_size": len(SPECIAL) + 256,
        "bos_token_id": SPECIAL.index("<s>"),
        "eos_token_id": SPECIAL.index("</s>"),
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def write(folder: Path) -> None:
    """Write the model to ``folder``, which appears only when it is complete."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    words = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    files = {
        "config.json": configuration(),
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
        "tokenizer.json": tokenizer(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT, "chat_template": CHAT_TEMPLATE, **words,
        },
    }  # fmt: skip
    try:
        for name, content in files.items():
            (unfinished / name).write_text(json.dumps(content, indent=1))
        (unfinished / "model.safetensors").write_bytes(safetensors())
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: tiny_llama.py FOLDER")
    write(Path(sys.argv[1]))
