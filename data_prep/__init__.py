"""Converters: one dataset a file, raw data in, record files out; `check` tells what is wrong with a record file."""

from dynrefer.errors import quiet_interrupts

quiet_interrupts()
