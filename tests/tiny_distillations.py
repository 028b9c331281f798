"""A distillation of seconds: a tiny Llama trained a little on made-up functions, and recipes for its students."""

from pathlib import Path

import tiny_runs
from leanlm.train import recipe as recipes
from leanlm.train.loop import train
from leanlm.train.recipe import Recipe

COMMON = """
seed = 3
[data]
source = "SOURCE"
held_out = ["held.py"]
vocab_size = 300
length = 24
[optimiser]
lr = 1e-2
[schedule]
steps = 6
batch = 4
warmup = 1
[keep]
checkpoint = 4
validate = 6
"""
TEACHER = """
name = "teacher"
[model]
family = "hf_llama"
[model.config]
model_type = "llama"
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
vocab_size = 300
rms_norm_eps = 1e-5
max_position_embeddings = 24
tie_word_embeddings = true
bos_token_id = 0
eos_token_id = 0
"""
STUDENT = """
name = "student"
[model]
family = "llamba"
[model.config]
model_type = "llamba"
d_model = 32
n_layer = 2
vocab_size = 300
tie_embeddings = true
mlp_cfg = { intermediate_size = 48 }
ssm_cfg = { n_v_heads = 4, n_qk_heads = 4, d_state = 8, chunk_size = 16 }
eos_token_id = 0
bos_token_id = 0
[distill]
teacher = "TEACHER"
[distill.stages.matrices]
[distill.stages.states]
[distill.stages.logits]
"""


def recipe_file(folder: Path, text: str, name: str) -> Path:
    source = tiny_runs.file(folder).parent / "text"
    name_line, rest = text.strip().split("\n", 1)
    seed, sections = COMMON.strip().split("\n", 1)
    path = folder / f"{name}.toml"
    path.write_text(f"{name_line}\n{seed}\n{rest}\n{sections}\n".replace("SOURCE", str(source)))
    return path


def teacher(folder: Path) -> Path:
    """The folder of a trained teacher, with its tokenizer."""
    made = recipes.read(recipe_file(folder, TEACHER, "teacher"), ("schedule.steps=30", "keep.validate=30"))
    return train(made, folder / "teacher")


def student_file(folder: Path, taught_by: Path) -> Path:
    return recipe_file(folder, STUDENT.replace("TEACHER", str(taught_by)), "student")


def student(folder: Path, taught_by: Path, *settings: str) -> Recipe:
    return recipes.read(student_file(folder, taught_by), settings)
