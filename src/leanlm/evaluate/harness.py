"""leanlm as a model of the lm-evaluation-harness, with all of its kinds of requests (pip install "leanlm[eval]")."""

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby

from leanlm import api, families
from leanlm.checkpoint import locate
from leanlm.checkpoint.folder import read_config
from leanlm.errors import LeanLMError, UsageError
from leanlm.evaluate import scoring
from leanlm.evaluate.scoring import Request

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import model_registry
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ModuleNotFoundError as error:
    MISSING = 'the harness is not installed: pip install -c constraints.txt ".[eval]"; leanlm eval --items and --text need none'
    raise UsageError(f"{MISSING} ({error})") from None

NAMES = ("leanlm", "rene_ssm", "llamba_ssm")  # the second and third as Cartesia's own wrapper has them
SERVED = ("hf", "hf-auto", "huggingface")  # by leanlm where it knows the family
# Settings of the harness's own models that mean nothing here, or are leanlm's anyway.
WITHOUT_EFFECT = {"trust_remote_code", "use_fast_tokenizer", "max_batch_size", "low_cpu_mem_usage", "parallelize", "backend"}
SETTINGS = {"pretrained", "tokenizer", "revision", "dtype", "max_length", "add_bos_token", "prefix_token_id"}  # of both
FIRST_GPU = "cuda:0"  # what the harness says where nobody says anything, without a GPU too
NEW_TOKENS = 256  # where a task gives no limit
GENERATED = 16  # texts that are generated together where nobody says how many


