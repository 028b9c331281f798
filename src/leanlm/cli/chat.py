"""leanlm chat: talk with a model whose tokenizer has a chat template; a session underneath."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from leanlm.cli import options
from leanlm.errors import LeanLMError, UsageError

HELP = "/rewind [N] unsays the last N questions, /fork FILE goes on in a copy, /save [FILE] saves, /quit ends"


@dataclass(frozen=True)
class Command:
    """Talk with a model. A line is a question; /rewind [N], /fork FILE, /save [FILE] and /quit are commands."""

    session: Path | None = None
    """The conversation's file: gone on with if it exists, saved after every answer."""
    system: str | None = None
    """A system message to begin with."""
    genlen: int = 1000
    """Tokens of an answer at most."""
    seed: int | None = None
    """Of the random numbers, where the conversation begins."""
    sampling: options.Choice = field(default_factory=options.Choice)
    source: options.Source = field(default_factory=options.Source)


def run(command: Command) -> None:
    sampling = options.sampling(command.sampling)
    if command.genlen < 1:
        raise UsageError(f"--genlen {command.genlen}: must be at least 1")
    model = options.load(command.source)
    if model.tokenizer is None or model.tokenizer.chat_template is None:
        raise UsageError(f"{command.source.model}: its tokenizer has no chat template; use leanlm generate")
    chat = Chat(model, command, sampling)
    for line in lines():
        try:
            if not chat.answer(line):
                return
        except LeanLMError as error:
            print(f"error: {error}", file=sys.stderr)


def lines() -> Iterator[str]:
    """Lines of stdin that are not blank; asked for by a prompt on a terminal."""
    if not sys.stdin.isatty():
        yield from filter(None, (line.strip() for line in sys.stdin))
        return
    import readline  # noqa: F401 (gives input() line editing)

    print(HELP, file=sys.stderr)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line:
            yield line


class Chat:
    """A conversation: questions go through the chat template, answers to stdout."""

    def __init__(self, model, command: Command, sampling):
        from leanlm.generate.session import Session

        self.model, self.sampling, self.genlen, self.system = model, sampling, command.genlen, command.system
        self.file = command.session
        self.session = Session.load(model, self.file) if self.file and self.file.exists() else Session(model, command.seed)

    def answer(self, line: str) -> bool:
        """Answer a question or obey a command; False when the talk is over."""
        word, _, rest = line.partition(" ")
        match word:
            case "/quit" | "/exit":
                return False
            case "/rewind":
                self.rewind(rest)
            case "/fork":
                self.file = self.named(rest, "/fork")
                self.session.save(self.file)
            case "/save":
                self.session.save(self.named(rest or self.file, "/save"))
            case _ if word.startswith("/"):
                raise UsageError(f"{word}: no such command; {HELP}")
            case _:
                self.say(line)
        return True

    def rewind(self, turns: str) -> None:
        if not (turns or "1").isdecimal() or int(turns or 1) < 1:
            raise UsageError(f"/rewind {turns}: give the number of questions to unsay")
        self.session.rewind(-int(turns or 1))
        self.save()

    def named(self, file, command: str) -> Path:
        if not file:
            raise UsageError(f"{command}: name a file")
        return Path(file).expanduser()

    def say(self, question: str) -> None:
        text = self.turn(question)
        try:
            pieces = self.session.generate(text, self.genlen, stream=True, add_special=False, sampling=self.sampling)
            for piece in pieces:
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
        print(flush=True)
        self.save()

    def save(self) -> None:
        if self.file:
            self.session.save(self.file)

    def turn(self, question: str) -> str:
        """The question as the template writes it, from the end of the last answer to the beginning of the next.

        A template renders whole conversations; the part between two turns is found by rendering one with a stand-in for
        what was said before, so that nothing read already is written again.
        """
        template = self.model.tokenizer.apply_chat
        asked = [{"role": "user", "content": question}]
        if not self.session.turns:
            system = [{"role": "system", "content": self.system}] if self.system else []
            return template(system + asked)
        before = [{"role": "user", "content": "Q"}]
        head = template(before)
        whole = template([*before, {"role": "assistant", "content": "A"}, *asked])
        if not whole.startswith(head) or not whole[len(head) :].lstrip().startswith("A"):
            raise UsageError("the chat template rewrites earlier turns, so this conversation cannot go on; begin a new one")
        between = whole[len(head) :].lstrip()[1:]
        if self.session.finish == "eos":  # the end token was said already
            between = between.removeprefix(self.model.tokenizer.decode(self.session.tokens[-1:], skip_special=False))
        return between
