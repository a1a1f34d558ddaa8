"""Measure on a machine elsewhere, with one of the two measuring programs."""

from __future__ import annotations

from edgevit.devices import native_program, python_program
from edgevit.devices.machine import RemoteMachine
from edgevit.devices.request import ProfileRequest
from edgevit.devices.runtimes import runs_natively
from edgevit.schema.measurement import Measurement


def measure(machine: RemoteMachine, request: ProfileRequest) -> Measurement:
    """Measure with the bundle's own C++ runner, where it has one, else with Python and the bundle's runtime there.

    Raises:
        DeviceError: the machine cannot be reached, cannot run the bundle, or gives no measurement.
        BundleError: a file of the bundle is not what it should be.
    """
    if runs_natively(request.bundle.manifest.backend):
        return native_program.measure(machine, request)
    return python_program.measure(machine, request)
