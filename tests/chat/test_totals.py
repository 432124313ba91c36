"""What the cache did, over all time and lately."""

import time
from pathlib import Path

from kvchat.backends.inspection import CacheTotals
from kvchat.chat.store import Store
from kvchat.chat.totals import DAY_S, KEPT_DAYS


def test_a_week_is_the_sum_of_its_days_and_all_time_of_all(tmp_path: Path, monkeypatch) -> None:
    store, now_s = Store(tmp_path / "chat.db"), 20_000 * DAY_S + 5.0
    for days_ago in (40, 8, 6, 0, 0):
        monkeypatch.setattr(time, "time", lambda at=now_s - days_ago * DAY_S: at)
        store.add_totals(CacheTotals(asked_tokens=10, tier_tokens={"ram": 4}, saved_s=0.5))
    assert store.totals() == CacheTotals(asked_tokens=50, tier_tokens={"ram": 20}, saved_s=2.5)
    assert store.totals(now_s - 6 * DAY_S) == CacheTotals(
        asked_tokens=30, tier_tokens={"ram": 12}, saved_s=1.5
    )
    assert store.totals(now_s) == CacheTotals(asked_tokens=20, tier_tokens={"ram": 8}, saved_s=1.0)
    assert store.totals(now_s + DAY_S) == CacheTotals()


def test_days_of_long_ago_are_forgotten_and_count_for_all_time(tmp_path: Path, monkeypatch) -> None:
    store = Store(tmp_path / "chat.db")
    for day in range(100):
        monkeypatch.setattr(time, "time", lambda at=day * DAY_S: at)
        store.add_totals(CacheTotals(asked_tokens=1))
    rows = store.database.read(lambda db: db.execute("SELECT count(*) FROM counter").fetchall())
    assert rows[0][0] == 1 + KEPT_DAYS and store.totals().asked_tokens == 100