class HarnessModel(TemplateLM):
    """A model of leanlm. Its parameters are the harness's `model_args`: `pretrained` is a folder, a name of `leanlm list`, a
    hub id, or a loaded `Model`; `batch_size` "auto" (or "auto:N") is as many texts as memory allows. `max_length` cuts texts
    from the left, by default for models alone whose attention sees all tokens, at their context; others read all of it."""

    def __init__(
        self,
        pretrained: str | api.Model,
        tokenizer: str | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str = "auto",
        max_length: int | None = None,
        max_gen_toks: int = NEW_TOKENS,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        state_dtype: str | None = None,
        cache_dtype: str | None = None,
        **others,
    ):
        super().__init__()
        if unknown := sorted(others.keys() - WITHOUT_EFFECT):
            raise UsageError(f"model_args: {unknown[0]} is unknown to leanlm")
        if isinstance(pretrained, str):
            if device in (None, FIRST_GPU):
                device = "auto"
            settings = {"dtype": dtype, "device": device, "tokenizer": tokenizer, "revision": revision}
            pretrained = api.load(pretrained, **settings).keep_states(state_dtype, cache_dtype)
        if pretrained.tokenizer is None:
            raise UsageError("the harness gives texts, and this model has no tokenizer: add tokenizer=FILE to the model_args")
        self.model, self.tokenizer = pretrained, pretrained.tokenizer
        self.batch_size, self.add_bos, self.new_tokens = batch_size, add_bos_token, max_gen_toks
        self.rows = None if str(batch_size).startswith("auto") else int(batch_size)
        self.prefix = prefix_token_id
        config = pretrained.config
        self.max_length = max_length or (None if config.bounded else config.context_length)

    @property
    def device(self):
        return self.model.device

    @property
    def eot_token_id(self) -> int:
        found = [i for i in (self.tokenizer.eos_id, *self.model.config.eos_ids) if i is not None]
        if not found:
            raise UsageError("this model has no token that ends a text; add prefix_token_id=N to the model_args")
        return found[0]

    @property
    def prefix_token_id(self) -> int:
        """What comes before a text without context."""
        given = self.prefix if self.prefix is not None else self.tokenizer.bos_id
        return self.eot_token_id if given is None else given

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        add = add_special_tokens
        if add is None:
            add = self.add_bos if self.add_bos is not None else True
            prefix = self.tokenizer.decode([self.prefix_token_id], skip_special=False)
            add = add and not (prefix and string.startswith(prefix))
        return self.tokenizer.encode(string, add_special=add)

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_) -> list[tuple[float, bool]]:
        wanted = [self.cut(context or [self.prefix_token_id], continuation) for _, context, continuation in requests]
        found = [(0.0, True)] * len(wanted)
        for number, score in self.scored(wanted, "Running loglikelihood requests", disable_tqdm):
            found[number] = score.log_likelihood, score.greedy
            if requests[number][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[number][0], found[number])
        return found

    def cut(self, context: Sequence[int], continuation: Sequence[int]) -> Request:
        """The newest tokens that the model can read, one at least of the context."""
        if self.max_length is not None:
            continuation = continuation[-self.max_length :]
            context = context[-max(1, self.max_length + 1 - len(continuation)) :]
        return Request(tuple(context), tuple(continuation))

    def scored(self, wanted: Sequence[Request], what: str, quiet: bool) -> Iterator[tuple[int, scoring.Score]]:
        scores = scoring.score(self.model.module, wanted, self.rows)
        return iter(tqdm(scores, total=len(wanted), desc=what, disable=quiet or not sys.stderr.isatty()))

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Of whole texts: as one continuous state, or window by window where attention sees no more."""
        texts = [text for (text,) in (request.args for request in requests)]
        wanted, owner = [], []
        for number, text in enumerate(texts):
            for context, continuation in self.windows(self.tok_encode(text)):
                wanted.append(Request(tuple(context), tuple(continuation)))
                owner.append(number)
        totals = [0.0] * len(texts)
        for number, score in self.scored(wanted, "Running loglikelihood_rolling requests", disable_tqdm):
            totals[owner[number]] += score.log_likelihood
        for text, total in zip(texts, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def windows(self, ids: list[int]) -> Iterator[tuple[list[int], list[int]]]:
        if self.max_length is None:
            yield [self.prefix_token_id], ids
            return
        windows = get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=self.max_length, context_len=1)
        yield from map(make_disjoint_window, windows)

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        texts = [""] * len(requests)
        order = sorted(range(len(requests)), key=lambda n: (repr(requests[n].args[1]), len(requests[n].args[0])))
        quiet = disable_tqdm or not sys.stderr.isatty()
        with tqdm(total=len(order), desc="Running generate_until requests", disable=quiet) as bar:
            for _, same in groupby(order, key=lambda n: repr(requests[n].args[1])):
                numbers = list(same)
                for at in range(0, len(numbers), self.rows or GENERATED):
                    batch = numbers[at : at + (self.rows or GENERATED)]
                    settings = requests[batch[0]].args[1]
                    for n, text in zip(batch, self.generated([requests[n].args[0] for n in batch], settings)):
                        texts[n] = text
                        self.cache_hook.add_partial("generate_until", requests[n].args, text)
                    bar.update(len(batch))
        return texts

    def generated(self, contexts: Sequence[str], settings: dict) -> list[str]:
        """What follows texts; `until` ends a row while it is generated, and is cut off."""
        given = normalize_gen_kwargs(settings, self.new_tokens)
        stops = handle_stop_sequences(given.pop("until", None), self.tokenizer.decode([self.eot_token_id], skip_special=False))
        limit = given.pop("max_gen_toks")
        filters = {"top_k": None, "top_p": None, "min_p": None, "repetition_penalty": None}
        filters = {name: given.pop(name, default) for name, default in filters.items()}
        if given.pop("do_sample", False):
            filters["temperature"] = given.pop("temperature", 1.0)
        ids = [self.tok_encode(context) for context in contexts]
        if self.max_length is not None:
            ids = [row[-max(1, self.max_length - limit) :] for row in ids]
        stop = [one for one in stops if one]
        rows = self.model.generate(ids, max_new_tokens=limit, stop=stop, eos_ids=[self.eot_token_id], **filters)
        new = (self.tokenizer.decode(row[len(prompt) :]) for row, prompt in zip(rows, ids))
        return [postprocess_generated_text(text, stop, None) for text in new]

    @property
    def tokenizer_name(self) -> str:
        return f"leanlm-{self.model.family}-{self.tokenizer.vocab_size}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return "" if chat_template is False or self.tokenizer.chat_template is None else self.tokenizer.chat_template.source

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat(chat_history, add_generation_prompt)


class Served(TemplateLM):
    """`hf`: leanlm's model where it knows the family, otherwise the harness's own."""

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None):
        name, revision = str(arg_dict.get("pretrained", "")), arg_dict.get("revision")
        if arg_dict.keys() <= SETTINGS | WITHOUT_EFFECT and is_known(name, revision):
            return HarnessModel.create_from_arg_obj(arg_dict, additional_config)
        from lm_eval.models.huggingface import HFLM

        return HFLM.create_from_arg_obj(arg_dict, additional_config)


def is_known(pretrained: str, revision: str | None = None) -> bool:
    """Whether leanlm reads the model of this name or folder."""
    try:
        families.find(read_config(locate.resolve(pretrained, revision)))
    except (LeanLMError, OSError):
        return False
    return True


def register() -> None:
    """Make the harness know leanlm's models by their names."""
    import lm_eval.models  # noqa: F401 (it fills the registry, in which `hf` is replaced)

    for name in NAMES:
        model_registry._objs[name] = HarnessModel
    for name in SERVED:
        model_registry._objs[name] = Served
