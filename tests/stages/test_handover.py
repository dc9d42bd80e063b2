"""The relay between the two processes of a stream, while both of them are at it."""

import subprocess
import sys

from backend.artifacts.artifact import File
from backend.disk import JOURNAL, sha256
from backend.stages.stream.handover import Relay
from tests.support.processes import until

COME_AND_GO = """
import pathlib, sys
shards = [pathlib.Path(sys.argv[1]) / f"model-{number:05}.safetensors" for number in range(20)]
while True:
    for shard in shards:
        shard.touch()
    for shard in shards:
        shard.unlink()
"""


def test_the_result_is_described_while_its_shards_go_to_the_hub_and_from_here(tmp_path):
    relay, beside = Relay(tmp_path), ("config.json", "licenses/LICENSE")
    (relay.output / "licenses").mkdir(parents=True)
    for name in (*beside, JOURNAL):
        (relay.output / name).write_text(name)
    sender = subprocess.Popen([sys.executable, "-c", COME_AND_GO, str(relay.output)])
    try:
        until(lambda: any(relay.output.glob("*.safetensors")))
        found = [relay.beside() for _ in range(200)]
    finally:
        sender.kill()
        sender.wait()
    described = {name: File(size=len(name), sha256=sha256(relay.output / name)) for name in beside}
    assert found == [described] * 200
