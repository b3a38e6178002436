"""Put the faults that TEST_FAULTS names into this Python process."""

import os

import injected_faults

if faults := os.environ.get(injected_faults.VARIABLE):
    injected_faults.install(faults)
