import errno
import json
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import xxhash

from kvchat.cache import header
from kvchat.cache.entry import EntryError
from kvchat.cache.folder import open_new, scan_folder
from kvchat.cache.maintenance import list_folders, read_tokens, stored_tips, verify_checksums
from kvchat.cache.removal import clear, prune, remove_bad
from tests.cache.arena import load, name_of, store, stored_files, tiny_cache

TOKENS = list(range(100, 140))
STRANGER = 12_345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def disk_cache(root: Path, warnings: list[str] | None = None, **changed: object):
    """A cache whose only tier is the disk."""
    return tiny_cache(root, warnings, ram_bytes=0, **changed)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one stored file of 40 tokens."""
    cache = disk_cache(tmp_path / "kv")
    store(cache, TOKENS)
    cache.close()
    return tmp_path / "kv"


@contextmanager
def no_descriptors() -> Iterator[None]:
    """The system opens nothing meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def is_miss_and_kept(root: Path) -> list[str]:
    """Assert that what is stored is not used and not deleted; the warnings."""
    before = stored_files(root)
    warnings: list[str] = []
    cache = disk_cache(root, warnings)
    assert load(cache, TOKENS).end == 0 and load(cache, TOKENS).end == 0
    cache.close()
    assert stored_files(root) == before
    return warnings


# What the system refuses once


def test_a_file_that_cannot_be_opened_just_now_is_a_miss_and_stays(root):
    warnings: list[str] = []
    cache = disk_cache(root, warnings)
    assert not cache.stats.process.corrupt_files
    with no_descriptors():
        assert cache.match(TOKENS).num_tokens == 0
    assert load(cache, TOKENS).end == 40
    match = cache.match(TOKENS)
    with cache.lease(match) as lease, no_descriptors():
        assert cache.load(lease, [], 0, 40).end == 0
    assert load(cache, TOKENS).end == 40
    assert len(warnings) == 1 and "Too many open files" in warnings[0]
    assert not cache.stats.process.corrupt_files and len(stored_files(root)) == 1


class Refusing:
    """Opens new files, but for the first `times`."""

    def __init__(self, times: int, number: int = errno.EMFILE) -> None:
        self.left = times
        self.num_tries = 0
        self._number = number

    def __call__(self, path: Path) -> BinaryIO:
        self.num_tries += 1
        if self.left:
            self.left -= 1
            raise OSError(self._number, os.strerror(self._number))
        return open_new(path)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_refused_write_is_tried_again_later(tmp_path, number):
    warnings: list[str] = []
    cache = disk_cache(tmp_path / "kv", warnings, open_new=Refusing(2, number), retry_s=0.0)
    for _ in range(3):
        store(cache, TOKENS)
    assert load(cache, TOKENS).tokens == {"disk": 40}
    assert len(warnings) == 1 and os.strerror(number) in warnings[0]


@pytest.mark.parametrize("is_at_the_end", [False, True])
def test_what_was_refused_is_written_once_the_system_works_again_whoever_is_talked_to(
    tmp_path, is_at_the_end
):
    cache = tiny_cache(tmp_path / "kv", open_new=Refusing(1), retry_s=1000.0)
    for number in (1, 2):
        store(cache, [number] * 8)
    assert not stored_files(tmp_path / "kv")
    cache._disk._resumes_at = 0.0  # the time has passed
    if not is_at_the_end:
        store(cache, [3] * 8)
        store(cache, [3] * 8)
    assert cache.close()
    again = disk_cache(tmp_path / "kv")
    assert [load(again, [number] * 8).end for number in (1, 2, 3)] == [8, 8, 0 if is_at_the_end else 8]


def test_what_was_refused_is_not_tried_again_at_once(tmp_path):
    refusing = Refusing(1)
    cache = disk_cache(tmp_path / "kv", open_new=refusing, retry_s=1000.0)
    for _ in range(5):
        store(cache, TOKENS)
    assert refusing.num_tries == 1 and not stored_files(tmp_path / "kv")


def test_a_scan_says_that_the_system_did_not_let_it_look(root):
    with no_descriptors():
        assert scan_folder(root).refused is not None
    assert scan_folder(root).refused is None and scan_folder(root / "none").refused is None


def test_a_verification_does_not_remove_what_it_could_not_read(root, tmp_path):
    (path,) = stored_files(root)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as bound:  # which no open() opens
        bound.bind(str(tmp_path / "s"))
        (tmp_path / "s").rename(path)
        report = verify_checksums(root)
        assert [file.path for file in report.bad] == [path]
        assert remove_bad(root, report).num_files == 0 and path.exists()


# What others can have written


