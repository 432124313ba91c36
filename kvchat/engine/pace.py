"""How fast the model computes, as measured while it does; decides nothing."""

from __future__ import annotations

MEASURED_TOKENS = 32
"""Smaller prefill chunks say little about the speed of larger ones: they count where nothing else is known."""


class Pace:
    """Seconds a token, smoothed; 0 until something was measured."""

    def __init__(self) -> None:
        self.prefill_s_per_token = 0.0
        """Of many tokens computed at once."""
        self.step_s = 0.0
        """Of one token computed alone."""

    def forward_s(self, num_tokens: int) -> float:
        """About what one forward over so many tokens takes, in seconds."""
        return max(self.step_s, self.prefill_s_per_token * num_tokens)

    def measure(self, num_tokens: int, seconds: float) -> None:
        """Take in that one forward over so many tokens took so long."""
        if num_tokens >= MEASURED_TOKENS:
            self.prefill_s_per_token = _smoothed(self.prefill_s_per_token, seconds / num_tokens)
        elif num_tokens == 1:
            self.step_s = _smoothed(self.step_s, seconds)
        elif not self.prefill_s_per_token:
            self.prefill_s_per_token = seconds / num_tokens


def _smoothed(before: float, now: float) -> float:
    return 0.5 * (before + now) if before else now
