"""What an engine is told apart by beside its settings."""

from __future__ import annotations

from pathlib import Path

from kvchat.backends.resident.identity import _installed, program


def test_the_versions_of_what_an_engine_computes_with_are_part_of_it(tmp_path: Path) -> None:
    for name in ("torch-2.9.0.dist-info", "Transformers-5.0.dist-info", "torchvision-1.dist-info", "torch"):
        (tmp_path / name).mkdir()
    before = list(_installed([str(tmp_path), str(tmp_path / "nowhere")]))
    assert before == ["Transformers-5.0.dist-info", "torch-2.9.0.dist-info"]
    (tmp_path / "torch-2.9.0.dist-info").rename(tmp_path / "torch-2.9.1.dist-info")
    assert list(_installed([str(tmp_path)])) != before


def test_this_very_program_names_its_torch() -> None:
    assert " torch-" in program() and " transformers-" in program()
