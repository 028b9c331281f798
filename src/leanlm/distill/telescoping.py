"""Attention made to look at a telescoping cache: the model's own weights, to be fine-tuned from there.

Entries are read without norms, empty slots are masked and scores not capped, so up to the first merge the model computes what
it did. What is merged is weighed by `merge`: "self_score" and "l2" need no weights; those of "learned" begin at zero, which
makes an entry the plain mean of its tokens.
"""

import dataclasses
from collections.abc import Collection, Iterator

import torch

from leanlm.api import Model
from leanlm.errors import UsageError
from leanlm.model.config import Attention, Mixer, ModelConfig, Telescoping
from leanlm.model.language_model import LanguageModel
from leanlm.slots import Table

FAMILIES = {"fms_llama": "telescoping"}  # of a model so made, where it is another one


def telescoped(model: Model, table: Table, merge: str = "self_score", full: Collection[int] = ()) -> Model:
    """The model with a telescoping cache in every layer of attention but those in `full`; it shares the weights given.

    Raises UsageError where there is nothing to change or `full` names a layer without attention; saving it raises
    CheckpointError where its family cannot say what it is.
    """
    config = _config(model.config, table, merge, frozenset(full))
    with torch.device("meta"):
        module = LanguageModel(config)
    held = model.module.weights()
    new = {name: weight.shape for name, weight in module.weights().items() if name not in held}
    module.take({**held, **{n: torch.zeros(shape, dtype=model.dtype, device=model.device) for n, shape in new.items()}})
    return Model(module, FAMILIES.get(model.family, model.family), model.tokenizer)


def _config(config: ModelConfig, table: Table, merge: str, full: frozenset[int]) -> ModelConfig:
    with_attention = {i for i, layer in enumerate(config.layers) if any(isinstance(m, Attention) for m in layer)}
    if wrong := full - with_attention:
        raise UsageError(f"layer {min(wrong)} has no attention that could be kept; these have: {_listed(with_attention)}")
    if not with_attention - full:
        caches = sum(isinstance(mixer, Telescoping) for mixer in config.sublayers)
        why = f"; {caches} have one already" if caches else "; --full names them all" if full else ""
        raise UsageError(f"there is no layer of attention to give a telescoping cache{why}")
    settings = {"slots": table.size, "merges": table.merges, "merge": merge, "entry_norm": False, "mask_empty": True}

    def changed(layer: tuple[Mixer, ...]) -> Iterator[Mixer]:
        for mixer in layer:
            yield Telescoping.of(mixer, **settings) if isinstance(mixer, Attention) else mixer

    layers = tuple(layer if i in full else tuple(changed(layer)) for i, layer in enumerate(config.layers))
    return dataclasses.replace(config, layers=layers)


def _listed(layers: Collection[int]) -> str:
    return ", ".join(map(str, sorted(layers))) or "none"
