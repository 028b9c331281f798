"""Tokenising on a cluster: datatrove's executors run the shares of a job as tasks. Loads no torch."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.data import extras
from leanlm.data import manifest as manifests
from leanlm.data.manifest import MANIFEST, Manifest
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
) -> Manifest | None:
    """Have datatrove run `tasks` tasks, each a share of `data.tokenize.tokenize` with `settings`: "local" here and now,
    "slurm" as a job array (`slurm`: settings of its executor; time and partition are needed). Logs go beside `folder`. The task
    that ends last makes the manifest; it is returned where it is there already.

    Its markers of finished tasks are passed over: a part's own record says what is done, and outlives a removed folder no more
    than the part does.
    """
    if tasks < 1:
        raise UsageError(f"--tasks {tasks}: at least 1")
    if executor == "slurm" and not {"time", "partition"} <= slurm.keys():
        raise UsageError("--cluster slurm needs --slurm time=HH:MM:SS and --slurm partition=NAME")
    engines = extras.package("datatrove.executor")
    step = partial(share, [path.resolve() for path in paths], folder.resolve(), tokenizer.files, dict(settings))
    logs = str(folder.resolve().with_name(folder.name + ".logs"))
    common = {"tasks": tasks, "logging_dir": logs, "skip_completed": False}
    if executor == "local":
        engines.LocalPipelineExecutor([step], **common).run()
    else:
        engines.SlurmPipelineExecutor([step], job_name=folder.name, **common, **slurm).run()
    return manifests.read(folder) if (folder / MANIFEST).exists() else None


def share(
    paths: Sequence[Path], folder: Path, files: dict[str, bytes], settings: dict, data=None, rank: int = 0, world_size: int = 1
) -> None:
    """One task, as datatrove calls it."""
    import tokenizers

    tokenizer = Tokenizer(tokenizers.Tokenizer.from_buffer(files["tokenizer.json"]), files)
    tokenise(paths, folder, tokenizer, **settings, processes=1, share=(rank, world_size))
