"""Text from tokens as they come: whole characters only, and nothing that may yet turn out to be a stop string."""

from collections.abc import Callable, Sequence

from leanlm.errors import UsageError

BROKEN = "\ufffd"  # what decoders write for bytes that are no character, or not yet one
CONTEXT = 8  # tokens before the first new one that are tried as context


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """`stop` as a tuple. Raises UsageError for an empty stop string, which would stop everywhere."""
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    for each in stops:
        if not isinstance(each, str) or not each:
            raise UsageError(f"stop={each!r}: a stop string must be text of at least one character")
    return stops


class Decoder:
    """Decodes one token at a time, in the context of what came before; an unfinished character waits for its rest.

    Only the tokens since the last finished character are decoded again with each new one. `decode` turns a list of token
    ids into text.
    """

    def __init__(self, decode: Callable[[list[int]], str], before: Sequence[int] = ()):
        self.decode = decode
        self.window = self._clean_end(before)
        self.known = len(self.window)  # tokens of the window whose text has been returned
        self.text = decode(self.window) if self.window else ""

    def push(self, token: int) -> str:
        """The text that `token` completes, perhaps none."""
        self.window.append(token)
        text = self.decode(self.window)
        whole = text.rstrip(BROKEN)
        if len(whole) == len(text) and not whole.startswith(self.text):
            # Byte fallback gives up on a whole run of bytes: what was returned stands, and the rest is decoded alone.
            piece = self.decode(self.window[self.known :])
        elif whole.startswith(self.text):
            piece = whole[len(self.text) :]
        else:
            piece = ""
        if piece and len(whole) == len(text):
            self.window = self.window[self.known :]
            self.known, self.text = len(self.window), self.decode(self.window)
        elif piece:
            self.text = whole
        return piece

    def flush(self) -> str:
        """What is left of an unfinished character, as the decoder writes it."""
        text = self.decode(self.window) if self.known < len(self.window) else self.text
        rest = text[len(self.text) :] if text.startswith(self.text) else self.decode(self.window[self.known :])
        self.known, self.text = len(self.window), text
        return rest

    def _clean_end(self, before: Sequence[int]) -> list[int]:
        """The shortest end of `before` whose text begins and ends with whole characters; empty if there is none."""
        for n in range(1, min(CONTEXT, len(before)) + 1):
            text = self.decode(list(before[-n:]))
            if text and not text.startswith(BROKEN) and not text.endswith(BROKEN):
                return list(before[-n:])
        return []


class TextStream:
    """The text of the tokens pushed, in pieces that stay true: joined, they are the text up to the first stop string.

    `before`: the tokens of the prompt, for context. `after` and `told` continue an earlier stream: its tokens, and how many
    characters of their text it had returned. `stopped` turns True with the token that completes a stop string; `told` then
    counts everything up to and including that token.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        before: Sequence[int] = (),
        stops: Sequence[str] = (),
        after: Sequence[int] = (),
        told: int = 0,
    ):
        self.decoder = Decoder(decode, before)
        self.stops = tuple(stops)
        self.held = "".join(self.decoder.push(token) for token in after)[told:]
        self.told = told
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that can be shown now that `token` has come."""
        self.held += self.decoder.push(token)
        found = [at for at in (self.held.find(stop) for stop in self.stops) if at >= 0]
        if found:
            self.stopped = True
            piece, rest = self.held[: min(found)], ""
            self.told += len(self.held)
        else:
            keep = self._maybe_stop()
            piece, rest = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
            self.told += len(piece)
        self.held = rest
        return piece

    def flush(self) -> str:
        """What was held back, when no token will follow; nothing after a stop string."""
        if self.stopped:
            return ""
        piece = self.held + self.decoder.flush()
        self.held = ""
        self.told += len(piece)
        return piece

    def _maybe_stop(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(map(len, self.stops), default=1) - 1
        for n in range(min(longest, len(self.held)), 0, -1):
            if any(stop.startswith(self.held[-n:]) for stop in self.stops):
                return n
        return 0
