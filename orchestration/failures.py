"""Why a run failed, from what Dagster has recorded of it."""

from collections.abc import Iterable
from typing import Any

import dagster as dg


def why(events: Iterable[dg.DagsterEvent]) -> str:
    """Of a run: the failed steps and the innermost cause of each, without Dagster's wrapping."""
    reasons = []
    for event in events:
        evaluated = event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
        check = event.asset_check_evaluation_data if evaluated else None
        if check is not None and not check.passed and check.severity == dg.AssetCheckSeverity.ERROR:
            what = check.description or "see its figures above, or in the web UI"
            reasons.append(f"check {check.check_name} of {check.asset_key.path[-1]} failed: {what}")
        elif event.is_step_failure:
            error = _innermost(event.step_failure_data.error)
            if error is None or error.cls_name != "DagsterAssetCheckFailedError":  # of the check itself, named before
                reasons.append(f"{event.step_key}: {_said(error) if error else 'failed'}")
        elif event.is_failure and not event.is_step_event and not reasons:  # before the first step, or between two
            error = _innermost(event.job_failure_data.error)
            reasons += [_said(error)] if error else []
    return "\n".join(reasons) or "the run failed; see the web UI (`triptych ui`)"


def _innermost(error: Any) -> Any:
    while error is not None and error.cause is not None:
        error = error.cause
    return error


def _said(error: Any) -> str:
    """What an error says, without its class; where it says nothing, its class and place."""
    name, _, words = error.message.strip().partition(": ")
    said = words if error.cls_name and name.rstrip(":").endswith(error.cls_name) else error.message.strip()
    if said:
        return said
    place = " ".join(error.stack[-1].split()) if error.stack else "an unknown place"
    return f"{error.cls_name}, without a word, in {place}"
