"""Reads arguments of `vllm serve` by its own parser, in its interpreter, and prints what the engine makes of them."""

from __future__ import annotations

import json
import sys

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
ServeSubcommand().subparser_init(parser.add_subparsers())
arguments = parser.parse_args(sys.argv[1:])
arguments.model = arguments.model_tag
engine = AsyncEngineArgs.from_cli_args(arguments).create_engine_config()
drafting = engine.speculative_config
found = {
    "context": engine.model_config.max_model_len,
    "output": engine.model_config.get_diff_sampling_param().get("max_tokens"),
    "queue": engine.scheduler_config.max_num_queued_reqs,
    "requests": engine.scheduler_config.max_num_seqs,
    "chunked": engine.scheduler_config.enable_chunked_prefill,
    "prefixes": engine.cache_config.enable_prefix_caching,
    "cache": engine.cache_config.cache_dtype,
    "gpus": engine.parallel_config.tensor_parallel_size,
    "draft": None if drafting is None else [drafting.method, drafting.model, drafting.num_speculative_tokens],
}
print("found", json.dumps(found))
