from __future__ import annotations

from kvchat.bench.theory import Theory, read_bandwidth

THEORY = Theory(23_040, 370_000_000, 100_000_000, "int4", 134_500_000, 27e9)


def test_a_token_reads_weights_and_the_kv_before_it() -> None:
    assert THEORY.bytes_read(0) == 100_000_000
    assert THEORY.bytes_read(1000) == 100_000_000 + 23_040_000
    assert THEORY.share_of_bandwidth(0, 50.0) == 100_000_000 * 50 / 27e9


def test_prefilling_multiplies_and_adds_once_a_parameter() -> None:
    assert THEORY.prefill_flops(10) == 2 * 10 * 134_500_000


def test_it_is_told_in_words() -> None:
    first, second, third = THEORY.lines()
    assert first == "KV 23.0 kB per token; of 370 MB of weights a token reads 100 MB (int4)"
    assert second == "memory is read at up to 27.0 GB/s here: at most 270 tokens/s in an empty context"
    assert third == "prefilling a token takes 0.27 GFLOP, which a cache hit saves"


def test_memory_is_read_at_some_speed() -> None:
    assert read_bandwidth() > 1e8
