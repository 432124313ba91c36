"""Which proxy stands before a server, if any, and that its password is not shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvchat.backends.remote.route import proxy_for
from kvchat.cli import main
from kvchat.errors import UsageError
from kvchat.remotes import RemoteConfig

PROXIES = {"http": "http://p:1", "https": "p:2", "all": "socks5://p:3"}


@pytest.mark.parametrize(
    ("host", "exempt", "is_straight"),
    [
        ("gpu.example", "", False),
        ("gpu.example", "*", True),
        ("gpu.example", "gpu.example", True),
        ("GPU.Example", "gpu.example", True),
        ("gpu.example", "example", True),
        ("gpu.example", " other , .example", True),
        ("gpu.example", "*.example", True),
        ("gpu.example", "pu.example", False),
        ("gpu.example:8000", "gpu.example:8000", True),
        ("gpu.example:8000", "gpu.example:9000", False),
        ("gpu.example", "10.0.0.0/8", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "11.0.0.0/8,10.1.2.4", False),
        ("[fd00::1]", "fd00::/8", True),
        ("[fd00::1]:80", "[fd00::1]", True),
        ("[fd00::1]:80", "[fd00::1]:81", False),
        ("127.9.9.9", "", True),
        ("localhost", "", True),
        ("[::1]:8000", "", True),
        ("localhost.example", "", False),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_who_is_asked_straight(scheme: str, host: str, exempt: str, is_straight: bool) -> None:
    remote = RemoteConfig(f"{scheme}://{host}")
    found = proxy_for(remote, PROXIES | {"no": exempt})
    assert found == (None if is_straight else {"http": "http://p:1", "https": "http://p:2"}[scheme])
    assert proxy_for(RemoteConfig(f"{scheme}://{host}", proxy="http://q:1"), PROXIES) == "http://q:1"


def test_a_variable_for_all_is_for_both_and_one_that_holds_no_proxy_is_refused() -> None:
    assert proxy_for(RemoteConfig("https://x"), {"all": "socks5://p:3"}) == "socks5://p:3"
    with pytest.raises(UsageError, match="HTTPS_PROXY"):
        proxy_for(RemoteConfig("https://x"), {"https": "gopher://p"})


def test_the_password_of_a_proxy_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text('[remote.a]\nurl = "https://x"\nproxy = "http://me:k7@proxy:3128"\n')
    monkeypatch.setenv("KVCHAT_CONFIG", str(tmp_path / "c.toml"))
    for flags in ([], ["--json"]):
        assert main(["config", "show", *flags]) == 0
        shown = capsys.readouterr().out
        assert "proxy:3128" in shown and "k7" not in shown and "me:" not in shown
