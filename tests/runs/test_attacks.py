"""Real attacks by another user: on folders on the way to a checkpoint, and by a pickle."""

import os
import pickle
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.runs.folder import RunFolder
from furnace_hpc.runs.records.checkpoint_files import complete, describe
from furnace_hpc.runs.trust import check_trusted

OTHER_ID = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")


@as_root
@pytest.mark.fuzz
@given(data=st.data())
def test_trusted_files_withstand_attacks(data, tmp_path_factory):
    """No attack works on what the rule trusts, for any owners, groups, modes and links."""
    top = tmp_path_factory.mktemp("chain")
    for place in (top, *top.parents):
        if place.stat().st_uid == 0 and not place.stat().st_mode & 0o001:
            place.chmod(place.stat().st_mode | 0o011)
    top.chmod(0o755)
    owners, groups = st.sampled_from([0, 0, 0, OTHER_ID]), st.sampled_from([0, LAB])
    modes = st.sampled_from(
        [0o700, 0o755, 0o711, 0o775, 0o2775, 0o777, 0o757, 0o1777, 0o1775, 0o3775]
    )
    chain, place = [], top
    for name in ("a", "b", "runs", "step"):
        real = place / name
        if name != "step" and data.draw(st.booleans()):
            real = place / f"{name}.real"
            (place / name).symlink_to(real.name)
            os.chown(place / name, data.draw(owners), 0, follow_symlinks=False)
        real.mkdir()
        chain.append(real)
        place = real
    victim = place / "model.pt"
    victim.write_bytes(b"x")
    for entry in (*chain, victim):
        os.chown(entry, data.draw(owners), data.draw(groups))
        entry.chmod(data.draw(modes))
    named = top / "a" / "b" / "runs"
    before = (named / "step" / "model.pt").stat().st_ino
    try:
        check_trusted(named / "step", named)
        trusted = True
    except ConfigError:
        trusted = False
    child = os.fork()
    if not child:
        with suppress(BaseException):
            os.setgroups([LAB])
            os.setgid(LAB)
            os.setuid(OTHER_ID)
            attack([top / "a", top / "a" / "b", *chain, victim])
            attack(sorted(top.rglob("*")))
        os._exit(0)
    os.waitpid(child, 0)
    step = named / "step"
    same = step.exists() and [(path.name, path.stat().st_ino) for path in step.iterdir()] == [
        ("model.pt", before)
    ]
    same = same and (step / "model.pt").read_bytes() == b"x"
    shutil.rmtree(top)
    event(f"trusted: {trusted}, changed: {not same}")
    if trusted:
        assert same


LAB = 4242


def attack(places: list[Path]) -> None:
    """Try everything as another user: write, open, add, rename, at each folder and file."""
    for place in places:
        with suppress(OSError):
            place.chmod(0o777)
        with suppress(OSError):
            (place / "torch.py").write_text("bomb")
        with suppress(OSError):
            place.write_bytes(b"bomb")
    for place in reversed(places):
        with suppress(OSError):
            place.rename(place.with_name(f"{place.name}.aside"))
            place.mkdir()
            (place / "model.pt").write_bytes(b"bomb")


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def test_malicious_checkpoint_is_not_opened(tree, tmp_path):
    import torch

    from furnace_hpc.engine.checkpoint.shards import open_shards

    canary = tmp_path / "canary"
    shards = tree[1] / "zero"
    (shards / "model.pt").unlink()
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save(Bomb(canary), shards / name)
    (shards / "mp_rank_00_model_states.pt").chmod(0o664)
    with pytest.raises(ConfigError, match="its group"):
        open_shards(shards)
    assert not canary.exists()
    (shards / "mp_rank_00_model_states.pt").chmod(0o644)
    with pytest.raises((TypeError, RuntimeError, pickle.UnpicklingError)):
        open_shards(shards)
    assert canary.exists()  # without the check the attack works


def test_malicious_checkpoint_with_right_hashes(tree, tmp_path):
    import torch
    from make import make_config, make_context

    from furnace_hpc.engine.checkpoint import loader

    canary = tmp_path / "canary"
    run = RunFolder(tree[1].parent.parent)
    aside = tree[1].with_name("step-1.tmp-1")
    tree[1].rename(aside)
    torch.save(Bomb(canary), aside / "zero" / "mp_rank_00_model_states.pt")
    files = {f"zero/{path.name}": describe(path) for path in (aside / "zero").iterdir()}
    complete(aside, tree[1], {"step": 1, "world_size": 1, "zero_stage": 1}, files)
    tree[0].chmod(0o775)  # the group can have written it, with its manifest
    context = make_context(make_config(), engine=None, folder=run.path)
    for load in (loader.load_newest, lambda context: loader.load(context, 1)):
        with pytest.raises(ConfigError, match="written by its group"):
            load(context)
    assert not canary.exists()
