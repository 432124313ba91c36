from kvchat.cache.stats import CacheStats, StatsCounter


def test_a_turn_counts_from_its_beginning_and_the_process_from_its_own():
    counter = StatsCounter()
    counter.add(CacheStats(asked_tokens=10, tier_tokens={"ram": 4}))
    counter.begin_turn()
    counter.add(CacheStats(asked_tokens=5, tier_tokens={"disk": 3}, load_s=0.5, store_s=0.25, saved_s=2.0))
    assert counter.turn == CacheStats(
        asked_tokens=5, tier_tokens={"disk": 3}, load_s=0.5, store_s=0.25, saved_s=2.0
    )
    assert counter.process.hit_tokens == 7 and counter.process.hit_rate == 7 / 15
    assert counter.turn.net_saved_s == 1.25


def test_statistics_survive_as_counts_with_any_tier_and_unknown_names():
    stats = CacheStats(asked_tokens=3, load_s=0.5, tier_tokens={"ram": 2, "attic": 1})
    assert stats.counts()["attic_tokens"] == 1
    assert CacheStats.from_counts({**stats.counts(), "later": 1}) == stats
    assert CacheStats().hit_rate == 0.0
