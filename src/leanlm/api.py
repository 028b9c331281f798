"""The public face: `load` a model by folder or name, then call, trace, generate and save it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from leanlm import families
from leanlm.checkpoint import locate, state_file
from leanlm.checkpoint import tokenizer as tokenizers
from leanlm.checkpoint.load import SENSITIVE, load_module
from leanlm.checkpoint.save import save_module
from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.errors import UsageError, first_line
from leanlm.families import catalog
from leanlm.generate import engine
from leanlm.generate.engine import Generation, Row
from leanlm.generate.prompt import Prompt
from leanlm.generate.sampling import Sampling
from leanlm.generate.stopping import TextStream, stop_strings
from leanlm.generate.vocabulary import Vocabulary
from leanlm.model.config import ModelConfig
from leanlm.model.language_model import LanguageModel
from leanlm.model.packed import Packed
from leanlm.model.state import State

DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}


def load(
    path_or_name: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    tokenizer: Tokenizer | str | Path | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> "Model":
    """The model in a checkpoint folder, or of a short name, or of a hub id (downloaded unless `offline`).

    `dtype` None or "auto" keeps the dtypes of the file. `tokenizer` is one, or the folder, file or hub id of one; by default
    that of the folder or of the model's repository, and None where there is none. Raises NotFound,
    CheckpointError, or UsageError for a dtype or device that cannot be.
    """
    dtype, device = as_dtype(dtype), as_device(device)
    folder = locate.resolve(path_or_name, revision, offline)
    if tokenizer is not None:
        tokenizer = find_tokenizer(tokenizer, offline)
    loaded = load_module(folder, dtype, device)
    if tokenizer is None:
        tokenizer = tokenizers.find(folder, catalog.resolve(str(path_or_name)), offline)
    return Model(loaded.module, loaded.family.name, tokenizer, loaded.raw)


def find_tokenizer(given: Tokenizer | str | Path, offline: bool = False) -> Tokenizer:
    """A tokenizer given by hand: itself, its folder or file, or the hub id of its repository."""
    if not isinstance(given, str | Path):
        return given
    if Path(given).exists() or not locate.HUB_ID.fullmatch(str(given)):
        return Tokenizer.from_file(given)
    from leanlm.checkpoint import hub  # loaded only where something may be downloaded

    return Tokenizer.from_folder(hub.download(str(given), needs=tokenizers.MAIN, offline=offline))


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating-point dtype from itself or its name; None for None and "auto". Raises UsageError."""
    if dtype is None or dtype == "auto":
        return None
    found = DTYPES.get(dtype, dtype)
    if found not in DTYPES.values():
        raise UsageError(f"dtype {str(dtype)!r}: choose {', '.join(DTYPES)} or auto")
    return found


def as_state_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """`as_dtype`, or int8: what recurrent memories, and keys and values, may be held in."""
    return torch.int8 if dtype in ("int8", torch.int8) else as_dtype(dtype)


