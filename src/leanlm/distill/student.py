"""A student made of its teacher: which layers are replaced, what is transferred, how new mixers begin.

Bick et al. 2024 (MOHAWK, arXiv 2408.10189) and 2025 (Llamba, arXiv 2502.14458).
"""

import dataclasses

import torch
from torch import Tensor

from leanlm.errors import UsageError
from leanlm.model.config import Attention, DiscreteMamba2, Mamba2, Mixer, ModelConfig, Telescoping
from leanlm.model.language_model import LanguageModel, Sublayer
from leanlm.model.packed import Packed

Scan = DiscreteMamba2 | Mamba2
SIZES = ("d_model", "vocab_size")


def replaced(teacher: ModelConfig, student: ModelConfig) -> list[int]:
    """The layers whose attention, their first sublayer, the student has something else for.

    Raises UsageError unless teacher and student are alike but for those.
    """
    for name in SIZES:
        if getattr(teacher, name) != getattr(student, name):
            raise UsageError(f"the teacher has {name} = {getattr(teacher, name)}, the student {getattr(student, name)}")
    if len(teacher.layers) != len(student.layers):
        raise UsageError(f"the teacher has {len(teacher.layers)} layers, the student {len(student.layers)}")
    if teacher.head_bias != student.head_bias or (student.tied and not teacher.tied):
        raise UsageError("the teacher's head is no part of this student: make both tied or untied, and with a bias or without")
    changed = []
    for i, (theirs, ours) in enumerate(zip(teacher.layers, student.layers)):
        if theirs[1:] != ours[1:]:
            raise UsageError(f"layer {i}: the student's {_told(ours[1:])} is not the teacher's, {_told(theirs[1:])}")
        if theirs[0] != ours[0]:
            if not isinstance(theirs[0], Attention) or not isinstance(ours[0], Scan | Telescoping):
                raise UsageError(
                    f"layer {i}: attention is replaced by mamba2, discrete_mamba2 or telescoping, and kept as it is elsewhere; "
                    f"the teacher has {_told(theirs[:1])}, the student {_told(ours[:1])}"
                )
            changed.append(i)
    if not changed:
        raise UsageError("the student has the teacher's mixers in every layer; there is nothing to distil")
    return changed


def check_matrices(student: ModelConfig, changed: list[int]) -> None:
    """Raises UsageError where a new mixer has no matrix for every head."""
    new = [student.layers[i][0] for i in changed]
    if any(isinstance(mixer, Telescoping) for mixer in new):
        raise UsageError("a telescoping cache has the teacher's own projections, and no matrix to align: begin with states")
    if any(getattr(mixer, "d_per_channel", False) for mixer in new):
        raise UsageError("a mixer with a D for every channel is no matrix per head: make it one per head, or begin with states")


def check_projections(teacher: ModelConfig, student: ModelConfig, changed: list[int]) -> None:
    """Raises UsageError where a scan cannot take over the projections of the attention that it replaces."""
    for i in changed:
        theirs, ours = teacher.layers[i][0], student.layers[i][0]
        if isinstance(ours, Telescoping):
            continue
        groups = ours.n_qk_heads if isinstance(ours, DiscreteMamba2) else ours.n_groups
        wanted = {
            "heads": theirs.n_heads, "B and C": theirs.n_heads, "head width": theirs.head_dim, "d_state": theirs.head_dim
        }  # fmt: skip
        found = {"heads": heads(ours), "B and C": groups, "head width": ours.head_dim, "d_state": ours.d_state}
        if wrong := [name for name in wanted if wanted[name] != found[name]]:
            raise UsageError(
                f'distill.init = "attention": layer {i} would need {wrong[0]} = {wanted[wrong[0]]} and has {found[wrong[0]]}; '
                'give the student these sizes, or take "published"'
            )


def _told(mixers: tuple[Mixer, ...]) -> str:
    return ", ".join(f"{m.kind}({', '.join(f'{f.name}={getattr(m, f.name)}' for f in dataclasses.fields(m))})" for m in mixers)


