"""A small byte-pair tokenizer trained on the captions at hand, for models that start from nothing."""

from __future__ import annotations

from collections.abc import Iterable

# Ids follow this order. The end token must not be number 2: transformers' CLIP takes a text encoder with
# eos_token_id 2 for an old OpenAI file and pools at the largest token id instead of the end.
SPECIAL = PAD, END, START, UNKNOWN = "<pad>", "</s>", "<s>", "<unk>"


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, start: bool = False):
    """texts -> transformers' PreTrainedTokenizerFast. Every text ends with </s>; it begins with <s> where `start`.

    "," and "|" are tokens of their own: they join and close control words.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(",", "isolated"), pre_tokenizers.Split("|", "isolated"), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=[",", "|"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin = f"{START} " if start else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin}$A {END}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (START, END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=AddedToken(PAD, special=True),
        bos_token=AddedToken(START, special=True),
        eos_token=AddedToken(END, special=True),
        unk_token=AddedToken(UNKNOWN, special=True),
        padding_side="right",
    )