@as_root
def test_a_file_of_another_user_is_a_miss_with_a_warning(root):
    (path,) = stored_files(root)
    os.chown(path, STRANGER, STRANGER)
    (warning,) = is_miss_and_kept(root)
    assert "another user" in warning


@as_root
def test_a_folder_of_another_user_is_not_used_and_not_emptied(root):
    (path,) = stored_files(root)
    os.chown(path.parent, STRANGER, STRANGER)
    (warning,) = is_miss_and_kept(root)
    assert "another user" in warning and str(path.parent) in warning
    cache = disk_cache(root)
    store(cache, [1] * 8)
    assert clear(root).num_files == 0 and len(stored_files(root)) == 1 and list_folders(root) == []


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_a_miss_with_a_warning(root, mode):
    stored_files(root)[0].chmod(mode)
    (warning,) = is_miss_and_kept(root)
    assert "other users can write it" in warning


def test_a_folder_that_others_can_write_is_not_used(root):
    stored_files(root)[0].parent.chmod(0o777)
    (warning,) = is_miss_and_kept(root)
    assert "other users can write it" in warning


@pytest.mark.parametrize("mode", [0o777, 0o707])
def test_a_top_folder_that_others_can_write_is_not_used(root, mode):
    root.chmod(mode)
    (warning,) = is_miss_and_kept(root)
    assert f"{root} is not yours alone: other users can write it" in warning
    names = sorted(root.iterdir())
    cache = disk_cache(root, disk_bytes=1)
    store(cache, [1] * 8)
    cache.close()
    assert sorted(root.iterdir()) == names and len(stored_files(root)) == 1


@as_root
def test_a_top_folder_of_another_user_is_not_used(root):
    os.chown(root, STRANGER, STRANGER)
    (warning,) = is_miss_and_kept(root)
    assert f"{root} is not yours alone: it belongs to another user" in warning


def test_a_top_folder_that_others_can_write_only_later_is_not_used_from_then_on(root):
    warnings: list[str] = []
    cache = disk_cache(root, warnings)
    assert load(cache, TOKENS).end == 40
    root.chmod(0o777)
    assert load(cache, TOKENS).end == 0 and len(warnings) == 1
    root.chmod(0o700)
    assert load(cache, TOKENS).end == 40