def paired(teacher: int, student: int) -> list[int]:
    """For every head of the student the head of the teacher it is compared with: the same one where there are equally many,
    else floor(h teacher / student)."""
    return [h * teacher // student for h in range(student)]


def heads(mixer: Mixer) -> int:
    return mixer.n_v_heads if isinstance(mixer, DiscreteMamba2) else mixer.n_heads


def notes(teacher: ModelConfig, student: ModelConfig) -> list[str]:
    """What a person should know of how the two differ."""
    said = []
    for i in replaced(teacher, student)[:1]:
        theirs, ours = heads(teacher.layers[i][0]), heads(student.layers[i][0])
        if theirs != ours:
            said.append(
                f"{theirs} heads in the teacher, {ours} in the student: head h learns that of head floor(h {theirs}/{ours})"
            )
    if (teacher.norm.kind, teacher.norm.eps) != (student.norm.kind, student.norm.eps):
        said.append(f"the layers' norms differ: {teacher.norm} in the teacher, {student.norm} in the student")
    return said


def begin(teacher: LanguageModel, student: LanguageModel, init: str, seed: int) -> None:
    """Give the student, which has no memory yet, its first weights, float32 on the CPU: the teacher's wherever it has the same
    part, and new mixers as `init` says. The same seed means the same weights. Raises UsageError where they do not fit."""
    changed = replaced(teacher.config, student.config)
    if init == "attention":
        check_projections(teacher.config, student.config, changed)
    torch.manual_seed(seed)
    student.to_empty(device="cpu")
    with torch.no_grad():
        for i in changed:
            _reset(student.layers[i][0], len(student.layers))
        _transfer(teacher, student, changed)
        for i in changed if init == "attention" else ():
            if not isinstance(student.config.layers[i][0], Telescoping):  # which has these projections already
                _from_attention(teacher.layers[i][0].mixer, student.layers[i][0].mixer)


def _reset(sublayer: Sublayer, layers: int) -> None:
    """As published: gate open, convolution the identity, D = 1 (of Discrete Mamba-2); matrices of the variance of torch's
    own linear layers, the output's divided by the number of layers."""
    mixer = sublayer.mixer
    width = mixer.out_proj.weight.shape
    mixer.reset((3 * width[0]) ** -0.5, (3 * width[1] * layers) ** -0.5)


def _transfer(teacher: LanguageModel, student: LanguageModel, changed: list[int]) -> None:
    """Every weight that the teacher has under the same name, but for those of scans in the place of attention."""
    mixers = {f"layers.{i}.0.mixer.": student.config.layers[i][0] for i in changed}
    scans = tuple(name for name, mixer in mixers.items() if not isinstance(mixer, Telescoping))
    held = teacher.weights()
    if teacher.head is None and student.head is not None:
        held["head.weight"] = held["embedding.weight"]
    for name, weight in student.named_parameters():
        if name.startswith(scans) or (name not in held and name.startswith(tuple(mixers))):
            continue
        if name not in held:
            raise UsageError(f"{name}: the teacher has no such weight, and it is no new mixer's; make the rest of both alike")
        source = held[name].dequantize(torch.float32) if isinstance(held[name], Packed) else held[name]
        if source.shape != weight.shape and name not in ("embedding.weight", "head.weight"):
            raise UsageError(f"{name}: {list(source.shape)} in the teacher, {list(weight.shape)} in the student")
        rows = min(len(source), len(weight))  # vocabularies may be padded differently
        weight[rows:] = 0
        weight[:rows] = source[:rows]


def _from_attention(attention, mixer) -> None:
    """x, B and C of a scan from the projections of values, keys and queries, the output from its own: linear attention without
    positions. A key/value head is repeated for every query head that reads it."""
    theirs, ours = attention.config, mixer.config
    share = theirs.n_heads // theirs.n_kv_heads
    v, k = (expanded(p.dequantize(), theirs.head_dim, share) for p in (attention.v_proj, attention.k_proj))
    start = 2 * ours.d_mlp + ours.d_inner if isinstance(ours, Mamba2) else 0  # rows of the gates
    rows = torch.cat([v, k, attention.q_proj.dequantize()])
    mixer.in_proj.weight[start : start + len(rows)] = rows
    mixer.out_proj.weight[:, : ours.d_inner] = attention.out_proj.dequantize()


def expanded(weight: Tensor, head_dim: int, share: int) -> Tensor:
    """Rows [G head_dim, D] of key/value heads for every query head [G share head_dim, D]: each head whole, `share` times."""
    return weight.unflatten(0, (-1, head_dim)).repeat_interleave(share, 0).flatten(0, 1)


def derived(teacher: ModelConfig, like: ModelConfig) -> ModelConfig:
    """The student of this teacher with the mixer of `like`, a model of Discrete Mamba-2, in every layer: as many heads as the
    teacher has, as wide as the stream. Raises UsageError where the heads do not divide it."""
    mixer = like.layers[0][0]
    if not isinstance(mixer, DiscreteMamba2):
        raise UsageError("a student can be derived from its teacher where it is a llamba; write [model.config] for others")
    n_heads = next((m.n_heads for m in teacher.sublayers if isinstance(m, Attention)), 0)
    if not n_heads or teacher.d_model % n_heads:
        raise UsageError(f"the teacher's {n_heads} heads of attention do not divide its {teacher.d_model} channels")
    mixer = dataclasses.replace(mixer, d_inner=teacher.d_model, n_v_heads=n_heads, n_qk_heads=n_heads)
    return dataclasses.replace(
        like,
        d_model=teacher.d_model,
        vocab_size=teacher.vocab_size,
        padded_vocab_size=teacher.padded_vocab_size,
        layers=tuple((mixer, *layer[1:]) for layer in teacher.layers),
        final_norm=dataclasses.replace(teacher.final_norm, round_first=like.final_norm.round_first),
        tied=teacher.tied,
        bos_id=teacher.bos_id,
        eos_ids=teacher.eos_ids,
        pad_id=teacher.pad_id,
    )