def as_device(device: torch.device | str) -> torch.device:
    """A device of this machine; "auto" is a GPU if there is one. Raises UsageError for one it has not."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        if found.type == "meta":
            raise RuntimeError("meta holds no numbers")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise UsageError(f"device {str(device)!r} cannot be used on this machine ({reason}); try cpu") from None
    return found


class Model:
    """A model ready to use: `module` (the nn.Module), `config`, `family` (its name), and `tokenizer` or None.

    Calling it keeps gradients, for training; `trace` and `generate` do not.
    """

    def __init__(self, module: LanguageModel, family: str, tokenizer: Tokenizer | None = None, raw: dict | None = None):
        """`raw` is the config.json the module came from, kept for saving; `family` the format that `save` writes."""
        self.module, self.family, self.tokenizer, self.raw = module.eval(), family, tokenizer, raw

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"Model({self.family}, {self.n_parameters:,} parameters, {dtype}, {self.device})"

    @property
    def config(self) -> ModelConfig:
        return self.module.config

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def dtype(self) -> torch.dtype:
        return self.module.dtype

    @property
    def n_parameters(self) -> int:
        return sum(weight.numel() for weight in self.module.weights().values())

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.of(self.config, self.tokenizer)

    def __call__(self, input_ids: Tensor | Sequence[Sequence[int]], state: State | None = None) -> Tensor:
        """Logits [B, L, V] for ids [B, L], padded rows of the vocabulary included; continues and updates `state` in place.

        Raises UsageError for ids the model does not know, CapacityError where full attention overruns the state.
        """
        ids = self._check(input_ids)
        if state is not None and state.batch != len(ids):
            raise UsageError(f"the state holds {state.batch} texts and input_ids has {len(ids)} rows: they must be as many")
        return self.module(ids, state)

    @torch.no_grad()
    def trace(self, input_ids: Tensor | Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Everything along the way, for ids [B, L]: the residual stream [B, L, D] after the embedding as "hidden.0", after
        layer i as "hidden.i", after the final norm as "hidden.final", and "logits" [B, L, V]."""
        *streams, final = self.module.streams(self._check(input_ids))
        hidden = {f"hidden.{i}": stream for i, stream in enumerate(streams)}
        return {**hidden, "hidden.final": final, "logits": self.module.logits(final)}

    def new_state(
        self,
        batch: int = 1,
        capacity: int | None = None,
        dtype: torch.dtype | str | None = None,
        cache_dtype: torch.dtype | str | None = None,
    ) -> State:
        """An empty state for `batch` texts. `capacity` is the tokens that full attention can remember (default: the model's
        context length); dtypes as `keep_states` takes them (default: what it was told; `dtype` alone is that of both)."""
        if batch < 1 or (capacity is not None and capacity < 1):
            raise UsageError(f"a state of batch {batch} and capacity {capacity}: both must be at least 1")
        return self.module.new_state(batch, capacity, as_state_dtype(dtype), as_state_dtype(cache_dtype))

    def keep_states(self, dtype: torch.dtype | str | None = None, cache_dtype: torch.dtype | str | None = None) -> "Model":
        """Hold new states, those of `generate` and of sessions too, in these dtypes; returns the model.

        `dtype` is that of recurrent memories (None: float32), `cache_dtype` that of keys and values (None: the model's): a
        float's, or int8 with a float32 scale per row of a recurrent memory, per token and head of keys and values. Recurrent
        memories in less than float32 are rounded after every call, so what is read in other pieces is rounded elsewhere.
        Raises UsageError for other dtypes.
        """
        self.module.state_dtype, self.module.cache_dtype = as_state_dtype(dtype), as_state_dtype(cache_dtype)
        return self

    def generate(
        self,
        prompt: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        *,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        stream: Callable[[str | list[int]], None] | bool | None = None,
        echo: bool = False,
        **options,
    ) -> str | list | Tensor | Iterator[str] | Iterator[list[int]]:
        """Continue `prompt`: text, a list of texts, token ids, a list of them, or a tensor [L] or [B, L].

        Text in gives the new text out (with `echo` the prompt before it), ids in give prompt and new ids out, in the form
        they came in; rows of a tensor that end early are padded. max_new_tokens (default 100) counts new tokens, max_length
        those of the prompt too. The filters are those of `Sampling`; greedy if none of them asks for more. Row r draws from
        seed + r (default: torch's random state). `stop` ends a row, and is not part of its text. `stream` is called with
        each piece of new text (lists of ids where there is no tokenizer) as it comes; stream=True returns an iterator of the
        pieces instead. `options`: compat, sampling (instead of the filters), eos_ids (tokens that end a row, as its last;
        default the model's, () for none), add_special (False keeps the tokenizer from adding tokens).
        """
        filters = {"do_sample": do_sample, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        options |= {"repetition_penalty": repetition_penalty, "seed": seed, "stop": stop, **filters}
        options |= {"max_new_tokens": max_new_tokens, "max_length": max_length}
        asked, generation = self._prepare(prompt, streaming=bool(stream), **options)
        if stream is True:
            return iter(generation)
        if stream:
            for piece in generation:
                stream(piece)
        else:
            generation.finish()
        return asked.answer(generation.rows, self.vocabulary.pad_id, echo)

    def generation(self, prompt, **options) -> Generation:
        """The run that `generate` makes of the same arguments (without stream and echo), not yet begun: iterate for the
        pieces of one prompt, or call `finish`; then it tells rows, seconds and state bytes."""
        return self._prepare(prompt, streaming=True, **options)[1]

    def _prepare(
        self,
        prompt,
        *,
        streaming: bool,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        eos_ids: Sequence[int] | None = None,
        add_special: bool = True,
        sampling: Sampling | None = None,
        **filters,
    ) -> tuple[Prompt, Generation]:
        sampling, stops, vocabulary = Sampling.given(sampling, filters), stop_strings(stop), self.vocabulary
        if stops and self.tokenizer is None:
            raise UsageError("stop strings need a tokenizer, and this model has none")
        asked = Prompt.of(prompt, vocabulary, self.tokenizer, add_special)
        at_least = 1 if sampling.stop_together else 0
        limits = engine.new_token_limits([len(row) for row in asked.rows], max_new_tokens, max_length, at_least)
        told = self.tokenizer is not None and (streaming or bool(stops) or asked.texts is not None)
        rows = [
            Row(ids, limit, generator, ids, TextStream(self.tokenizer.decode, ids, stops) if told else None)
            for ids, limit, generator in zip(asked.rows, limits, engine.seeded(seed, len(limits)))
        ]
        return asked, Generation(self.module, rows, sampling, vocabulary.ending(eos_ids))

    def save(self, folder: str | Path, container: str | None = None) -> None:
        """Write the model, with its tokenizer, into `folder` in its family's published layout.

        `container` is the format of packed weights, "compressed-tensors", "gptq" or "leanlm"; by default the one they came
        in, or else the first of compressed-tensors and leanlm that holds them exactly.
        """
        save_module(folder, self.module, families.get(self.family), self.raw, self.tokenizer, container=container)

    def save_state(self, state: State, file: str | Path) -> None:
        """Write `state` into one file that belongs to this model."""
        state_file.write(file, self.module, state)

    def load_state(self, file: str | Path) -> State:
        """The state in `file`; raises CheckpointError, with the reason, where it is of another model."""
        return state_file.read(file, self.module).state

    def to(self, *targets: torch.device | torch.dtype | str, device=None, dtype=None) -> "Model":
        """Move to a device and cast to a dtype, in place; returns self. What scans are sensitive to is never narrowed."""
        for target in (*targets, *(t for t in (device, dtype) if t is not None)):
            if isinstance(target, torch.dtype) or target in DTYPES:
                cast(self.module, as_dtype(target))
            else:
                self.module.to(as_device(target))
        return self

    def half(self) -> "Model":
        return self.to(torch.float16)

    def float(self) -> "Model":
        return self.to(torch.float32)

    def cuda(self, index: int | None = None) -> "Model":
        return self.to("cuda" if index is None else f"cuda:{index}")

    def cpu(self) -> "Model":
        return self.to("cpu")

    def eval(self) -> "Model":
        self.module.eval()
        return self

    def _check(self, input_ids: Tensor | Sequence[Sequence[int]]) -> Tensor:
        """ids [B, L] int64 on the model's device; raises UsageError for what is no batch of ids it knows."""
        try:
            ids = torch.as_tensor(input_ids, device=self.device)
        except (TypeError, ValueError) as error:
            raise UsageError(f"input_ids must be whole numbers [batch, length] ({error})") from None
        if ids.ndim != 2 or not ids.numel() or ids.is_floating_point() or ids.dtype == torch.bool:
            what = f"{str(ids.dtype).removeprefix('torch.')} of shape {list(ids.shape)}"
            raise UsageError(f"input_ids must be whole numbers [batch, length], at least one each; got {what}")
        low, high = map(int, ids.aminmax())
        if low < 0 or high >= self.config.vocab_size:
            bad = low if low < 0 else high
            raise UsageError(f"token {bad} in input_ids: this model knows ids 0 to {self.config.vocab_size - 1}")
        return ids.long()


def cast(module: LanguageModel, dtype: torch.dtype) -> None:
    """In place: every parameter in `dtype`, but decays and skips of the scans not in less than they have. What is packed
    stays as it is, and gives its values in `dtype`."""
    for name, weight in module.weights().items():
        narrows = torch.promote_types(weight.dtype, dtype) != dtype
        if isinstance(weight, Packed):
            weight.dtype = dtype
        elif not (narrows and name.rpartition(".")[2] in SENSITIVE):
            weight.data = weight.data.to(dtype)
