"""The rows of `requests.parquet`: one per request, in the order sent, of every block that was run, valid or not.

Names are OpenTelemetry's where its conventions for generative AI have one.
"""

from __future__ import annotations

__all__ = ["REQUEST_ROWS"]

#: Times are seconds since the load began, on a clock that does not step. `attempt` counts how often the block was run
#: again; `place` the requests of a load, `warmup` marks those that are not counted. `tokens` are the times at which
#: each token came; `error.type` is null for a request that was answered whole.
REQUEST_ROWS: dict[str, str] = {
    "block": "int32",
    "attempt": "int32",
    "arm": "string",
    "load": "string",
    "place": "int32",
    "warmup": "bool",
    "request": "string",
    "scheduled": "double",
    "dispatched": "double",
    "tokens": "list<double>",
    "end": "double",
    "gen_ai.usage.input_tokens": "int32",
    "gen_ai.usage.output_tokens": "int32",
    "error.type": "string",
}
