"""What a run reads: the rows it learns from, the text it is validated on, the tokenizer of both."""

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from leanlm.checkpoint.tokenizer import MAIN, SETTINGS, Tokenizer
from leanlm.data import sources
from leanlm.data.batches import Mixture, Windows
from leanlm.data.chat import Chats
from leanlm.data.shards import Shards
from leanlm.data.vocabulary import END_OF_TEXT, fingerprint, train_bpe
from leanlm.data.writer import write_shards
from leanlm.errors import UsageError
from leanlm.model.language_model import LanguageModel
from leanlm.train import recipe as recipes
from leanlm.train.origin import Origin
from leanlm.train.recipe import Recipe

Note = Callable[[str], None]


@dataclass(frozen=True)
class Material:
    """What a run reads. Without a tokenizer the finished model has none."""

    rows: Mixture | Chats
    held: Shards | None
    tokenizer: Tokenizer | None

    def check_fits(self, recipe: Recipe, module: LanguageModel) -> None:
        """Raises UsageError where the model has no embedding for some token."""
        needed = self.rows.vocab_size
        if needed > module.config.vocab_size:
            raise UsageError(
                f"{recipe.name}: the model has {module.config.vocab_size} tokens and the data {needed}; "
                "give the model as many, or tokenise the data with its tokenizer"
            )


def material(recipe: Recipe, folder: Path, origin: Origin, note: Note) -> Material:
    """The run's data; text is tokenised once and kept in the run's folder. A checkpoint's own tokenizer comes before others."""
    data = recipe.data
    if data.source:
        return _own_shards(recipe, folder, origin.tokenizer, note)
    if data.chat:
        return _chats(recipe, origin.tokenizer, note)
    rows = Mixture.open(data.sources, data.length, recipe.seed, data.damaged)
    for source in rows.sources:
        for reason in source.shards.skipped:
            note(f"left out: {reason}")
    tokenizer = origin.tokenizer or _tokenizer_of([source.shards for source in rows.sources])
    if tokenizer is not None:
        rows.check_tokenizer(fingerprint(tokenizer.core), tokenizer.vocab_size)
    return Material(rows, _held(recipe, tokenizer), tokenizer)


def shards(recipe: Recipe, folder: Path, origin: Origin, note: Note) -> tuple[Path, Path]:
    """The folders of shards to learn from and of held-out ones, made once in `folder` of the text that `recipe` reads; several
    runs may then read them. Raises CheckpointError where they are not as they were made."""
    if not (folder / "recipe.toml").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        material(recipe, folder, origin, note)
        recipes.write(recipe, folder / "recipe.toml")
    found = folder / "data", folder / "held"
    for made in filter(Path.is_dir, found):
        Shards(made, checksums=True)
    return found


def _chats(recipe: Recipe, tokenizer: Tokenizer | None, note: Note) -> Material:
    if tokenizer is None:
        raise UsageError(f"{recipe.name}: data.chat needs a model with a tokenizer and a chat template; give model.from")
    rows = Chats.open(Path(recipe.data.chat), tokenizer, recipe.data.length, recipe.seed)
    for text in (f"{len(rows.conversations)} conversations in {rows.count} windows", *rows.notes):
        note(text)
    return Material(rows, _held(recipe, tokenizer), tokenizer)


def _held(recipe: Recipe, tokenizer: Tokenizer | None) -> Shards | None:
    held = Shards(recipe.data.held, recipe.data.damaged) if recipe.data.held else None
    if held is not None and tokenizer is not None:
        held.check_tokenizer(fingerprint(tokenizer.core), tokenizer.vocab_size)
    return held


def _tokenizer_of(shards: list[Shards]) -> Tokenizer | None:
    """The first that lies beside any of the shards."""
    folders = (s.folder / "tokenizer" for s in shards)
    return next((Tokenizer.from_folder(folder) for folder in folders if (folder / MAIN).is_file()), None)


def _own_shards(recipe: Recipe, folder: Path, given: Tokenizer | None, note: Note) -> Material:
    """Tokenizer (`given`, or learned from the text) and shards of a run that reads text, made by it."""
    data, held = folder / "data", folder / "held"
    accepted = (folder / "recipe.toml").is_file()  # else what lies there is of a recipe that could not run
    if not (accepted and (folder / MAIN).is_file() and (data / "manifest.json").is_file()):
        learned, kept = _documents(recipe, note)
        shutil.rmtree(held, ignore_errors=True)
        tokenizer = given or _trained(recipe, [d.text for d in learned])
        if tokenizer.eos_id is None:
            raise UsageError(f"{recipe.model.from_}: its tokenizer has no token that ends a text; tokenise the data before")
        tokenizer.save(folder)
        encode = functools.partial(tokenizer.encode, add_special=False)
        for target, texts in ((held, kept), (data, learned)):
            if texts:
                meant = tokenizer.eos_id, tokenizer.vocab_size, fingerprint(tokenizer.core)
                write_shards(target, (d.text for d in texts), encode, *meant)
    tokenizer = Tokenizer.from_folder(folder)
    rows = Mixture([Windows(Shards(data, checksums=True), recipe.data.length, recipe.seed)])
    rows.check_tokenizer(fingerprint(tokenizer.core), tokenizer.vocab_size)
    return Material(rows, Shards(held, checksums=True) if held.is_dir() else None, tokenizer)


def _trained(recipe: Recipe, texts: list[str]) -> Tokenizer:
    """A tokenizer of the run's own, whose end-of-text token also begins texts."""
    roles = json.dumps({"eos_token": END_OF_TEXT, "bos_token": END_OF_TEXT}).encode()
    return Tokenizer(train_bpe(texts, recipe.data.vocab_size), {SETTINGS: roles})


def _documents(recipe: Recipe, note: Note) -> tuple[list[sources.Document], list[sources.Document]]:
    """Documents to learn from and held-out ones. Raises UsageError where none has a name that the recipe holds out."""
    data = recipe.data
    learned, kept = sources.split(sources.read(data.source, data.suffix), data.held_out)
    if absent := set(data.held_out) - {d.name for d in kept}:
        if not kept:
            raise UsageError(f"data.held_out: {data.source} has no document named {min(absent)!r}")
        note(f"{len(absent)} held-out names are not in this source: {min(absent)} ...")
    if not learned:
        raise UsageError(f"data.held_out: names every document of {data.source}; none is left to learn from")
    size = sum(len(d.text.encode()) for d in learned)
    note(f"reading {len(learned)} documents, {size / 1e6:.1f} MB")
    return learned, kept
