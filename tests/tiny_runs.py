"""A training run of seconds: a hybrid of every kind of layer on a few made-up functions."""

from pathlib import Path

from leanlm.train import recipe as recipes
from leanlm.train.recipe import Recipe

TOML = """
name = "tiny"
[model]
family = "rene"
[model.config]
d_model = 32
n_layer = 3
vocab_size = 300
eos_token_id = 0
mlp_layer_idx = [1]
attn_layer_idx = [2]
ssm_cfg = { d_state = 8, headdim = 16 }
mlp_cfg = { expand = 2, bias = false }
attn_cfg = { num_heads = 2, head_dim = 16, sliding_window_length = 8 }
[data]
source = "SOURCE"
held_out = ["held.py"]
vocab_size = 300
length = 24
[optimiser]
lr = 1e-2
[schedule]
steps = 12
batch = 4
warmup = 2
[keep]
checkpoint = 5
validate = 6
"""


def file(folder: Path) -> Path:
    """The recipe's file, with its text beside it."""
    text = folder / "text"
    text.mkdir(parents=True, exist_ok=True)
    for i in range(6):
        (text / f"f{i}.py").write_text("".join(f"def f{i}_{j}(x):\n    return x + {i * j}\n" for j in range(25)))
    (text / "held.py").write_text("def g(x):\n    return x + 3\n" * 5)
    path = folder / "tiny.toml"
    path.write_text(TOML.replace("SOURCE", str(text)))
    return path


def recipe(folder: Path, *settings: str) -> Recipe:
    return recipes.read(file(folder), settings)
