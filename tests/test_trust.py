"""Whom the user trusts: by path and owner, asked once, never by mistake."""

import json
import os
from pathlib import Path

import pytest

from kvchat.config import load_config
from kvchat.errors import UsageError
from kvchat.trust import Kind, Trust, trust_for_now

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "trusted.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work" / "prompts").mkdir(parents=True)
    return tmp_path / "work" / "prompts"


def test_what_was_decided_is_remembered_by_kind_and_path(file: Path, folder: Path) -> None:
    assert Trust(file).verdict(Kind.PROMPTS, folder) is None
    Trust(file).decide(Kind.PROMPTS, folder, True)
    Trust(file).decide(Kind.CODE, folder.parent, False)
    again = Trust(file)
    assert again.verdict(Kind.PROMPTS, folder) is True and again.verdict(Kind.CODE, folder.parent) is False
    assert again.verdict(Kind.CODE, folder) is None and again.verdict(Kind.PROMPTS, folder.parent) is None
    again.decide(Kind.PROMPTS, folder, False)
    assert Trust(file).verdict(Kind.PROMPTS, folder) is False
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_link_is_trusted_as_what_it_leads_to(file: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    Trust(file).decide(Kind.PROMPTS, tmp_path / "link", True)
    assert Trust(file).trusts(Kind.PROMPTS, folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    assert not Trust(file).trusts(Kind.PROMPTS, tmp_path / "link")


@as_root
def test_a_folder_that_changed_hands_is_asked_about_again(file: Path, folder: Path) -> None:
    Trust(file).decide(Kind.PROMPTS, folder, True)
    os.chown(folder, 12_345, 12_345)
    assert Trust(file).verdict(Kind.PROMPTS, folder) is None


def test_a_folder_that_is_not_there_is_never_trusted(file: Path, tmp_path: Path) -> None:
    Trust(file).decide(Kind.PROMPTS, tmp_path / "none", True)
    assert Trust(file).verdict(Kind.PROMPTS, tmp_path / "none") is None


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_says_nothing(file: Path, folder: Path, mode: int) -> None:
    Trust(file).decide(Kind.PROMPTS, folder, True)
    file.chmod(mode)
    assert Trust(file).verdict(Kind.PROMPTS, folder) is None


@pytest.mark.parametrize(
    "content", ["", "[]", "1", "[" * 100_000, '{"prompts": 1}', '{"prompts": {"x": 1}}', "\0"]
)
def test_a_file_that_is_no_record_says_nothing_and_is_written_anew(
    file: Path, folder: Path, content: str
) -> None:
    file.parent.mkdir()
    file.write_text(content)
    file.chmod(0o600)
    assert Trust(file).verdict(Kind.PROMPTS, folder) is None
    Trust(file).decide(Kind.PROMPTS, folder, True)
    assert Trust(file).trusts(Kind.PROMPTS, folder)


def test_a_record_that_names_another_owner_counts_for_nothing(file: Path, folder: Path) -> None:
    Trust(file).decide(Kind.PROMPTS, folder, True)
    record = json.loads(file.read_text())
    for owner in (None, "0", folder.stat().st_uid + 1):
        record["prompts"][str(folder)]["owner"] = owner
        file.write_text(json.dumps(record))
        assert Trust(file).verdict(Kind.PROMPTS, folder) is None


def test_for_now_is_for_this_run_and_where_nothing_is_saved_nothing_is_remembered(
    file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    now = Trust(file)
    trust_for_now(now)
    unsaved = Trust(file, remembers=False)
    unsaved.decide(Kind.PROMPTS, folder, True)
    assert now.trusts(Kind.PROMPTS, folder) and unsaved.trusts(Kind.PROMPTS, folder)
    assert Trust(file).verdict(Kind.PROMPTS, folder) is None and not file.exists()


def test_what_cannot_be_remembered_is_said(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(UsageError, match="can't save that decision"):
        Trust(tmp_path / "data" / "trusted.json").decide(Kind.PROMPTS, folder, True)


# Trust in a model's code is for the model that it was given to

ENV = {"KVCHAT_CONFIG": os.devnull}


@pytest.mark.parametrize(
    ("environ", "flags", "trusts"),
    [
        ({"KVCHAT_MODEL_TRUST_REMOTE_CODE": "1", "KVCHAT_MODEL": "a/b"}, {}, True),
        ({"KVCHAT_MODEL_TRUST_REMOTE_CODE": "1", "KVCHAT_MODEL": "a/b"}, {"model.name": "c/d"}, False),
        ({"KVCHAT_MODEL_TRUST_REMOTE_CODE": "1", "KVCHAT_MODEL": "a/b"}, {"model.name": "a/b"}, True),
        ({"KVCHAT_MODEL_TRUST_REMOTE_CODE": "1"}, {"model.name": "c/d"}, False),
        ({"KVCHAT_MODEL": "a/b"}, {"model.trust_remote_code": True}, True),
        ({}, {"model.trust_remote_code": True, "model.name": "a/b"}, True),
    ],
)
def test_trust_is_not_carried_over_to_another_model(
    environ: dict[str, str], flags: dict[str, object], trusts: bool
) -> None:
    assert load_config(flags, ENV | environ).model.trust_remote_code is trusts


def test_trust_in_the_file_is_for_the_model_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[model]\nname = "a/b"\ntrust_remote_code = true\n')
    environ = {"KVCHAT_CONFIG": str(tmp_path / "c.toml")}
    assert load_config({}, environ).model.trust_remote_code
    assert not load_config({}, environ | {"KVCHAT_MODEL": "c/d"}).model.trust_remote_code
    assert not load_config({"model.name": "c/d"}, environ).model.trust_remote_code
