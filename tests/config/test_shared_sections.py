"""Configs of many rows: what they share, and that each has its own identity."""

from copy import deepcopy

from make import make_config

from furnace_hpc.config.identity import identity_hash, seeded_hashes


def test_rows_share_no_mapping_of_a_default():
    one, other = make_config(), make_config()
    assert one == other
    assert one.loss.extra is not other.loss.extra
    assert one.evaluation.extra is not other.evaluation.extra
    copied = deepcopy(one)
    assert copied == one
    assert copied.model_fields_set == one.model_fields_set
    assert copied.model.network_args is not one.model.network_args


def test_identities_of_many_configs_are_their_own():
    """Sections that are shared, equal or different give the same digits as each config alone."""
    first = make_config()
    changes = [{}, {"loss__alpha": 0.7}, {"model__width": 64}, {"augment__mixup": 0.2}, {}]
    configs = [make_config(**change) for change in changes]
    configs += [first.model_copy(update={"loss": configs[1].loss, "seed": 3}), first]
    alone = [identity_hash(config, "data") for config in configs]
    assert seeded_hashes(configs, ["data"] * len(configs)) == alone
    assert len(set(alone)) == 5


def test_the_last_identities_are_used_again():
    """Other seeds, data and sections of the same configs give the digits of each config alone."""
    configs = [make_config(), make_config(loss__alpha=0.7)]
    seeded_hashes(configs, ["", ""])
    again = [config.model_copy(update={"seed": seed}) for config in configs for seed in (1, 2)]
    again += [config.model_copy(update={"loss": configs[1].loss}) for config in again]
    for data in ("data", "other data"):
        alone = [identity_hash(config, data) for config in again]
        assert seeded_hashes(again, [data] * len(again)) == alone
        assert seeded_hashes(again[::-1], [data] * len(again)) == alone[::-1]
