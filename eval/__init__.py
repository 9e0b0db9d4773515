"""Evaluation: predictions file -> scores -> report. `python -m eval.run --model RUN_OR_HUB_ID --task NAME`."""

from dynrefer.errors import quiet_interrupts

quiet_interrupts()
