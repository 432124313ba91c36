"""Models of other programs are found where these keep them; what is broken or no model is left out."""

import json
from pathlib import Path

from kvchat.models.sources.others import others


def weights(path: Path, num_bytes: int = 2 << 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF" + b"\0" * (num_bytes - 4))
    return path


def manifest(folder: Path, name: str, tag: str, layers: object) -> None:
    path = folder / f"manifests/registry.ollama.ai/library/{name}/{tag}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"layers": layers}))


def test_each_program_is_looked_into_and_only_whole_models_count(tmp_path: Path) -> None:
    ollama = tmp_path / ".ollama/models"
    blob = weights(ollama / "blobs/sha256-abc")
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:abc"}
    manifest(ollama, "llama3", "8b", [{"mediaType": "other", "digest": "x"}, layer])
    manifest(ollama, "gone", "latest", [{**layer, "digest": "sha256:missing"}])
    manifest(ollama, "broken", "latest", 7)
    weights(tmp_path / ".lmstudio/models/org/repo/model-Q4.gguf")
    weights(tmp_path / ".lmstudio/models/org/repo/mmproj-model.gguf")
    for number in (1, 2, 3):
        weights(tmp_path / f".cache/llama.cpp/org_big-0000{number}-of-00003.gguf")
    weights(tmp_path / ".cache/llama.cpp/half-00001-of-00002.gguf")
    weights(tmp_path / ".cache/llama.cpp/rest-00002-of-00002.gguf")
    weights(tmp_path / ".cache/llama.cpp/tiny.gguf", 1000)
    snapshot = weights(
        tmp_path / ".cache/huggingface/hub/models--org--name/snapshots/1/model.safetensors"
    ).parent
    (snapshot / "config.json").write_text("{}")
    found = {model.name: model for model in others(tmp_path, {})}
    assert set(found) == {"llama3:8b", "org_big", "model-Q4", "org/name"}
    assert found["org_big"].path == tmp_path / ".cache/llama.cpp/org_big-00001-of-00003.gguf"
    assert found["org_big"].num_bytes == 6 << 20
    assert found["llama3:8b"].path == blob
    assert found["llama3:8b"].num_bytes == 2 << 20
    assert found["org/name"].path == snapshot
    assert [model.program for model in found.values()] == [
        "ollama",
        "llama.cpp",
        "LM Studio",
        "the hub's cache",
    ]


def test_the_programs_own_variables_say_where_to_look(tmp_path: Path) -> None:
    weights(tmp_path / "elsewhere/a.gguf")
    assert [model.name for model in others(tmp_path, {"LLAMA_CACHE": str(tmp_path / "elsewhere")})] == ["a"]
    assert others(tmp_path / "nowhere", {}) == []
