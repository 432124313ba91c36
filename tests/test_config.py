"""Where settings come from, and what is said of a bad one."""

import os
from pathlib import Path

import pytest

from kvchat.commands.flags import FLAG_NAMES
from kvchat.config import config_file, editor, load_config, origins
from kvchat.errors import UsageError


def written(tmp_path: Path, text: str) -> dict[str, str]:
    file = tmp_path / "config.toml"
    file.write_text(text)
    return {"KVCHAT_CONFIG": str(file)}


def test_flags_go_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    environ = written(tmp_path, "[sampling]\ntop_k = 1\ntop_p = 0.1\nseed = 1\n")
    environ |= {"KVCHAT_SAMPLING_TOP_K": "2", "KVCHAT_SAMPLING_TOP_P": "0.2"}
    sampling = load_config({"sampling.top_k": 3}, environ).sampling
    assert (sampling.top_k, sampling.top_p, sampling.seed, sampling.min_p) == (3, 0.2, 1, None)


def test_an_origin_names_the_line_the_variable_or_the_flag(tmp_path: Path) -> None:
    environ = written(tmp_path, '# mine\n[cache]\n\nram = "1GiB"\n[ui]\nvi = true\n') | {"KVCHAT_SYSTEM": "x"}
    given = origins({"cache.mode": "ro"}, environ, flag_names=FLAG_NAMES)
    assert {key: origin.where for key, origin in given.items()} == {
        "cache.ram": f"{tmp_path}/config.toml:4",
        "ui.vi": f"{tmp_path}/config.toml:6",
        "chat.system": "KVCHAT_SYSTEM",
        "cache.mode": "--cache",
    }


