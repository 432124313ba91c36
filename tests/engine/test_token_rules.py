from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from kvchat.engine.sampling import Sampler, SamplingParams
from kvchat.engine.token_rules import Ruler, TokenRules

VOCABULARY = 12
END = 3


def of_transformers(settings: dict[str, Any], prompt_tokens: int) -> list[LogitsProcessor]:
    processors: list[LogitsProcessor] = []
    if "no_repeat_ngram_size" in settings:
        processors.append(NoRepeatNGramLogitsProcessor(settings["no_repeat_ngram_size"]))
    if "bad_words_ids" in settings:
        processors.append(NoBadWordsLogitsProcessor(settings["bad_words_ids"], torch.tensor([END])))
    if "min_new_tokens" in settings:
        least = settings["min_new_tokens"]
        processors.append(MinNewTokensLengthLogitsProcessor(prompt_tokens, least, torch.tensor([END]), "cpu"))
    if "suppress_tokens" in settings:
        processors.append(SuppressTokensLogitsProcessor(settings["suppress_tokens"]))
    if "begin_suppress_tokens" in settings:
        first = settings["begin_suppress_tokens"]
        processors.append(SuppressTokensAtBeginLogitsProcessor(first, prompt_tokens))
    return processors


@pytest.mark.parametrize(
    "settings",
    [
        {"suppress_tokens": [1, 5]},
        {"begin_suppress_tokens": [0, 2, 7]},
        {"bad_words_ids": [[4], [6, 7], [8, 9, 10], [END]]},
        {"min_new_tokens": 6},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 3},
        {"suppress_tokens": [1], "bad_words_ids": [[2, 3]], "min_new_tokens": 3, "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_the_rules_rule_out_what_the_processors_of_transformers_rule_out(settings: dict[str, Any]) -> None:
    draw = random.Random(0)
    for _ in range(30):
        prompt = [draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 9))]
        steps = LogitsProcessorList(of_transformers(settings, len(prompt)))
        ruler = Ruler(TokenRules.of(settings, frozenset({END}), prompt_tokens=len(prompt)), prompt)
        tokens = list(prompt)
        for _ in range(8):
            expected = steps(torch.tensor([tokens]), torch.zeros(1, VOCABULARY))[0]
            assert ruler.ruled_out() == set(torch.isneginf(expected).nonzero()[:, 0].tolist())
            tokens.append(draw.randrange(VOCABULARY))
            ruler.follow(tokens[-1])


def test_a_least_length_of_the_whole_counts_the_prompt() -> None:
    assert TokenRules.of({"min_length": 10}, frozenset({END}), prompt_tokens=7).min_tokens == 3
    assert TokenRules.of({"min_length": 10}, frozenset({END}), prompt_tokens=70).min_tokens == 0


def test_an_answer_that_goes_on_does_not_begin_anew() -> None:
    settings = {"begin_suppress_tokens": [1], "min_new_tokens": 5}
    rules = TokenRules.of(settings, frozenset({END}), prompt_tokens=9, unfinished_tokens=4)
    assert (rules.first_suppressed, rules.min_tokens) == ((), 1)


def test_a_ruled_out_token_is_not_chosen_unless_no_other_is_left() -> None:
    logits = torch.tensor([1.0, 9.0, 5.0])
    for temperature in (0.0, 1.0):

        def chosen(*suppressed: int, temperature: float = temperature) -> int:
            params = SamplingParams(temperature, seed=0, rules=TokenRules(suppressed=suppressed))
            return Sampler(params, [], torch.device("cpu")).choose(logits)

        assert chosen(1, 0, 500, -1) == 2
        assert chosen(0, 1, 2) in (0, 1, 2)
