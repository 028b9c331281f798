"""Chat templates: the jinja a published tokenizer brings, rendered in a sandbox with what transformers offers to it."""

import json
from datetime import datetime

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from leanlm.errors import CheckpointError, UsageError


class Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks the assistant's words for training; here it only shows them."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 wants a plain set)

    def parse(self, parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class Template:
    """A compiled chat template; `source` is its text."""

    def __init__(self, source: str):
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.source = source
        try:
            self._compiled = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise CheckpointError(f"chat template, line {error.lineno}: {error.message}") from None

    @classmethod
    def parse(cls, raw: str | list) -> "Template":
        """From the forms of tokenizer_config.json: a string, or a list of {"name", "template"}, of which "default" counts."""
        if isinstance(raw, str):
            return cls(raw)
        try:
            named = {item["name"]: item["template"] for item in raw}
            return cls(named.get("default") or next(iter(named.values())))
        except (TypeError, KeyError, StopIteration):
            raise CheckpointError("tokenizer_config.json: chat_template is neither text nor a list of templates") from None

    def render(self, **variables) -> str:
        """The text; raises UsageError where the template refuses the conversation."""
        try:
            return self._compiled.render(**variables)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise UsageError(f"the chat template refuses this conversation: {error}") from None


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(value, ensure_ascii: bool = False, indent=None, separators=None, sort_keys: bool = False) -> str:
    """jinja's own filter escapes for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
