import pytest
import torch

from osrm_cli.errors import OsrmError
from osrm_cli.models import devices


def test_devices_and_types() -> None:
    cpu = torch.device("cpu")
    assert devices.pick_device("cpu") == cpu
    assert devices.pick_dtype("auto", cpu) is torch.float32
    assert devices.pick_dtype("float16", cpu) is torch.float16
    if not torch.cuda.is_available():
        with pytest.raises(OsrmError, match="device 'cuda' is not available on this machine"):
            devices.pick_device("cuda")
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        assert devices.pick_device("auto") == cpu


def test_rules_leave_a_device_without_float64() -> None:
    found = [devices.device_with_float64(torch.device(name)) for name in ("cpu", "cuda", "mps")]
    assert [device.type for device in found] == ["cpu", "cuda", "cpu"]
