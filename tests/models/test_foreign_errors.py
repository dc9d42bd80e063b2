"""Whatever fails in a package ends in one sentence of ours; what the package says is in the log."""

import errno

import pytest

from backend.errors import HardwareError, SpecError
from backend.models.loading import in_our_words


def test_what_a_package_says_goes_to_the_log_and_not_to_the_user(capsys):
    from peft import LoraConfig

    words = r"^The training of 'me/model' failed in peft: choose another model\. The log has the details\.$"
    with pytest.raises(SpecError, match=words), in_our_words("The training of 'me/model'", "choose another model"):
        LoraConfig(target_modules="q_proj", layers_to_transform=[0])
    assert "layers_to_transform" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_where_memory_runs_out_that_is_said(error):
    with pytest.raises(HardwareError, match="Loading 'x' ran out of memory"), in_our_words("Loading 'x'", "wait"):
        raise error


def test_what_the_disk_says_is_left_to_its_own_words():
    with pytest.raises(OSError, match="No space left"), in_our_words("Loading 'x'", "choose another"):
        raise OSError(errno.ENOSPC, "No space left on device")
