"""Small stand-ins for SAM and CLIP, trained from nothing, for a model that is built on frozen ones.

    python -m train.stand_ins.sam --config configs/stand_ins/sam.yaml      # boxes -> masks
    python -m train.stand_ins.clip --config configs/stand_ins/clip.yaml    # whole pictures <-> their captions

Each writes a folder as transformers' `save_pretrained` does, which is named wherever a real one is.
"""