@pytest.mark.parametrize(
    ("text", "line", "nearest"),
    [
        ("[sampling]\nseed = 1\ntemperatur = 0.5\n", 3, "temperature"),
        ("[cache]\ncode = 'raw'\n", 2, "codec"),
        ("\n\n[cach]\nram = 1\n", 3, "cache"),
        ("\nui.plian = true\n", 2, "plain"),
        ("[ui]\nplain = true\n\n[sampling]\n'plain' = true\n", 5, "think"),
    ],
)
def test_an_unknown_key_names_its_line_and_the_nearest(
    tmp_path: Path, text: str, line: int, nearest: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load_config({}, written(tmp_path, text))
    assert caught.value.message.startswith(f"{tmp_path}/config.toml:{line}: no setting is called")
    assert caught.value.remedy == f"did you mean {nearest!r}?"


def test_a_bad_value_names_where_it_stands(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.toml:2: 7.0 must be between"):
        load_config({}, written(tmp_path, "[sampling]\ntop_p = 7\n"))
    with pytest.raises(UsageError, match="KVCHAT_CACHE: 'wr' is not one of rw"):
        load_config({}, {"KVCHAT_CONFIG": "/dev/null", "KVCHAT_CACHE": "wr"})
    with pytest.raises(UsageError, match=r"--cache-ram: .much. is not a size"):
        load_config({"cache.ram": "much"}, {}, flag_names={"cache.ram": "--cache-ram"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sampling]\ntemperature = nan\n", "nan is not a number"),
        ("[sampling]\ntemperature = inf\n", "inf is not a number"),
        ("[sampling]\nmax_tokens = true\n", "True is not a whole number"),
        ("[sampling]\nmax_tokens = 1.5\n", "1.5 is not a whole number"),
        ("[sampling]\nseed = 18446744073709551616\n", "must be between 0 and 18446744073709551615"),
        ("[sampling]\nstop = 3\n", "3 is neither text nor a list of texts"),
        ("[sampling]\nstop = [['x']]\n", "['x'] is not text"),
        ("[model]\nthreads = 100000\n", "must be between 1 and 1024"),
        ("[model]\nname = ['x']\n", "['x'] is not text"),
        ("[chat]\nsystem = true\n", "True is not text"),
        ("[paths]\ncache = ''\n", "'' is not a path"),
        ("[paths]\ncache = 5\n", "5 is not a path"),
        ("[cache]\nram = '.'\n", "'.' is not a size"),
    ],
)
def test_a_value_of_another_kind_is_refused_where_it_stands(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config({}, written(tmp_path, text))
    assert caught.value.message.startswith(f"{tmp_path}/config.toml:2: ")
    assert said in caught.value.message


def test_a_whole_number_will_do_for_a_number(tmp_path: Path) -> None:
    assert load_config({}, written(tmp_path, "[sampling]\ntemperature = 1\n")).sampling.temperature == 1.0


@pytest.mark.parametrize("text", ["\nmodel = 'x'\n", "\n[[model]]\nname = 'x'\n"])
def test_a_section_that_is_given_a_value_is_named_as_a_section(tmp_path: Path, text: str) -> None:
    with pytest.raises(
        UsageError, match=r"config\.toml:2: 'model' is a section, not a setting: write \[model\]"
    ):
        load_config({}, written(tmp_path, text))


def test_a_file_that_can_not_be_read_says_why_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_config({}, {"KVCHAT_CONFIG": str(tmp_path)})
    assert caught.value.message == f"can't read {tmp_path}: Is a directory"
    (tmp_path / "config.toml").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="it is not UTF-8 text"):
        load_config({}, {"KVCHAT_CONFIG": str(tmp_path / "config.toml")})


def test_a_home_that_is_no_folder_has_no_settings() -> None:
    config = load_config({}, {"KVCHAT_CONFIG": "/dev/null/kvchat/config.toml"})
    assert config == load_config({}, {"KVCHAT_CONFIG": "/dev/null"})


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where no user has this number
    with pytest.raises(UsageError, match="there is no home folder: set HOME, or all of KVCHAT_CONFIG"):
        load_config({}, {})
    folders = dict.fromkeys(("paths.models", "paths.cache", "paths.data"), tmp_path)
    assert load_config(folders, {"KVCHAT_CONFIG": "/dev/null"}).paths.cache == tmp_path


def test_a_setting_without_a_flag_is_named_by_its_key() -> None:
    with pytest.raises(UsageError, match=r"^sampling\.top_p: "):
        load_config({"sampling.top_p": 7}, {"KVCHAT_CONFIG": "/dev/null"})


def test_a_file_that_is_no_toml_says_where(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="line 2"):
        load_config({}, written(tmp_path, "[cache]\nram = = 3\n"))


def test_the_users_editor_is_known(tmp_path: Path) -> None:
    assert editor({"VISUAL": "code -w", "EDITOR": "ed"}) == "code -w"
    assert editor({"EDITOR": "ed"}) == "ed"
    assert editor({}) == "vi"
    assert config_file({"KVCHAT_CONFIG": str(tmp_path / "x")}) == tmp_path / "x"


@pytest.mark.parametrize(("given", "taken"), [("auto", None), ("off", 0), ("7", 7), (3, 3)])
def test_how_far_to_guess_ahead_is_a_word_or_a_number(given: object, taken: int | None) -> None:
    config = load_config({"model.draft": given}, environ={"KVCHAT_CONFIG": os.devnull})
    assert config.model.draft == taken


@pytest.mark.parametrize("given", ["never", "-1", "65"])
def test_no_other_word_and_no_other_number_says_how_far(given: str) -> None:
    with pytest.raises(UsageError, match=r"model\.draft"):
        load_config({"model.draft": given}, environ={"KVCHAT_CONFIG": os.devnull})


@pytest.mark.parametrize("name", ["KVCHAT_TEMPERATURE", "KVCHAT_SAMPLING_TEMPERATURE"])
def test_sampling_is_set_by_its_short_and_its_long_variable(tmp_path: Path, name: str) -> None:
    environ = {"KVCHAT_CONFIG": str(tmp_path / "none"), name: "0.3"}
    assert load_config({}, environ).sampling.temperature == 0.3
    assert origins({}, environ)["sampling.temperature"].where == name
