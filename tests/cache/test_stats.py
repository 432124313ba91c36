from kvchat.cache.stats import CacheStats, StatsCounter


def test_a_turn_counts_from_its_beginning_and_the_process_from_its_own():
    counter = StatsCounter()
    counter.add(CacheStats(asked_tokens=10, ram_tokens=4))
    counter.begin_turn()
    counter.add(CacheStats(asked_tokens=5, disk_tokens=3, load_s=0.5, store_s=0.25, saved_s=2.0))
    assert counter.turn == CacheStats(asked_tokens=5, disk_tokens=3, load_s=0.5, store_s=0.25, saved_s=2.0)
    assert counter.process.hit_tokens == 7 and counter.process.hit_rate == 7 / 15
    assert counter.turn.net_saved_s == 1.25


def test_statistics_survive_json_and_unknown_fields():
    stats = CacheStats(asked_tokens=3, load_s=0.5)
    assert CacheStats.from_json({**stats.to_json(), "later": 1}) == stats
    assert CacheStats().hit_rate == 0.0
