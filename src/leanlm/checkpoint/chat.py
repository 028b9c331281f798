"""Conversations as text, by the template a model was published with."""

import datetime
from collections.abc import Sequence

import jinja2
import jinja2.ext
import jinja2.sandbox

from leanlm.checkpoint.tokenizer import Tokenizer
from leanlm.errors import CheckpointError, UsageError


def render(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """The text of a conversation of {"role", "content"} messages, ready to be encoded, as transformers renders it.

    Raises UsageError where the tokenizer has no template, CheckpointError where the template refuses or is broken.
    Templates run in jinja2's sandbox.
    """
    if not tokenizer.chat_template:
        raise UsageError("this model's tokenizer has no chat template; use generate, or a model made for chat")

    def refuse(message: str):
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.datetime.now().strftime(form),
    }
    try:
        template = environment.from_string(tokenizer.chat_template)
        return template.render(messages=list(messages), add_generation_prompt=add_generation_prompt, **tokenizer.special)
    except jinja2.TemplateError as error:
        raise CheckpointError(f"the chat template failed: {error}") from None
