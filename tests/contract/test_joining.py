"""Who may take part in a queue, after a power cut that took files which had not reached the disk."""

import pytest

from daemon import peers
from daemon.settings import Settings
from daemon.store import Store


def spoke(store: Store, settings: Settings, identity: str) -> None:
    """An earlier life of the rig, or another machine under its name, lives as far as the queue knows."""
    store.describe_rig(settings.rig, {"slots": []})
    store.beat(settings.rig, {"at": 1.0, "processes": {}, "identity": identity})


def test_a_home_that_lost_its_identity_in_a_power_cut_still_starts_on_its_own_redis(
    store: Store, settings: Settings
) -> None:
    settings.home.mkdir(exist_ok=True)
    spoke(store, settings, peers.identity(settings))
    (settings.home / "rig-id").unlink()
    peers.join(store, settings)
    (settings.home / "rig-id").write_text("")  # renamed in time, and empty
    peers.join(store, settings)
    assert len(peers.identity(settings)) == 32


def test_another_machine_of_the_same_name_on_a_shared_redis_is_refused(store: Store, settings: Settings) -> None:
    spoke(store, settings, "another one")
    shared = settings.model_copy(update={"redis_url": "redis://somewhere"})
    with pytest.raises(peers.CannotJoin, match="Another machine"):
        peers.join(store, shared)
