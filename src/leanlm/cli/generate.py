"""leanlm generate: continue a prompt; the text to stdout as it comes, figures to stderr."""

import json
import random
import secrets
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from leanlm.cli import options, sizes
from leanlm.errors import NotFound, UsageError

IDS = range(1, 1000)  # what random prompts are made of, as far as the vocabulary goes


@dataclass(frozen=True)
class Command:
    """Continue a prompt. Greedy, unless a flag below asks for sampling."""

    text: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="PROMPT")] = None
    """The prompt; read from stdin where none is given and stdin is no terminal."""
    prompt: str | None = None
    """The prompt, as a flag."""
    file: Annotated[Path | None, tyro.conf.arg(aliases=["-f"])] = None
    """Read the prompt from a UTF-8 file, - for stdin; the last line end is left out."""
    promptlen: int | None = None
    """Without a prompt: make one of so many random tokens, to measure speed."""
    genlen: int = 100
    """New tokens at most."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text that ends the generation; may be given several times."""
    repeats: int = 1
    """Generate so many times and average the times; the text is shown once."""
    seed: int | None = None
    """Of the random numbers; drawn, and told, where left out."""
    session: Path | None = None
    """A conversation's file: gone on with if it exists, saved at the end."""
    echo: bool = False
    """Print the prompt before the text."""
    json: bool = False
    """Print JSON at the end instead of text as it comes."""
    sampling: options.Choice = field(default_factory=options.Choice)
    source: options.Source = field(default_factory=options.Source)


@dataclass
class Outcome:
    """What one run gave. `decode_seconds` is None where a session's time is not split: `prompt_seconds` is all of it."""

    text: str
    new: list[int]
    finish: str
    prompt_tokens: int
    prompt_seconds: float
    decode_seconds: float | None
    state_bytes: int


def run(command: Command) -> None:
    check(command)
    sampling = options.sampling(command.sampling)
    prompt = given_prompt(command)
    model = options.load(command.source)
    seed = command.seed
    if seed is None and not sampling.greedy and not (command.session and command.session.exists()):
        seed = secrets.randbits(32)
    if prompt is None and command.promptlen:
        prompt = random_ids(command.promptlen, model.config.vocab_size, seed)
    show = Show(command.json)
    if command.echo and prompt is not None:
        show(prompt)
    if command.session:
        outcomes = [converse(command, model, prompt, sampling, seed, show)]
    else:
        wants = {"max_new_tokens": command.genlen, "stop": command.stop, "seed": seed, "sampling": sampling}
        outcomes = [once(model, prompt, wants, show if i == 0 else Show(quiet=True)) for i in range(command.repeats)]
    show.end()
    report(command, model, prompt, seed, outcomes)


def check(command: Command) -> None:
    """Raises UsageError for flags that cannot be meant, before anything is loaded."""
    for name, least in (("genlen", 0), ("repeats", 1), ("promptlen", 1)):
        value = getattr(command, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} {value}: must be at least {least}")
    if command.seed is not None and not 0 <= command.seed < 2**63:
        raise UsageError(f"--seed {command.seed}: must be between 0 and 2**63 - 1")
    if command.session and command.repeats > 1:
        raise UsageError("--session continues one conversation: leave --repeats out")
    if command.session and command.sampling.compat:
        raise UsageError("--session and --compat do not go together: the originals have no sessions")
    if sum(prompt is not None for prompt in (command.text, command.prompt, command.file)) > 1:
        raise UsageError("more than one prompt: give it as an argument, by --prompt or by -f")


def given_prompt(command: Command) -> str | None:
    """The prompt's text from wherever it was given; None for a random one, and for going on with a session's last answer.

    stdin is read only where there is nothing else to go on with: a program that runs this one may never close it.
    """
    text = command.text if command.prompt is None else command.prompt
    goes_on = command.session and command.session.exists()
    if command.file:
        return read(command.file)
    if text is not None or command.promptlen or goes_on:
        return text
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError('no prompt: give one (leanlm generate "def "), or -f FILE, or --promptlen N, or pipe it in')
    return read(Path("-"))


def read(path: Path) -> str:
    """The text of a file, or of stdin for "-". Raises NotFound and UsageError."""
    try:
        raw = sys.stdin.buffer.read() if path == Path("-") else path.read_bytes()
        return raw.decode("utf-8").removesuffix("\n")
    except FileNotFoundError:
        raise NotFound(f"{path}: no such prompt file") from None
    except UnicodeDecodeError as error:
        where = f"byte {raw[error.start]:#04x} at offset {error.start}"
        raise UsageError(f"{'stdin' if path == Path('-') else path}: not UTF-8 text ({where})") from None


