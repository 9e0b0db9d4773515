"""Tiny models of others with random weights, in the formats they are published in: config, weights, processor."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    Kosmos2Processor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

TEXTS = ("a red cup on the table", "the small blue dog", "Provide a short description for the region in the image")
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
CLIP = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CHAT = (
    "{%% for message in messages %%}<|im_start|>{{ message['role'] }}\n"
    "{%% for part in message['content'] %%}{%% if part['type'] == 'image' %%}%s{%% else %%}{{ part['text'] }}"
    "{%% endif %%}{%% endfor %%}<|im_end|>\n{%% endfor %%}"
    "{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)
QWEN = CHAT % "<|vision_start|><|image_pad|><|vision_end|>"


def tokenizer(
    special: Sequence[str] = (), begin: str = "", end: str = "", extra: dict | None = None, **named: str
) -> PreTrainedTokenizerFast:
    """Byte pairs of TEXTS; special: more tokens that are skipped in texts; begin, end: put around every text."""
    given = [*dict.fromkeys([*named.values(), *special, *(extra or {}).values()])]
    made = Tokenizer(models.BPE(unk_token=named.get("unk_token")))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=340, special_tokens=given, initial_alphabet=alphabet, show_progress=False),
    )
    if begin or end:
        made.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A {end}".strip(), special_tokens=[(t, made.token_to_id(t)) for t in (begin, end) if t]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        additional_special_tokens=[AddedToken(token, special=True) for token in special],
        extra_special_tokens=extra or {},
        **named,
    )


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    marks = [f"<|{name}_{side}|>" for name in ("vision", "object_ref", "box") for side in ("start", "end")]
    return tokenizer(
        ["<|im_start|>", "<|image_pad|>", "<|video_pad|>", *marks],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )


def qwen_ids(words) -> dict:
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    return {key: words.convert_tokens_to_ids(token) for key, token in names.items()}


def qwen2_vl():
    words = qwen_tokenizer()
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}
    config = Qwen2VLConfig(text_config=qwen_text(words), vision_config=vision, **qwen_ids(words))
    images = Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 12})
    processor = Qwen2VLProcessor(images, words, Qwen2VLVideoProcessor(), chat_template=QWEN)
    return Qwen2VLForConditionalGeneration(config), processor


def qwen_text(words) -> dict:
    return LLAMA | {
        "vocab_size": len(words),
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        "bos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    }


def qwen2_5_vl():
    words = qwen_tokenizer()
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 32}
    vision |= {"fullatt_block_indexes": [1], "patch_size": 14, "window_size": 56}
    config = Qwen2_5_VLConfig(text_config=qwen_text(words), vision_config=vision, **qwen_ids(words))
    images = Qwen2VLImageProcessor(size={"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 12})
    processor = Qwen2_5_VLProcessor(images, words, Qwen2VLVideoProcessor(), chat_template=QWEN)
    return Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl():
    words = qwen_tokenizer()
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 32}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    config = Qwen3VLConfig(text_config=qwen_text(words) | {"head_dim": 8}, vision_config=vision, **qwen_ids(words))
    images = Qwen2VLImageProcessor(patch_size=16, size={"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 12})
    processor = Qwen3VLProcessor(images, words, Qwen3VLVideoProcessor(), chat_template=QWEN)
    return Qwen3VLForConditionalGeneration(config), processor


def internvl():
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    words = tokenizer(
        ["<|im_start|>", "<ref>", "</ref>", "<box>", "</box>"],
        extra=names | {"video_token": "<video>"},
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    text = LLAMA | {"model_type": "qwen2", "vocab_size": len(words), "eos_token_id": words.eos_token_id}
    vision = CLIP | {"image_size": [28, 28], "patch_size": [14, 14]}
    config = InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=words.context_image_token_id, image_seq_length=1
    )
    images = GotOcr2ImageProcessor(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4)
    processor = InternVLProcessor(
        images, words, InternVLVideoProcessor(), image_seq_length=1, chat_template=CHAT % "<IMG_CONTEXT>\n"
    )
    return InternVLForConditionalGeneration(config), processor


def florence2():
    words = tokenizer(
        [f"<loc_{n}>" for n in range(1000)],
        "<s>",
        "</s>",
        extra={"image_token": "<image>"},
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
    )
    images = CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False)
    images.image_seq_length = 5
    processor = Florence2Processor(images, words, post_processor_config=None, num_additional_image_tokens=0)
    text = BartConfig(
        vocab_size=len(words),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        decoder_start_token_id=words.eos_token_id,
        forced_bos_token_id=None,
        forced_eos_token_id=None,
    )
    vision = {"depths": [1, 1, 1, 1], "embed_dim": [8, 8, 16, 16], "num_heads": [2] * 4, "num_groups": [2] * 4}
    vision |= {"window_size": 4, "projection_dim": 32}
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=words.image_token_id)
    return Florence2ForConditionalGeneration(config), processor


def kosmos2():
    words = tokenizer(begin="<s>", end="</s>", bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = Kosmos2Processor(images, words)
    config = Kosmos2Config(
        text_config={
            "vocab_size": len(processor.tokenizer),
            "embed_dim": 32,
            "layers": 2,
            "ffn_dim": 48,
            "attention_heads": 4,
            "pad_token_id": words.pad_token_id,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
        vision_config=CLIP | {"image_size": 28, "patch_size": 14},
    )
    return Kosmos2ForConditionalGeneration(config), processor


def llava(chat: bool = True):
    words = tokenizer(
        ["<image>", "<|im_start|>", "<|im_end|>"], begin="<s>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = LlavaProcessor(
        images,
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT % "<image>\n" if chat else None,
    )
    text = LLAMA | {"model_type": "llama", "vocab_size": len(words), "eos_token_id": words.eos_token_id}
    vision = CLIP | {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14}
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config), processor


def bert_tokenizer():
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return tokenizer(["[DEC]"], "[CLS]", "[SEP]", **named)


def blip():
    words = bert_tokenizer()
    text = {"hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "vocab_size": len(words), "sep_token_id": words.sep_token_id}
    text |= {"bos_token_id": words.convert_tokens_to_ids("[DEC]"), "pad_token_id": words.pad_token_id}
    vision = CLIP | {"image_size": 32, "patch_size": 16, "initializer_range": 0.02}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=32, image_text_hidden_size=32)
    return BlipForConditionalGeneration(config), BlipProcessor(
        BlipImageProcessor(size={"height": 32, "width": 32}), words
    )


def git():
    words = bert_tokenizer()
    config = GitConfig(
        vision_config=CLIP | {"image_size": 32, "patch_size": 16},
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        bos_token_id=words.cls_token_id,
        eos_token_id=words.sep_token_id,
        pad_token_id=words.pad_token_id,
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return GitForCausalLM(config), GitProcessor(images, words)


def llama():
    """A model that sees no images."""
    words = tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    return LlamaForCausalLM(LlamaConfig(**LLAMA, vocab_size=len(words))), words


MODELS = {
    "florence2": florence2,
    "qwen2-vl": qwen2_vl,
    "qwen2.5-vl": qwen2_5_vl,
    "qwen3-vl": qwen3_vl,
    "internvl": internvl,
    "kosmos-2": kosmos2,
    "llava": llava,
    "blip": blip,
    "git": git,
    "llama": llama,
}


def save(name: str, folder: Path, **options) -> Path:
    """Writes a tiny model and its processor; the same weights every time."""
    torch.manual_seed(0)
    model, processor = MODELS[name](**options)
    with torch.no_grad():  # larger than at a start of training, so that regions differ in what is said of them
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
