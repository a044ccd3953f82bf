"""Stand-in for the owner's module."""

from __future__ import annotations

from dataclasses import dataclass

from pacedrl.report.run import RunLogs


@dataclass(frozen=True)
class Finding:
    id: str
    severity: str
    text: str
    remedy: str


def diagnose(run: RunLogs) -> list[Finding]:
    share = run.metrics[-1]["completion/truncated"] if run.metrics else 0.0
    text = f"{share:.0%} of completions truncated at step {run.metrics[-1]['step']}" if run.metrics else ""
    return [Finding("truncated", "warning", text, "raise sampling.max_new_tokens")] if run.metrics else []
