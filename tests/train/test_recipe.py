"""Recipes: strict, overridable, and stored as they were run."""

import pytest

from leanlm.errors import NotFound, UsageError
from leanlm.train import recipe


@pytest.mark.parametrize("name", recipe.shipped())
def test_shipped_recipes_survive_being_stored(name, tmp_path):
    for size in recipe.sizes(recipe.path_of(name)) or ("",):
        read = recipe.read(recipe.path_of(name), size=size)
        recipe.write(read, tmp_path / "copy.toml")
        assert recipe.read(tmp_path / "copy.toml") == read


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule.setps=3", "did you mean 'steps'"),
        ("schedule.steps=many", "schedule.steps: expected int"),
        ("schedule.steps=0", "at least 1"),
        ("schedule.shape=square", "none of .linear."),
        ("schedule", "section.key=value"),
        ("name.x=1", "not a section"),
        ("data.vocab_size=10", "need 257"),
        ("optimiser.lr=-1.0", "above 0"),
        ("optimiser.betas=[0.9]", "two numbers"),
        ("schedule.warmup=-5", "0 or more"),
        ("seed=99999999999999999999", r"2\^63"),
        ("threads=-1", "0 "),
        ("schedule.tokens=5", "steps or schedule.tokens"),
        ("schedule.micro=4", "from 0 .all. to schedule.batch, 3"),
        ("schedule.batch=0", "at least 1"),
        ("schedule.shape=wsd", "needs a cooldown"),
        ("schedule.cooldown=0.1", "belongs to the shapes"),
        ("schedule.changes=[{at = 0.5}, {at = 0.2}]", "come by at"),
        ("schedule.changes=[{at = 0.5, lrr = 1e-3}]", "did you mean 'lr'"),
        ("compute.dtype=bf16", "none of .float32."),
        ("compute.checkpoint_blocks=1.5", "fraction from 0 to 1"),
        ("optimiser.z_loss=-1", "0 .none. or more"),
        ("model.from=rene", "not both"),
        ('data.sources={"a/b" = 1}', "one of sources, source and chat"),
        ("data.held=x", "not both"),
        ('name="a\\nb"', "fit for a folder"),
        ('name="../../x"', "fit for a folder"),
        ('name="my run"', "fit for a folder"),
        ("schedule.changes=[{at = 0.5, lr = -1.0}]", "lr above 0"),
        ("schedule.changes=[{at = 0.5}]", "lr above 0"),
        ("keep.validate_bytes=0", "at least 1"),
        ("model.init_std=nan", "above 0"),
        ("optimiser.lr=inf", "above 0"),
        ("optimiser.weight_decay=inf", "0 or more"),
        ("threads=99999", "to 1024"),
    ],
)
def test_mistakes_name_the_path(override, message):
    with pytest.raises(UsageError, match=message):
        recipe.read(recipe.path_of("builtin"), (override,))


def test_overrides():
    read = recipe.read(recipe.path_of("builtin"), ("schedule.steps=7", "optimiser.lr=1e-4", "name=other"))
    assert (read.schedule.steps, read.optimiser.lr, read.name) == (7, 1e-4, "other")


def test_unknown_recipes_and_broken_files(tmp_path):
    with pytest.raises(NotFound, match="builtin"):
        recipe.path_of("bultin")
    (tmp_path / "x.toml").write_text("name = ")
    with pytest.raises(UsageError, match="not TOML"):
        recipe.read(tmp_path / "x.toml")


def test_one_held_out_name_is_a_list_or_a_document(tmp_path):
    """A list lies beside the recipe; a document that ends in .txt too may be held out alone, wherever it lies."""

    def held_out(source: str, name: str) -> tuple[str, ...]:
        return recipe.read(recipe_file, (f'data.source="{tmp_path / source}"', f'data.held_out=["{name}"]')).data.held_out

    recipe_file = tmp_path / "mine.toml"
    recipe_file.write_bytes(recipe.path_of("builtin").read_bytes())
    for name, text in (("names.txt", "a.txt\nb.txt\n"), ("poems/ode.txt", "O wind"), ("poems/names.txt", "Ada")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert held_out("poems", "names.txt") == ("a.txt", "b.txt")
    assert held_out("poems", "ode.txt") == ("ode.txt",)
    assert held_out(".", "names.txt") == ("names.txt",)  # lies beside the recipe, as a document of its source


SIZES = """
name = "family"
[model]
family = "hf_llama"
config = { hidden_size = 8 }
[data]
sources = { "shards/a b" = 0.5, "shards/c" = 2 }
length = 100
[optimiser]
lr = 1.0
[schedule]
tokens = 1_001
batch = 2
changes = [{ at = 0.5, lr = 0.5 }, { at = 0.667, weight_decay = 0.0 }]
[sizes.small]
"optimiser.lr" = 0.25
[sizes.large]
"model.config.hidden_size" = 16
"schedule.batch" = 4
"""


def test_a_recipe_of_several_sizes(tmp_path):
    path = tmp_path / "family.toml"
    path.write_text(SIZES)
    small, large = (recipe.read(path, size=size) for size in recipe.sizes(path))
    assert (small.name, small.optimiser.lr, small.model.config, small.steps) == ("family-small", 0.25, {"hidden_size": 8}, 6)
    assert (large.name, large.optimiser.lr, large.model.config, large.steps) == ("family-large", 1.0, {"hidden_size": 16}, 3)
    assert recipe.read(path, ("optimiser.lr=7.0",), "small").optimiser.lr == 7.0
    recipe.write(small, tmp_path / "copy.toml")
    assert recipe.read(tmp_path / "copy.toml") == small
    with pytest.raises(UsageError, match="did you mean small"):
        recipe.read(path, size="smal")
    with pytest.raises(UsageError, match=r"choose a size \(small, large\)"):
        recipe.read(path)
    with pytest.raises(UsageError, match="no size"):
        recipe.read(recipe.path_of("builtin"), size="small")


def test_a_model_to_train_on(tmp_path):
    path = tmp_path / "more.toml"
    path.write_text(SIZES.replace('family = "hf_llama"\nconfig = { hidden_size = 8 }', 'from = "rene"').split("[sizes")[0])
    more = recipe.read(path)
    assert more.model.from_ == "rene" and not more.model.family
    recipe.write(more, tmp_path / "copy.toml")
    assert 'from = "rene"' in (tmp_path / "copy.toml").read_text() and recipe.read(tmp_path / "copy.toml") == more
