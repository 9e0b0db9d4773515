"""Masklets -> captions -> a check of what they claim -> instructions: the way of Omni-RGPT's RegVID-300k data.

settings.py   who is asked, how often, and what it may cost
masklets.py   boxes of clips -> masks, by a SAM
shots.py      frames as the models see them, with numbered regions or without
prompts.py    what is asked, and how answers are read
desk.py       asks, keeps every answer in a file, counts what it costs
pipeline.py   one clip from its regions to its texts; all clips
"""
