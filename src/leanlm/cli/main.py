"""The `leanlm` command: one table of verbs, errors as one line with their exit code. Imports only the chosen verb.

Exit codes: 0 done, 1 failed while working, 2 wrong usage, 3 not found or offline, 4 checkpoint not understood,
5 a check failed, 130 interrupted.
"""

import difflib
import importlib
import os
import sys
import traceback
import warnings

from leanlm import env
from leanlm.errors import LeanLMError, UsageError

# verb -> (module, what it does). A verb's module holds `Command`, a dataclass of its flags, and `run(command)`,
# which prints the result and returns an exit code or None for 0; or `run_words(words)`, another program's command line.
VERBS = {
    "generate": ("leanlm.cli.generate", "continue a prompt"),
    "chat": ("leanlm.cli.chat", "talk with a model that has a chat template"),
    "list": ("leanlm.cli.list", "models known by name, with their sizes"),
    "show": ("leanlm.cli.show", "what a model is made of and what it costs"),
    "pull": ("leanlm.cli.pull", "download a model"),
    "state": ("leanlm.cli.state", "look into a session file, or fork it"),
    "train": ("leanlm.cli.train", "train a recipe, or go on with a run"),
    "distill": ("leanlm.cli.distill", "make a student with other mixers of a teacher, stage by stage"),
    "launch": ("leanlm.cli.launch", "print the command that trains a recipe on many processes"),
    "average": ("leanlm.cli.average", "make a model of the mean of a run's checkpoints"),
    "data": ("leanlm.cli.data", "text into token shards; import, look into and check them"),
    "import": ("leanlm.cli.import_checkpoint", "turn a training checkpoint of fms-fsdp into a model folder"),
    "recipe": ("leanlm.cli.recipe", "list, show or copy the recipes that come with the package"),
    "quantize": ("leanlm.cli.quantize", "write a model with weights of a few bits"),
    "telescope": ("leanlm.cli.telescope", "give a model's attention telescoping caches, to fine-tune it"),
    "export": ("leanlm.cli.export", "write a model for llama.cpp, transformers or vLLM, and prove it"),
    "verify": ("leanlm.cli.verify", "check a model's weights, and that a ternary one is ternary"),
    "eval": ("leanlm.cli.eval", "the tables of model cards, local tasks, perplexity and bits per byte"),
    "compare": ("leanlm.cli.compare", "quality, memory and speed of models and formats, as a page with figures"),
    "recall": ("leanlm.cli.recall", "how far back a model remembers, and how much at once"),
    "lm-eval": ("leanlm.cli.lm_eval", "the lm-evaluation-harness's own command line, with leanlm's models"),
    "bench": ("leanlm.cli.bench", "measure a model's speed, beside other programs too"),
    "study": ("leanlm.cli.study", "comparisons that take hours: Spectra, the Avengers and distillation in small"),
    "doctor": ("leanlm.cli.doctor", "this machine: what runs, what is missing, what is set"),
}

EPILOGUE = """
leanlm VERB --help lists the flags of a verb. --debug, anywhere, shows tracebacks; --version the version.
Try: leanlm generate "def "
"""


def run() -> None:
    """Entry point of the installed command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a model may say what the terminal's encoding cannot
            stream.reconfigure(errors="replace")
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Run one command line and return its exit code; results go to stdout, everything else to stderr."""
    argv, debug = take_flag(argv, "--debug")
    debug = debug or env.DEBUG.is_set()
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            code = dispatch(argv)
            if sys.stdout is not None:  # it is None where the shell closed it
                sys.stdout.flush()
            return code
        except SystemExit as stop:  # tyro leaves this way after --help
            return stop.code if isinstance(stop.code, int) else 0
        except BrokenPipeError:
            return close_quietly()
        except (KeyboardInterrupt, Exception) as error:
            return report(error, debug)


def dispatch(argv: list[str]) -> int:
    if not argv:
        print(overview(), end="", file=sys.stderr)
        return UsageError.code
    verb, *rest = argv
    if verb in ("-h", "--help", "help"):
        print(overview(), end="")
        return 0
    if verb in ("-V", "--version"):
        print(version())
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(VERBS)}"
        raise UsageError(f"{verb}: no such verb; {hint}")
    from leanlm.cli.flags import parse

    module = importlib.import_module(VERBS[verb][0])
    if hasattr(module, "run_words"):
        return module.run_words(rest) or 0
    return module.run(parse(module.Command, rest, f"leanlm {verb}")) or 0


def take_flag(argv: list[str], flag: str) -> tuple[list[str], bool]:
    """argv without `flag`, and whether it was there; what follows a lone -- is left alone."""
    end = argv.index("--") if "--" in argv else len(argv)
    return [a for a in argv[:end] if a != flag] + argv[end:], flag in argv[:end]


def overview() -> str:
    width = max(map(len, VERBS)) + 2
    lines = [f"  {verb:{width}}{text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(["usage: leanlm VERB [flags]", "", *lines]) + "\n" + EPILOGUE


def version() -> str:
    from importlib.metadata import version

    return f"leanlm {version('leanlm')}"


def report(error: BaseException, debug: bool) -> int:
    """Print an error as one line (after its traceback with `debug`) and return its exit code."""
    text, code = describe(error)
    flush_quietly()
    if debug:
        traceback.print_exception(error)
    print("error: " + " ".join(text.split()) if code != 130 else text, file=sys.stderr)
    return code


def describe(error: BaseException) -> tuple[str, int]:
    """What to tell a person about an error, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, LeanLMError):
        return str(error), error.code
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}", 1
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, which may not be loaded
        return "out of memory; try a smaller model, or weights of fewer bits", 1
    return f"unexpected {type(error).__name__}: {error}; --debug shows where", 1


def show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Stands in for warnings.showwarning: one line, without the place in the code."""
    print("warning: " + " ".join(str(message).split()), file=sys.stderr)


def flush_quietly() -> None:
    """What was printed before a failure still reaches its reader, if there is one."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        close_quietly()


def close_quietly() -> int:
    """The reader of our output has gone (`leanlm list | head -1`): say nothing, also at the interpreter's exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
