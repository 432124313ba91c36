"""The log of uses: what one process tells, the others learn, whatever becomes of the file."""

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvchat.cache.block import xxh3_128
from kvchat.cache.rates import Rates, Use
from kvchat.cache.uses import MOST_USES, USES_NAME, UseLog, make_nameless, shorten


def name(number: int) -> bytes:
    return xxh3_128(number.to_bytes(8, "little"))


def use(number: int, before: int = 0, time_s: float = 1000.0, *, is_shared: bool = False) -> Use:
    """The use of a chain that ends with blocks of two hashes."""
    return Use(
        (name(number), name(number + 10**6)), name(before) if before else b"", time_s + number, is_shared
    )


def test_what_one_tells_another_reads_once_and_in_order(tmp_path):
    mine, other = UseLog(tmp_path), UseLog(tmp_path)
    told = [use(1), use(2, 1, is_shared=True), use(3)]
    assert mine.new() == other.new() == []
    for each in told[:2]:
        assert mine.append(each)
    assert other.new() == told[:2] == mine.new()
    assert other.append(told[2])
    assert mine.new() == other.new() == told[2:] and mine.new() == []
    assert (tmp_path / USES_NAME).stat().st_mode & 0o777 == 0o600


@given(st.lists(st.booleans(), max_size=8), st.integers(0, 95))
def test_a_record_half_written_by_a_killed_process_is_passed_over(tmp_path_factory, torn, cut):
    root = tmp_path_factory.mktemp("log")
    log, whole = UseLog(root), []
    for number, is_torn in enumerate(torn, 1):
        log.append(use(number))
        path = root / USES_NAME
        if is_torn and path.stat().st_size > 192:
            os.truncate(path, path.stat().st_size - 96 + cut)
        else:
            whole.append(use(number))
    assert UseLog(root).new() == whole


@pytest.mark.parametrize("times", [200, pytest.param(5000, marks=pytest.mark.slow)])
def test_damage_and_foreign_bytes_tell_nothing_wrong_and_raise_nothing(tmp_path, times):
    chance = random.Random(5)
    log = UseLog(tmp_path)
    told = [use(number) for number in range(1, 9)]
    for each in told:
        log.append(each)
    path = tmp_path / USES_NAME
    whole = path.read_bytes()
    for _ in range(times):
        content = bytearray(whole)
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content[: chance.choice([len(content), chance.randrange(len(content))])])
        assert [each for each in UseLog(tmp_path).new() if each not in told] == []
        path.write_bytes(chance.randbytes(chance.randrange(600)))
        assert UseLog(tmp_path).new() == []
    path.unlink()
    path.mkdir()
    assert UseLog(tmp_path).new() == [] and not log.append(use(1))


def test_a_link_in_its_place_is_neither_read_nor_written(tmp_path):
    UseLog(tmp_path).append(use(1))
    (tmp_path / USES_NAME).rename(tmp_path / "elsewhere")
    (tmp_path / USES_NAME).symlink_to(tmp_path / "elsewhere")
    assert UseLog(tmp_path).new() == [] and not UseLog(tmp_path).append(use(2))


def test_a_log_that_others_can_write_tells_nothing(tmp_path):
    UseLog(tmp_path).append(use(1))
    (tmp_path / USES_NAME).chmod(0o666)
    assert UseLog(tmp_path).new() == []


def test_a_long_log_is_made_shorter_and_whoever_read_it_goes_on_where_it_was(tmp_path):
    mine, late = UseLog(tmp_path), UseLog(tmp_path)
    told = [use(number) for number in range(1, 2 * MOST_USES + 2)]
    for each in told[:10]:
        mine.append(each)
    assert late.new() == told[:10]
    for each in told[10:]:
        mine.append(each)
    assert mine.new() == told[-2 * MOST_USES :] and mine.num_records > 2 * MOST_USES
    shorten(tmp_path)
    assert mine.new() == [] and late.new() == told[-MOST_USES:] == UseLog(tmp_path).new()
    mine.append(use(7, 3))
    assert mine.new() == late.new() == [use(7, 3)]


def worths(rates: Rates) -> list[float]:
    return [rates.worth(level, 2.0**power) for level in (10, 30, 45) for power in range(24)]


def test_it_makes_no_difference_when_somebody_asks_what_was_learned(tmp_path):
    told = [use(number, number - 1 if number % 2 == 0 else 0, 100.0 * number) for number in range(1, 200)]
    asked, late = Rates(), Rates()
    for at in range(0, len(told), 40):
        for rates in (asked, late):
            rates.take_all(told[at : at + 40], 100.0 * (at + 40))
        worths(asked)
    assert worths(asked) == worths(late) != worths(Rates())
    for rates in (asked, late):
        rates.take(use(300, 199, 20_000.0))
    assert worths(asked) == worths(late)


def test_what_is_not_stored_any_more_loses_its_name_but_not_what_it_taught(tmp_path):
    log, rates = UseLog(tmp_path), Rates()
    told = [use(number, number - 1 if number % 2 == 0 else 0, 100.0 * number) for number in range(1, 200)]
    for each in told:
        log.append(each)
    rates.take_all(told, 30_000.0)
    make_nameless(tmp_path, {name(7), name(8)})
    left = UseLog(tmp_path).new()
    assert [each for each in left if {name(7), name(8)} & {*each.names, each.before}] == [left[6], left[7]]
    content = (tmp_path / USES_NAME).read_bytes()
    assert name(9) not in content and name(10**6 + 10) not in content and name(8) in content
    again = Rates()
    again.take_all(left, 30_000.0)
    assert worths(again) == worths(rates) != worths(Rates()) and again.tip_of(name(9)) is None
    assert again.tip_of(name(7)) is again.tip_of(name(8)) is not None, "who goes on has all of it"
    assert log.new() == left, "the file that was read is another one now, or goes on"