def random_ids(length: int, vocab_size: int, seed: int | None) -> list[int]:
    draw = random.Random(seed or 0)
    return [draw.randrange(IDS.start, min(IDS.stop, vocab_size)) for _ in range(length)]


class Show:
    """Prints pieces (text, or token ids where there is no tokenizer) as they come, and ends the line."""

    def __init__(self, quiet: bool):
        self.quiet, self.last = quiet, "\n"

    def __call__(self, piece: str | list[int]) -> None:
        if not isinstance(piece, str):
            piece = "".join(f"{token} " for token in piece)
        if piece and not self.quiet:
            print(piece, end="", flush=True)
            self.last = piece[-1]

    def end(self) -> None:
        if self.last != "\n":
            print(flush=True)


def once(model, prompt, wants: dict, show: Show) -> Outcome:
    generation = model.generation(prompt, **wants)
    (row,) = generation.rows
    read = len(row.unread)
    for piece in generation:
        show(piece)
    return Outcome(
        row.text, row.new, row.finish, read, generation.prompt_seconds, generation.decode_seconds, generation.state_bytes
    )


def converse(command: Command, model, prompt, sampling, seed: int | None, show: Show) -> Outcome:
    """Go on with the session's file, or begin it; it is saved after the answer, and where Ctrl-C cuts that short."""
    from leanlm.generate.session import Session

    session = Session.load(model, command.session) if command.session.exists() else Session(model)
    began, had = time.perf_counter(), len(session.tokens)
    pieces = []
    try:
        for piece in session.generate(prompt, command.genlen, stop=command.stop, stream=True, seed=seed, sampling=sampling):
            show(piece)
            pieces.append(piece)
    finally:
        seconds = time.perf_counter() - began
        if len(session.tokens) > had:
            session.save(command.session)
    first = max(session.turns[-1].read, had)  # where this answer, or its continuation, begins
    text = "".join(pieces) if model.tokenizer else ""
    return Outcome(text, session.tokens[first:], session.finish, first - had, seconds, None, session.state.nbytes)


def report(command: Command, model, prompt, seed: int | None, outcomes: list[Outcome]) -> None:
    """Figures of all runs: lines on stderr, or JSON on stdout."""
    figures = averaged(outcomes)
    if command.json:
        about = {
            "model": command.source.model,
            "family": model.family,
            "parameters": model.n_parameters,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
            "prompt": prompt,
            "text": outcomes[0].text if model.tokenizer else None,
            "ids": outcomes[0].new,
            "finish": outcomes[0].finish,
            "seed": seed,
        }
        print(json.dumps({**about, **figures}))
        return
    dtype = str(model.dtype).removeprefix("torch.")
    lines = [f"model   {command.source.model}: {sizes.count(model.n_parameters)} parameters, {dtype} on {model.device}"]
    if figures["decode_seconds"] is None:
        tokens = figures["prompt_tokens"] + figures["new_tokens"]
        lines.append(f"session {tokens} tokens {speed(tokens, figures['prompt_seconds'])}")
    else:
        over = f", average of {len(outcomes)} runs" if len(outcomes) > 1 else ""
        read, decoded = figures["prompt_tokens"], max(figures["new_tokens"] - 1, 0)
        lines.append(f"prompt  {read} tokens {speed(read, figures['prompt_seconds'])}{over}")
        lines.append(f"decode  {decoded} tokens {speed(decoded, figures['decode_seconds'])}{over}")
    lines.append(f"state   {sizes.size(figures['state_bytes'])}")
    if seed is not None:
        lines.append(f"seed    {seed}")
    print(*lines, sep="\n", file=sys.stderr)


def averaged(outcomes: list[Outcome]) -> dict:
    first = outcomes[0]
    prompt_seconds = sum(o.prompt_seconds for o in outcomes) / len(outcomes)
    split = first.decode_seconds is not None
    decode_seconds = sum(o.decode_seconds for o in outcomes) / len(outcomes) if split else None
    return {
        "prompt_tokens": first.prompt_tokens,
        "new_tokens": len(first.new),
        "runs": len(outcomes),
        "prompt_seconds": prompt_seconds,
        "decode_seconds": decode_seconds,
        "prompt_tokens_per_second": rate(first.prompt_tokens, prompt_seconds) if split else None,
        "decode_tokens_per_second": rate(len(first.new) - 1, decode_seconds) if split else None,
        "state_bytes": first.state_bytes,
    }


def rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds else None


def speed(tokens: int, seconds: float) -> str:
    per_second = rate(tokens, seconds)
    return f"in {seconds:.3f} s" + (f" ({per_second:.4g} tokens/s)" if per_second else "")
