"""Names to folders: local, built-in, catalogue and hub, online and off, allowed and refused; against a hub on this machine."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fake_hub import TOKEN, FakeHub
from golden_cases import OWN
from leanlm.checkpoint import hub, locate, tokenizer
from leanlm.checkpoint.load import load_module
from leanlm.errors import CheckpointError, NotFound
from leanlm.families import catalog

RENE = catalog.resolve("rene")


@pytest.fixture
def published(tmp_path, tokenizer_folder) -> dict[str, Path]:
    """What the fake hub serves: two models, a gated one, a bare tokenizer, and a repository with nothing to load."""
    rene = tmp_path / "published/rene"
    shutil.copytree(OWN / "rene/gqa_groups", rene)
    (rene / "pytorch_model.bin").write_text("the same weights once more")
    (rene / "README.md").write_text("# Rene")
    (tmp_path / "published/none").mkdir()
    (tmp_path / "published/none/README.md").write_text("nothing")
    return {
        RENE.repo: rene,
        "someone/llama": OWN / "llama/bf16",
        "someone/gated": OWN / "llama/bf16",
        RENE.tokenizer_repo: tokenizer_folder,
        "someone/none": tmp_path / "published/none",
    }


@pytest.fixture
def fake(published, monkeypatch):
    with FakeHub(published, gated={"someone/gated"}, branches={"v2"}) as fake:
        fake.patch(monkeypatch)
        yield fake


def refused(*args, **options) -> str:
    with pytest.raises(NotFound) as caught:
        locate.resolve(*args, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return str(caught.value)


def test_download_takes_only_what_is_needed(fake):
    folder = locate.resolve(RENE.repo)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert load_module(folder).family.name == "rene"


def test_short_names_mean_their_repository(fake):
    assert locate.resolve("rene") == locate.resolve("RENE") == locate.resolve(RENE.repo)


def test_revisions(fake):
    main = locate.resolve("someone/llama")
    assert locate.resolve("someone/llama", revision="v2") == main
    assert locate.resolve("someone/llama", revision=fake.commit("someone/llama")) == main
    assert "no revision 'v3'" in refused("someone/llama", revision="v3")


@pytest.mark.parametrize("how", ["flag", "variable", "gone", "failing"])
def test_the_copy_on_disk_serves_without_the_hub(fake, monkeypatch, how):
    folder = locate.resolve("someone/llama")
    asked = len(fake.requests)
    if how == "gone":
        fake.stop()
    elif how == "failing":
        fake.broken = 503
    elif how == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if how in ("gone", "failing"):
        with pytest.warns(UserWarning, match="using the copy on disk"):
            assert locate.resolve("someone/llama") == folder
    else:
        assert locate.resolve("someone/llama", offline=how == "flag") == folder
        assert len(fake.requests) == asked


def test_offline_and_not_on_disk(fake, monkeypatch):
    assert "is not on disk" in refused("someone/llama", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused("rene")
    assert "is not on disk" in message and "leanlm pull" in message
    assert fake.requests == []


def test_half_a_download_is_not_on_disk(fake):
    folder = locate.resolve("someone/llama")
    (folder / "model.safetensors").unlink()
    assert "is not on disk" in refused("someone/llama", offline=True)


def test_gated(fake, monkeypatch):
    message = refused("someone/gated")
    assert "gated" in message and f"{fake.endpoint}/someone/gated" in message and "HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (locate.resolve("someone/gated") / "config.json").exists()


@pytest.mark.parametrize("token", ["", TOKEN], ids=["401", "404"])
def test_no_such_repository(fake, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    assert "no such repository" in refused("someone/absent")


@pytest.mark.parametrize(("status", "way"), [(403, "log in"), (500, "try again later"), (429, "try again later")])
def test_other_answers(fake, status, way):
    fake.broken = status
    message = refused("someone/llama")
    assert f"the hub answered {status}" in message and way in message


def test_no_network(fake):
    fake.stop()
    message = refused("someone/llama")
    assert "cannot download" in message and "check the network" in message


def test_nothing_to_load(fake):
    assert "no config.json" in refused("someone/none")


def test_a_local_folder_comes_first(fake, tmp_path, monkeypatch):
    local = tmp_path / "rene"
    shutil.copytree(OWN / "rene/gqa_groups", local)
    monkeypatch.chdir(tmp_path)
    assert (
        locate.resolve(local) == local and locate.resolve("rene") == Path("rene") and locate.resolve("./rene") == Path("./rene")
    )
    (local / "config.json").unlink()  # no checkpoint: only a folder that happens to have the name
    assert locate.resolve("rene") != Path("rene")
    assert locate.resolve("./rene") == Path("./rene")


def test_names_that_mean_nothing(fake, tmp_path):
    assert "did you mean" in refused("llamba-8")
    assert "no such folder" in refused("/no/such/folder")
    assert "no such folder" in refused("./folder/of/mine")
    assert refused("what is this?")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        locate.resolve(tmp_path / "file")
    assert fake.requests == []


def test_announced_and_never_released(fake):
    absent = next(entry for entry in catalog.CATALOG if entry.repo is None)
    assert absent.note in refused(absent.name)


def test_builtin():
    folder = Path(hub.__file__).parent.parent / "builtin"
    assert locate.resolve("builtin") == locate.resolve("builtin-ternary") == folder / "ternary"
    assert locate.resolve("builtin-float") == folder / "float"


def test_the_tokenizer_of_the_catalogue(fake, tokenizer_folder):
    folder = locate.resolve("rene")
    found = tokenizer.find(folder, RENE)
    assert found.files == tokenizer.Tokenizer.from_folder(tokenizer_folder).files
    assert tokenizer.find(folder, None) is None
    assert tokenizer.find(tokenizer_folder, None) is not None
    fake.repos.pop(RENE.tokenizer_repo)
    shutil.rmtree(fake.cache / "hub")
    with pytest.warns(UserWarning, match="no tokenizer, token ids only: .*no such repository"):
        assert tokenizer.find(tokenizer_folder / "..", RENE) is None


@pytest.mark.slow  # a process of its own, for the variables and the two streams
def test_another_process_by_its_environment(published):
    code = "from leanlm.checkpoint import locate; print(locate.resolve('rene'))"
    with FakeHub(published) as fake:
        environment = {**os.environ, **fake.environment()}
        ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert ran.returncode == 0 and not ran.stderr, ran.stderr
        assert (Path(ran.stdout.strip()) / "model.safetensors").exists()
        fake.stop()
        environment["HF_HUB_OFFLINE"] = "1"
        again = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert again.stdout == ran.stdout and not again.stderr


def test_a_hub_that_never_answers(fake, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "check the network" in refused("someone/llama")
