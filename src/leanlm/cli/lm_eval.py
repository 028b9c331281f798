"""leanlm lm-eval ...: the command line of the lm-evaluation-harness, with leanlm's models in it."""

import sys
from collections.abc import Sequence

HELP = """usage: leanlm lm-eval [run | ls | validate] [the harness's own flags]

The lm-evaluation-harness's command line with leanlm's models: --model leanlm (or rene_ssm, llamba_ssm), and --model hf where
leanlm knows the family. --model_args: pretrained=MODEL (a folder, a name of `leanlm list`, a hub id), and tokenizer, revision,
dtype, max_length, max_gen_toks, add_bos_token, prefix_token_id, state_dtype, cache_dtype. --device auto is a GPU if there is
one; --trust_remote_code is accepted and means nothing. `leanlm lm-eval run --help` lists the harness's flags.

  leanlm lm-eval --model leanlm --model_args pretrained=rene --tasks hellaswag,piqa --batch_size auto:4
"""


def run_words(words: Sequence[str]) -> None:
    """What follows `leanlm lm-eval`, as the harness reads it: `--model leanlm --model_args pretrained=MODEL --tasks ...`."""
    if list(words) in ([], ["-h"], ["--help"]):
        print(HELP, end="")
        return
    from leanlm.evaluate import harness

    harness.register()
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm-eval", *words]
    cli_evaluate()
