"""tiny_gguf.py FILE: write a model that llama-server loads in milliseconds and answers nonsense with.

Half a megabyte: two layers of the llama architecture with random (but always the same) weights, and a vocabulary of
bytes and printable ASCII. For tests and the demo. Needs gguf and numpy, which the extra ``dev`` installs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import gguf
import numpy as np

EMBEDDING, FEED_FORWARD, HEADS, KV_HEADS, LAYERS, CONTEXT = 64, 128, 4, 2, 2, 2048
HEAD = EMBEDDING // HEADS
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def vocabulary() -> list[tuple[str, int, float]]:
    """Token, type and score: the special ones, every byte, every printable ASCII character (the space as ``▁``)."""
    special = [
        ("<unk>", gguf.TokenType.UNKNOWN, 0.0),
        ("<s>", gguf.TokenType.CONTROL, 0.0),
        ("</s>", gguf.TokenType.CONTROL, 0.0),
    ]
    every_byte = [(f"<0x{byte:02X}>", gguf.TokenType.BYTE, 0.0) for byte in range(256)]
    characters = ["\u2581", *map(chr, range(ord("!"), ord("~") + 1))]
    printable = [(character, gguf.TokenType.NORMAL, -float(rank)) for rank, character in enumerate(characters)]
    return [*special, *every_byte, *printable]


def shapes(tokens: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by name; one dimension means a norm, whose weights are ones."""
    tensors: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (tokens, EMBEDDING),
        "output_norm.weight": (EMBEDDING,),
        "output.weight": (tokens, EMBEDDING),
    }
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (EMBEDDING,),
        "attn_q": (EMBEDDING, EMBEDDING),
        "attn_k": (KV_HEADS * HEAD, EMBEDDING),
        "attn_v": (KV_HEADS * HEAD, EMBEDDING),
        "attn_output": (EMBEDDING, EMBEDDING),
        "ffn_norm": (EMBEDDING,),
        "ffn_gate": (FEED_FORWARD, EMBEDDING),
        "ffn_up": (FEED_FORWARD, EMBEDDING),
        "ffn_down": (EMBEDDING, FEED_FORWARD),
    }
    for number in range(LAYERS):
        tensors |= {f"blk.{number}.{name}.weight": shape for name, shape in layer.items()}
    return tensors


def write(path: Path) -> None:
    """Write the model to ``path``, which appears only when it is complete."""
    tokens, types, scores = zip(*vocabulary(), strict=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(unfinished, "llama")
    writer.add_name("tiny-random")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(EMBEDDING)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_scores(scores)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    random = np.random.default_rng(seed=0)
    for name, shape in shapes(len(tokens)).items():
        weights = np.ones(shape) if len(shape) == 1 else random.standard_normal(shape) * 0.05
        writer.add_tensor(name, weights.astype(np.float32))
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: tiny_gguf.py FILE")
    write(Path(sys.argv[1]))
