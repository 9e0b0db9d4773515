"""Training: `accelerate launch -m train.run --config configs/NAME.yaml [section.key=value ...]`. Start at run.py."""
