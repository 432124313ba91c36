"""The scores of tokens: what the model's own logits say, however the tokens were computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvchat.engine.engine import Engine
from kvchat.engine.request import Request, Token
from kvchat.engine.sampling import SamplingParams
from tests.engine.test_batch import NEVER, REPEATED, asked
from tests.models.lean.test_network import WIDE, folder_of, loaded_from
from tests.tiny import said


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_each_token_has_the_score_that_the_models_logits_give_it(
    temperature: float, together: bool, tmp_path: Path
) -> None:
    loaded = loaded_from(folder_of("llama", tmp_path / "model", **WIDE))
    engine = Engine(loaded, draft=3)
    sampling = SamplingParams(temperature=temperature, repetition_penalty=1.3, seed=5)
    request = Request(REPEATED, sampling, max_tokens=8, top_logprobs=4)
    streams = [engine.generate(engine.new_sequence(), request, NEVER) for _ in range(2 if together else 1)]
    tokens = [event for event in asked(engine, *streams)[-1] if isinstance(event, Token)]
    state = loaded.new_state()
    logits = loaded.forward(engine.told(REPEATED), state)
    for token in tokens:
        shares = logits.double().softmax(-1).log()
        assert token.score is not None
        assert token.score.logprob == pytest.approx(float(shares[token.id]), abs=1e-4)
        assert [one for one, _ in token.score.top] == torch.topk(shares, 4).indices.tolist()
        logits = loaded.forward(said(loaded, [token.id]), state)


def test_nobody_pays_for_scores_that_nobody_asked_for(tmp_path: Path) -> None:
    engine = Engine(loaded_from(folder_of("llama", tmp_path / "model", **WIDE)))
    events = engine.generate(engine.new_sequence(), Request(REPEATED, max_tokens=2), NEVER)
    assert all(event.score is None for event in events if isinstance(event, Token))
