"""Conversations whose answers are learned: JSON lines through the tokenizer's chat template, whole ones packed into windows.

Row p of a run is a function of p alone, as in `batches`: conversations are packed once, and in every epoch their windows come
in the order of another keyed permutation.
"""

import bisect
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.data import corpus
from leanlm.data.batches import IGNORED, Batch
from leanlm.data.order import permuted
from leanlm.errors import UsageError

ANSWERS = "assistant"  # whose messages are learned


@dataclass(frozen=True)
class Conversation:
    """`ids` int64 [n], and `learned` bool [n]: which of them belong to an answer."""

    ids: np.ndarray
    learned: np.ndarray


def read(path: Path, tokenizer: Tokenizer) -> Iterator[Conversation]:
    """The conversations of a file of JSON lines (plain, gzip or zstd), one of these to a line:

        {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}
        {"prompt": "...", "response": "..."}

    Raises UsageError naming the line that is not one, or that the tokenizer's template cannot write.
    """
    with corpus.reading(path), corpus.opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _conversation(line, tokenizer, f"{path}: line {number}")


def _conversation(line: bytes, tokenizer: Tokenizer, where: str) -> Conversation:
    try:
        messages = _messages(json.loads(line))
        text, answers = _written(messages, tokenizer)
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{where}: holds half of a surrogate pair, which is no character") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({error})") from None
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    encoded = tokenizer.core.encode(text, add_special_tokens=False)
    ids, (starts, ends) = np.array(encoded.ids, np.int64), np.array(encoded.offsets, np.int64).reshape(-1, 2).T
    learned = np.zeros(len(ids), bool)
    for start, end in answers:  # a token that begins in the prompt is the prompt's; one of white space may have no extent
        learned |= (start <= starts) & (start < ends) & (ends <= end)
    said = answers[-1][0] + max(0, text[answers[-1][0] :].rfind(messages[-1]["content"].strip())) if answers else 0
    after = said + len(messages[-1]["content"].strip())  # of the last answer: what the template adds
    if messages[-1]["role"] == ANSWERS and not np.isin(ids[starts >= after], tokenizer.eos_ids).any():
        ids, learned = np.append(ids, _end(tokenizer)), np.append(learned, True)  # a template that never ends an answer
    return Conversation(ids, learned)


def _messages(record) -> list[dict]:
    """The messages of a line's record; raises UsageError saying what is missing."""
    if not isinstance(record, dict):
        raise UsageError(f"is a {type(record).__name__}, not an object with 'messages', or 'prompt' and 'response'")
    if "messages" not in record and {"prompt", "response"} <= record.keys():
        said = (("user", record["prompt"]), (ANSWERS, record["response"]))
        record = {"messages": [{"role": role, "content": content} for role, content in said]}
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise UsageError(
            f"neither 'messages', a list that is not empty, nor 'prompt' and 'response' (found: {', '.join(record)})"
        )
    for place, message in enumerate(messages, 1):
        for key in ("role", "content"):
            if not isinstance(message, dict) or not isinstance(message.get(key), str):
                raise UsageError(f"message {place} has no text as its {key!r}")
        if message["role"] == ANSWERS and not message["content"].strip():
            raise UsageError(f"message {place}, an answer, is empty")
    if not any(message["role"] == ANSWERS for message in messages):
        raise UsageError(f"no message of the role {ANSWERS!r}, so there is nothing to learn")
    return messages


def _written(messages: Sequence[dict], tokenizer: Tokenizer) -> tuple[str, list[tuple[int, int]]]:
    """The conversation as the template writes it, and where in it the answers stand: each from the end of its prompt on."""
    text, answers = tokenizer.apply_chat(messages, add_generation_prompt=False), []
    for place, message in enumerate(messages):
        if message["role"] == ANSWERS:
            prompt = tokenizer.apply_chat(messages[:place])
            answered = tokenizer.apply_chat(messages[: place + 1], add_generation_prompt=False)
            if not (answered.startswith(prompt) and text.startswith(answered)):
                raise UsageError(
                    f"the chat template writes message {place + 1} in another way when the conversation goes on or is asked "
                    "for it; make every answer the last message of a line of its own"
                )
            answers.append((len(prompt), len(answered)))
    return text, answers


def _end(tokenizer: Tokenizer) -> int:
    if not tokenizer.eos_ids:
        raise UsageError("neither the chat template nor the tokenizer has a token that ends an answer")
    return tokenizer.eos_id if tokenizer.eos_id is not None else tokenizer.eos_ids[0]


class Chats:
    """Windows of `length` tokens of whole conversations, each a segment of its own.

    A conversation that is longer is cut at the end of its window, and left out where that leaves no answer; `notes` says how
    many were. Raises UsageError where none remains.
    """

    def __init__(self, conversations: Sequence[Conversation], length: int, end_of_text: int, seed: int):
        self.length, self.seed, self.end_of_text = length, seed, end_of_text
        cut = [Conversation(c.ids[: length + 1], c.learned[: length + 1]) for c in conversations]
        self.conversations = [c for c in cut if c.learned[1:].any()]
        if not self.conversations:
            raise UsageError(
                f"none of {len(cut)} conversations has an answer within {length} tokens; choose a larger data.length"
            )
        self._windows = _packed([len(c.ids) - 1 for c in self.conversations], length)
        self.count = len(self._windows)
        digest = hashlib.sha256(f"{length} {end_of_text} {seed}".encode())
        for conversation in self.conversations:
            digest.update(conversation.ids.tobytes() + b"/" + conversation.learned.tobytes())
        self.fingerprint = digest.hexdigest()
        longer, lost = sum(len(c.ids) > length + 1 for c in conversations), len(cut) - len(self.conversations)
        told = {f"{longer} conversations are cut after {length} tokens": longer, f"{lost} have no answer in them": lost}
        self.notes = tuple(note for note, count in told.items() if count)

    @property
    def vocab_size(self) -> int:
        """Every id is below it."""
        return max(self.end_of_text, *(int(c.ids.max()) for c in self.conversations)) + 1

    @classmethod
    def open(cls, path: Path, tokenizer: Tokenizer, length: int, seed: int) -> "Chats":
        """The conversations of a file; raises what `read` raises."""
        return cls(list(read(path, tokenizer)), length, _end(tokenizer), seed)

    def batch(self, position: int, size: int) -> Batch:
        """Windows number position .. position + size of the run."""
        tokens = np.full((size, self.length), self.end_of_text, np.int64)
        targets, marks = np.full_like(tokens, IGNORED), np.zeros_like(tokens)
        for row in range(size):
            epoch, place = divmod(position + row, self.count)
            window = permuted(np.array([place]), self.count, f"{self.seed}/{self.fingerprint}/{epoch}")[0]
            at = 0
            for number in self._windows[window]:
                told = self.conversations[number]
                end = at + len(told.ids) - 1
                tokens[row, at:end] = told.ids[:-1]
                targets[row, at:end] = np.where(told.learned[1:], told.ids[1:], IGNORED)
                marks[row, at] = 1
                at = end
        segments = torch.from_numpy(marks.cumsum(1)) if marks[:, 1:].any() else None
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets), segments)


def _packed(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Which items share each window: the longest first, each into the fullest window that still has room for it."""
    windows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, window), ordered
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        at = bisect.bisect_left(rooms, (sizes[item], 0))
        room, window = rooms.pop(at) if at < len(rooms) else (length, len(windows))
        if window == len(windows):
            windows.append([])
        windows[window].append(item)
        bisect.insort(rooms, (room - sizes[item], window))
    return windows