def test_a_top_folder_may_be_a_link_and_lie_in_one_that_all_share(root, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    root.rename(tmp_path / "shared" / "kv")
    root.symlink_to(tmp_path / "shared" / "kv", target_is_directory=True)
    warnings: list[str] = []
    assert load(disk_cache(root, warnings), TOKENS).end == 40 and not warnings


def test_a_file_that_is_not_used_is_replaced_by_our_own(root):
    (path,) = stored_files(root)
    path.chmod(0o666)
    cache = disk_cache(root)
    assert load(cache, TOKENS).end == 0
    store(cache, TOKENS)
    assert load(cache, TOKENS).end == 40 and path.stat().st_mode & 0o777 == 0o600


# What leads out of the folder


def test_a_link_to_a_file_is_not_followed(root, tmp_path):
    (path,) = stored_files(root)
    path.rename(tmp_path / "elsewhere.kv")
    path.symlink_to(tmp_path / "elsewhere.kv")
    (warning,) = is_miss_and_kept(root)
    assert "link" in warning
    with pytest.raises(EntryError):
        read_tokens(path)
    assert not verify_checksums(root).is_clean
    assert clear(root).num_files == 1 and (tmp_path / "elsewhere.kv").exists()


def test_a_pipe_in_a_files_place_stops_nobody(root):
    (path,) = stored_files(root)
    path.unlink()
    os.mkfifo(path, 0o600)
    assert len(is_miss_and_kept(root)) == 1
    assert not verify_checksums(root).is_clean


def linked(root: Path, tmp_path: Path) -> Path:
    """Puts a link in the place of the stored folder; the folder that it leads to."""
    outside = tmp_path / "outside"
    folder = stored_files(root)[0].parent
    folder.rename(outside)
    folder.symlink_to(outside, target_is_directory=True)
    (outside / "mine.tmp").write_text("dear to me")
    return outside


@pytest.mark.parametrize("remove", [clear, lambda root: prune(root, budget_bytes=0, older_than_s=0.0)])
def test_nothing_is_deleted_behind_a_linked_folder(root, tmp_path, remove):
    outside = linked(root, tmp_path)
    before = sorted(outside.iterdir())
    assert remove(root).num_files == 0
    assert sorted(outside.iterdir()) == before and list_folders(root) == [] and not stored_tips(root)


def test_nothing_is_read_stored_or_swept_behind_a_linked_folder(root, tmp_path):
    outside = linked(root, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in outside.iterdir()}
    (warning,) = is_miss_and_kept(root)
    assert "link" in warning
    cache = disk_cache(root, disk_bytes=4000)
    store(cache, [1] * 16)
    cache.close()
    assert {path: path.stat().st_mtime_ns for path in outside.iterdir()} == before


def test_a_description_is_not_read_through_a_link_nor_without_end(root, tmp_path):
    (meta,) = root.glob("*/meta.json")
    meta.rename(tmp_path / "meta.json")
    for target in (tmp_path / "meta.json", Path("/dev/zero")):
        meta.symlink_to(target)
        assert [folder.meta for folder in list_folders(root)] == [None]
        meta.unlink()
    os.mkfifo(meta, 0o600)
    assert [folder.meta for folder in list_folders(root)] == [None]
    meta.unlink()
    (tmp_path / "meta.json").rename(meta)
    assert list_folders(root)[0].meta is not None


@pytest.mark.parametrize("number", ["1e999", "-1", "9" * 4000, "NaN", '"x"', "[]", "9" * 5000])
@pytest.mark.parametrize("key", ["block_size", "block_bytes", "snapshot_bytes"])
def test_a_description_with_numbers_out_of_bounds_is_none(root, key, number):
    (meta,) = root.glob("*/meta.json")
    value = json.loads(meta.read_text())
    meta.write_text(json.dumps(value | {key: "@"}).replace('"@"', number))
    (folder,) = list_folders(root)
    assert folder.meta is None and json.dumps(folder.to_json())


def test_a_description_that_is_nested_too_deep_is_none(root):
    (meta,) = root.glob("*/meta.json")
    meta.write_text("[" * 200_000)
    assert [folder.meta for folder in list_folders(root)] == [None]


def test_a_planted_link_is_not_written_through(root, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("dear to me")
    folder = stored_files(root)[0].parent
    probe = disk_cache(tmp_path / "other")
    store(probe, [1] * 8)
    key = stored_files(tmp_path / "other")[0].name[:32]

    def plant(path: Path) -> BinaryIO:
        if not path.is_symlink():
            path.symlink_to(precious)
        return open_new(path)

    (folder / f"{key}.tmp").symlink_to(precious)
    cache = disk_cache(root, open_new=plant)
    store(cache, [1] * 8)
    assert precious.read_text() == "dear to me"


# Headers that somebody made up, with checksums that are right


def planted(root: Path, changed: dict[str, Any], text: bytes = b"") -> None:
    """Give the stored file's header other facts, and the checksum that belongs to them."""
    (path,) = stored_files(root)
    content = path.read_bytes()
    magic, version, size, _ = header._PREAMBLE.unpack_from(content)
    body = content[header._PREAMBLE.size : size]
    (length,) = header._LENGTH.unpack_from(body)
    facts = json.loads(body[header._LENGTH.size : header._LENGTH.size + length])
    text = text or json.dumps(facts | changed).encode()
    body = header._LENGTH.pack(len(text)) + text + body[header._LENGTH.size + length :]
    preamble = header._PREAMBLE.pack(
        magic, version, header._PREAMBLE.size + len(body), xxhash.xxh3_64_intdigest(body)
    )
    path.write_bytes(preamble + body + content[size:])


FACTS = ("root", "parent", "start", "num_tokens", "num_blocks", "block_bytes", "block_size", "codec")
VALUES = (None, True, -1, 0, 1, 10.0, 1e300, 2**63, 10**400, "x", [], {}, "9" * 1000)


@pytest.mark.parametrize("fact", FACTS)
def test_a_planted_header_is_a_miss_and_never_an_error(root, fact):
    (path,) = stored_files(root)
    whole = path.read_bytes()
    for value in VALUES:
        path.write_bytes(whole)
        planted(root, {fact: value})
        warnings: list[str] = []
        cache = disk_cache(root, warnings, mode="ro")
        is_true = fact == "start" and value == 0
        assert (load(cache, TOKENS).end, len(warnings)) == ((40, 0) if is_true else (0, 1)), value
        verify_checksums(root)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"1", b"[]", b"{}", b"\xff", b'{"a":' * 50_000])
def test_a_header_that_is_no_mapping_is_a_miss(root, text):
    planted(root, {}, text)
    assert load(disk_cache(root, mode="ro"), TOKENS).end == 0
    assert remove_bad(root, verify_checksums(root)).num_files == 1


def test_the_facts_of_a_header_as_it_was_written_are_kept(root):
    planted(root, {})
    assert load(disk_cache(root), TOKENS).end == 40
    assert name_of(stored_files(root)[0]).num_tokens == 40
