"""Tokenising on a cluster: datatrove's executors run the shares of a job as tasks. Loads no torch."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.data import extras
from leanlm.data.tokenize import tokenize as tokenise
from leanlm.errors import UsageError


def tokenize(
    paths: Sequence[Path],
    folder: Path,
    tokenizer: Tokenizer,
    settings: Mapping,
    executor: str,
    tasks: int,
    slurm: Mapping[str, str],
) -> None:
    """Have datatrove run `tasks` tasks, each a share of `data.tokenize.tokenize` with `settings`: "local" here and now,
    "slurm" as a job array (`slurm`: settings of its executor; time and partition are needed). Logs go beside `folder`.

    Its markers of finished tasks and our records of finished parts agree: what is done is not done again.
    """
    if tasks < 1:
        raise UsageError(f"--tasks {tasks}: at least 1")
    if executor == "slurm" and not {"time", "partition"} <= slurm.keys():
        raise UsageError("--cluster slurm needs --slurm time=HH:MM:SS and --slurm partition=NAME")
    engines = extras.package("datatrove.executor")
    step = partial(share, [path.resolve() for path in paths], folder.resolve(), tokenizer.files, dict(settings))
    logs = str(folder.resolve().with_name(folder.name + ".logs"))
    if executor == "local":
        engines.LocalPipelineExecutor([step], tasks=tasks, logging_dir=logs).run()
    else:
        engines.SlurmPipelineExecutor([step], tasks=tasks, logging_dir=logs, job_name=folder.name, **slurm).run()


def share(
    paths: Sequence[Path], folder: Path, files: dict[str, bytes], settings: dict, data=None, rank: int = 0, world_size: int = 1
) -> None:
    """One task, as datatrove calls it."""
    import tokenizers

    tokenizer = Tokenizer(tokenizers.Tokenizer.from_buffer(files["tokenizer.json"]), files)
    tokenise(paths, folder, tokenizer, **settings, processes=1, share=(rank, world_size))
