"""Plans: days of published runs come out, and advice, taken, helps."""

import pytest

from leanlm.train import hardware, plan, recipe
from leanlm.train.plan import Cluster, make

LAPTOP = hardware.Device("laptop", 1e11, 1e11, 16e9, gpu=False)
DAY = 86400


def read(name: str, *settings: str, size: str = ""):
    return recipe.read(recipe.path_of(name), settings, size)


@pytest.mark.parametrize(
    ("name", "gpu", "processes", "published_days", "share"),
    [("mamba-7b", "h100", 128, 21, 0.22), ("avengers-mamba2-9.8b", "a100", 192, 60, 0.38)],
)
def test_published_runs_take_the_days_they_took(name, gpu, processes, published_days, share):
    """The shares were computed from days and GPUs by 6 FLOPs a weight, which counts neither scans nor attention."""
    settings = ("compute.checkpoint_blocks=0.0", "schedule.micro=1")
    made = make(read(name, *settings), Cluster(hardware.named(gpu), processes, 8), share)
    assert made.seconds / DAY == pytest.approx(published_days, rel=0.15)


def test_recomputing_costs_time_and_saves_memory():
    cluster = Cluster(hardware.named("h100"), 64, 8)
    kept, again = (make(read("rene", "schedule.micro=2", f"compute.checkpoint_blocks={s}"), cluster) for s in (0.0, 1.0))
    assert again.footprint.activations < kept.footprint.activations / 3
    assert 1.1 < again.seconds / kept.seconds < 4 / 3
    assert kept.useful == kept.utilisation
    assert again.useful == pytest.approx(kept.utilisation * kept.seconds / again.seconds)  # equal work, in more time


@pytest.mark.parametrize(
    ("name", "size", "gpu", "processes"),
    [
        ("rene", "", "a100", 8),
        ("mamba-7b", "", "h100", 64),
        ("trilm", "3.9b", "v100", 64),
        ("avengers-llama3-1.8b", "", "h100", 1),
    ],
)
def test_advice_taken_makes_it_fit(name, size, gpu, processes):
    cluster = Cluster(hardware.named(gpu), processes, 8)
    made = make(read(name, size=size), cluster)
    (warning,) = [w for w in made.warnings if "will not fit" in w]
    settings = [word for word in warning.split() if "=" in word]
    assert settings
    taken = make(read(name, *settings, size=size), cluster)
    assert taken.fits and not any("will not fit" in w for w in taken.warnings)


def test_what_cannot_fit_is_said_and_not_refused():
    made = make(read("mamba-7b"), Cluster(LAPTOP))
    assert any("no setting makes it fit" in w for w in made.warnings)


def test_batches_that_do_not_divide_are_told():
    made = make(read("rene", "schedule.micro=2"), Cluster(hardware.named("h100"), 24, 8))
    (warning,) = [w for w in made.warnings if "divided" in w]
    nearest = int(warning.rpartition("=")[2])
    assert nearest % 24 == 0 and abs(nearest - 512) <= 12


@pytest.mark.parametrize(
    ("strategy", "processes", "expected"),
    [("auto", 1, ("alone", 1)), ("auto", 16, ("fsdp", 16)), ("ddp", 16, ("ddp", 1)), ("hsdp", 16, ("hsdp", 8))],
)
def test_who_shares_a_copy(strategy, processes, expected):
    changed = read("rene", f"compute.strategy={strategy}")
    assert plan.sharing(changed, Cluster(hardware.named("h100"), processes, 8)) == expected


def test_laptop_twins_fit_a_laptop_for_minutes():
    for name in recipe.shipped():
        if name.endswith("-laptop"):
            for size in recipe.sizes(recipe.path_of(name)) or ("",):
                made = make(read(name, size=size), Cluster(LAPTOP))
                assert made.fits and made.seconds < 1800, (name, made.seconds)
