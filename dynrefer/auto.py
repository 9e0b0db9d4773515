"""`import dynrefer.auto`: from then on transformers' AutoModel, AutoConfig and AutoProcessor load our models."""

from dynrefer.models import register_families

register_families()
