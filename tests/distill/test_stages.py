"""Stages as recipes of their own: what a stage changes, what is refused before anything runs, other teachers."""

import json

import pytest

from leanlm import families
from leanlm.distill import stages
from leanlm.distill import student as students
from leanlm.errors import UsageError
from leanlm.train import recipe as recipes
from leanlm.train import schedule
from tiny_distillations import student, student_file

LLAMBA = {  # Bick et al. 2025, tables 2: tokens of the stages in millions, rate of the last
    "1b": ((300, 2700, 5000), 5e-5),
    "3b": ((500, 4000, 5500), 5e-5),
    "8b": ((500, 5000, 6500), 1e-5),
}


def test_a_stage_changes_only_what_it_names(tmp_path):
    recipe = student(tmp_path, "t", "distill.stages.states={schedule={tokens=960}, optimiser={lr=0.5}, keep={validate=2}}")
    matrices, states, logits = stages.of(recipe)
    assert [s.folder for s in (matrices, states, logits)] == ["1-matrices", "2-states", "3-logits"]
    assert (states.recipe.schedule.tokens, states.recipe.schedule.steps, states.tokens) == (960, 0, 960)
    assert (states.recipe.optimiser.lr, states.recipe.keep.validate) == (0.5, 2)
    assert logits.recipe.schedule == recipe.schedule and logits.recipe.optimiser == recipe.optimiser
    assert logits.recipe.optimiser.lr == recipe.optimiser.lr and states.recipe.data == recipe.data
    assert [s.recipe.distill.compare for s in (matrices, states, logits)] == list(stages.COMPARED)
    assert len({s.recipe.seed for s in (matrices, states, logits)}) == 3


def test_a_stages_recipe_is_stored_and_read_back(tmp_path):
    for stage in stages.of(student(tmp_path, "t", "distill.temperature=2.0")):
        recipes.write(stage.recipe, tmp_path / "stored.toml")
        assert recipes.read(tmp_path / "stored.toml") == stage.recipe


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("distill.stages={}", "is empty"),
        ("distill.stages.logits=3", "a stage is a table"),
        ("distill.stages.logits={compare='weights'}", "none of matrices, states, logits"),
        ("distill.stages.other={}", "compare = 'other' is none of"),
        ("distill.stages.logits={scedule={steps=3}}", "not a section"),
        ("distill.stages.logits={schedule={stepz=3}}", "schedule.stepz: unknown setting; did you mean 'steps'"),
        ("distill.stages.logits={optimiser={lr=-1.0}}", "optimiser.lr must be above 0"),
        ("distill.temperature=0.0", "distill.temperature must be above 0"),
        ("distill.teecher='x'", "did you mean 'teacher'"),
        ("distill.stages.logits={model={init_std=0.1}}", "not a section"),
        ("distill.stages.logits={distill={compare='states'}}", "belongs beside distill"),
        ("distill.stages.logits={data={held_out=['other.py']}}", "data.held_out is cut once for all stages"),
        ("optimiser.z_loss=1e-4", "z_loss belongs to training on text"),
        ("distill.init='random'", "'published', 'attention'"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, setting, says):
    with pytest.raises(UsageError, match=says):
        stages.of(student(tmp_path, "t", setting))


def test_a_recipe_without_a_teacher_is_trained():
    with pytest.raises(UsageError, match="leanlm train trains it"):
        stages.of(recipes.read(recipes.path_of("rene-laptop")))


def test_a_student_is_made_of_its_teacher_alone(tmp_path):
    text = student_file(tmp_path, "t").read_text()
    begin, end = text.index("family ="), text.index("[distill]")
    (tmp_path / "from.toml").write_text(text[:begin] + 'from = "builtin-float"\n' + text[end:])
    with pytest.raises(UsageError, match=r"the student is made of the teacher; give \[model\] family and config"):
        stages.of(recipes.read(tmp_path / "from.toml"))


def test_another_teacher(teacher, tmp_path):
    """The same student where it fits; one of the teacher's shape where it does not; no stage has a teacher of its own left."""
    own = "distill.stages.logits={distill={teacher='other', top_k=4}}"
    recipe = student(tmp_path, "t", own)
    made = stages.taught_by(recipe, str(teacher))
    assert made.model == recipe.model
    assert {s.recipe.distill.teacher for s in stages.of(made)} == {str(teacher)} and stages.of(made)[
        2
    ].recipe.distill.top_k == 4
    small = student_file(tmp_path, "t").read_text().replace("n_layer = 2", "n_layer = 1")
    (tmp_path / "small.toml").write_text(small)
    derived = stages.taught_by(recipes.read(tmp_path / "small.toml"), str(teacher))
    config = families.get("llamba").to_config(derived.model.config)
    assert len(config.layers) == 2 and config.layers[0][0].d_state == 8
    assert json.loads(json.dumps(derived.model.config)) == derived.model.config


@pytest.mark.parametrize("size", LLAMBA)
def test_llambas_published_budgets(size):
    recipe = recipes.read(recipes.path_of("llamba"), (), size)
    assert recipe.model.config["tie_embeddings"] == (size != "8b")  # as Llama-3.2 1B and 3B, and Llama-3.1 8B
    made, (tokens, rate) = stages.of(recipe), LLAMBA[size]
    spent = [made[0].tokens, made[1].tokens, sum(stage.tokens for stage in made[2:])]
    assert spent == pytest.approx([1e6 * n for n in tokens], rel=2e-4) and recipe.schedule.tokens == 1e6 * sum(tokens)
    assert [s.recipe.schedule.batch for s in made] == [64, 128, 128, 128, 128]
    assert [s.recipe.optimiser.lr for s in made] == [1e-4, 1e-4, rate, rate, rate]
    for stage in made[:2]:
        assert schedule.rates(stage.recipe.schedule.warmup - 1, stage.recipe).lr == 1e-4
        assert stage.recipe.schedule.warmup == pytest.approx(0.1 * stage.recipe.steps, abs=1)
        assert schedule.rates(stage.recipe.steps, stage.recipe).lr == pytest.approx(1e-8)
    warmed = made[2].recipe.schedule.warmup * 128 * 2048
    decayed = made[-1].recipe.schedule.cooldown * made[-1].tokens
    assert [warmed, decayed] == pytest.approx([1e5 * tokens[2]] * 2, rel=1e-3)
    assert schedule.rates(made[-1].recipe.steps, made[-1].recipe).lr == pytest.approx(1e-8)
    teachers = [s.recipe.distill.teacher.removeprefix("meta-llama/Llama-3") for s in made]
    assert len(set(teachers[:3])) == 1 and teachers[3:] == [".1-70B-Instruct"] * 2
    assert made[-1].recipe.data.length == 4096 and made[3].recipe.data == made[0].recipe.data


def test_the_laptops_twin():
    recipe, taught = (recipes.read(recipes.path_of(name)) for name in ("llamba-laptop", "llamba-laptop-teacher"))
    assert recipe.data == taught.data and recipe.distill.teacher == f"runs/{taught.name}/model"
    made = stages.of(recipe)
    assert sum(s.tokens for s in made) == recipe.steps * recipe.schedule.batch * recipe.data.length
    ours, theirs = (families.get(r.model.family).to_config(r.model.config) for r in (recipe, taught))
    assert students.replaced(theirs, ours) == list(range(6)) and students.notes(theirs, ours) == []
