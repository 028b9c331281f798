"""A training plan as people and programs read it."""

import dataclasses

from leanlm.cli.progress import clock
from leanlm.cli.sizes import count, size
from leanlm.model import cost, flops


def as_dict(plan) -> dict:
    """Figures with their units in the names; bytes are those of a process."""
    return {
        "recipe": plan.recipe.name,
        "parameters": cost.parameters(plan.config),
        "device": plan.cluster.device.name,
        "processes": plan.cluster.processes,
        "strategy": plan.strategy,
        "windows_per_pass": plan.windows,
        "passes_per_step": plan.passes,
        "steps": plan.recipe.steps,
        "tokens": plan.tokens,
        "bytes": dataclasses.asdict(plan.footprint) | {"total": plan.footprint.total},
        "device_bytes": plan.cluster.device.memory,
        "fits": plan.fits,
        "flops_per_token": plan.flops,
        "recomputed_flops_per_token": plan.recomputed,
        "teacher_flops_per_token": plan.teaching,
        "assumed_utilisation": plan.utilisation,
        "useful_utilisation": plan.useful,
        "tokens_per_second": plan.tokens_per_second,
        "seconds": plan.seconds,
        "warnings": list(plan.warnings),
    }


def as_text(plan) -> str:
    recipe, cluster, held = plan.recipe, plan.cluster, plan.footprint
    rows = [
        ("model", f"{recipe.name}, {count(cost.parameters(plan.config))} parameters"),
        ("steps", steps(plan)),
        ("processes", f"{cluster.processes} x {cluster.device.name}, {plan.strategy}"),
        ("passes", f"{plan.windows} windows at a time in a process, {plan.passes} times a step"),
        ("memory", f"{size(held.total)} of {size(cluster.device.memory)} a process"),
        *((f"  {name}", size(nbytes)) for name, nbytes in dataclasses.asdict(held).items() if nbytes),
        ("arithmetic", arithmetic(plan)),
        ("speed", speed(plan)),
        ("time", f"{clock(plan.seconds)} ({plan.seconds * cluster.processes / 3600:,.0f} device hours)"),
    ]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:{width}}{text}" for name, text in rows)


def steps(plan) -> str:
    batch, length = plan.recipe.schedule.batch, plan.recipe.data.length
    return f"{plan.recipe.steps:,} of {batch} x {length} = {count(batch * length)} tokens, {count(plan.tokens)} in all"


def arithmetic(plan) -> str:
    share = (1 + flops.BACKWARD) * flops.scans(plan.config) / plan.flops
    scans = f", of which scans {share:.0%}" if share else ""
    again = f"; {count(plan.recomputed)} more are computed again" if plan.recomputed else ""
    taught = f"; the teacher's {count(plan.teaching)}" if plan.teaching else ""
    return f"{count(plan.flops)} FLOPs a token, forward and backward{scans}{again}{taught}"


def speed(plan) -> str:
    dtype = plan.recipe.compute.dtype
    peak = plan.cluster.device.peak(dtype)
    useful = f"; MFU {plan.useful:.0%}, of what the model itself needs" if plan.spent > plan.flops else ""
    assumed = f"assuming {plan.utilisation:.0%} of {peak / 1e12:.4g} TFLOP/s ({dtype})"
    return f"{count(plan.tokens_per_second)} tokens/s, {assumed}{useful}"
