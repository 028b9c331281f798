"""Tokens that other programs prepared, into token shards. Loads no torch."""

from collections.abc import Sequence
from pathlib import Path

from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.data import arrow, corpus, tokenize, vocabulary, webdataset, workers
from leanlm.data.manifest import Manifest
from leanlm.errors import UsageError

FORMATS = {"arrow": arrow, "openlm": webdataset}
PART_BYTES = 256 << 20


def bring(
    paths: Sequence[Path],
    folder: Path,
    format: str | None = None,
    tokenizer: Tokenizer | None = None,
    vocab_size: int | None = None,
    end_of_text: str | int | None = None,
    begin_of_text: str | int | bool = False,
    column: str = "tokens",
    strip: Sequence[int] = (),
    min_tokens: int = 1,
    shard_tokens: int = tokenize.SHARD_TOKENS,
    **work,
) -> Manifest | None:
    """Import files and folders of fms-fsdp's arrow layout ("arrow") or OpenLM's tar shards ("openlm"; None: as the files end).

    The ids are those of `tokenizer`, or of one nobody has at hand: then `vocab_size` and the id `end_of_text` must be told.
    `column` and `strip` are arrow's. Goes on where an earlier call was interrupted; `work` as for `tokenize`.
    """
    format = format or _format(paths)
    if tokenizer is None and (vocab_size is None or not isinstance(end_of_text, int)):
        raise UsageError(
            "give the tokenizer that made these tokens (--tokenizer), or its --vocab-size and --end-of-text as an id"
        )
    if tokenizer:
        end = tokenize.end_of(tokenizer, end_of_text)
        begin = tokenize.beginning_of(tokenizer, begin_of_text, end)
    else:
        end, begin = end_of_text, begin_of_text if type(begin_of_text) is int else None
    settings = {
        "vocab_size": tokenizer.vocab_size if vocab_size is None else vocab_size,
        "end_of_text": end,
        "begin_of_text": begin,
        "tokenizer_sha256": vocabulary.fingerprint(tokenizer.core) if tokenizer else None,
        "min_tokens": min_tokens,
        "skip_invalid": False,
        "shard_tokens": shard_tokens,
    }
    if format == "arrow":
        job = arrow.plan(paths, column, strip, PART_BYTES, **settings)
    elif begin is not None:
        raise UsageError("rows of OpenLM's shards begin inside documents; they can have no begin-of-text token")
    else:
        job = webdataset.plan(paths, PART_BYTES, **settings)
    return workers.run(job, folder, tokenizer.files if tokenizer else {}, FORMATS[format].documents, **work)


def _format(paths: Sequence[Path]) -> str:
    """The format that the files' endings tell; raises UsageError where they tell several."""
    endings = {corpus.kind(file) for file in corpus.find(paths, (*arrow.ENDING, *webdataset.ENDING))}
    if len(endings) > 1:
        raise UsageError(f"{paths[0]}: holds arrow and tar files; choose by --format arrow or openlm")
    return next(name for name, module in FORMATS.items() if endings == set(module.ENDING))
