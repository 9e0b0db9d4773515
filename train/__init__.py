"""Training: `accelerate launch -m train.run --config configs/NAME.yaml [section.key=value ...]`. Start at run.py."""

from dynrefer.errors import quiet_interrupts

quiet_interrupts()
