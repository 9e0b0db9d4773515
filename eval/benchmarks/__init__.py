"""The benchmarks: a row each. A new one is a row here and, where none fits, a metric in `eval/metrics`."""

from dataclasses import replace
from typing import Any

from dynrefer.errors import suggestion

from ..metrics import check_task
from ..task import CATEGORY_QUESTION, DETAILED_QUESTION, Published, Task

# --- the table -------------------------------------------------------------------------------------------------------

SHORT = {"num_beams": 2, "max_new_tokens": 20, "repetition_penalty": 1.5, "length_penalty": 0.0}  # DynRefer's
DETAILED = {"num_beams": 1, "max_new_tokens": 512}
COCO_CAPTION = "PTB tokens; BLEU, ROUGE-L, METEOR 1.5, CIDEr-D with document frequencies of this set's references"
PER_REGION = (
    "ASM, ASMv2, VisionLLMv2: UMD's split, a region with all its expressions as references (so METEOR lies above "
    f"protocol A's at the same CIDEr); boxes on COCO train2014 images; {COCO_CAPTION}. "
    "ASM decodes with 5 beams, the others greedily."
)
OVERLAY = (
    "lmms-eval's refcocog_bbox and its rows (val: 7,573, as many as the regions of UMD's and Google's val): a red "
    "rectangle is drawn on the image, the prompt is 'Provide a short description for this region.'; all expressions of "
    f"a row as references; {COCO_CAPTION}."
)
DENSECAP = (
    "DenseCap's 5,000 test images, phrases lower-cased without punctuation, those of more than 15 words left out of "
    "the ground truth; boxes of IoU 0.7 are one object; 5 IoU x 6 METEOR thresholds, no tokenizer; the Python port's "
    "rules; images without a prediction count (under 'released' they do not)"
)
DENSE_BOXES = {
    "": "ground-truth boxes, ranked by the predictions' scores (a file without scores: 1 each)",
    "-detected": "boxes of a detector, which the predictions bring along with their scores",
}
DENSE_SETS = {"vg1.0": "Visual Genome 1.0", "vg1.2": "Visual Genome 1.2", "vgcoco": "Visual Genome 1.2, COCO's images"}
SIMILARITY = (
    "Osprey's sample of 1,000 images, masks; the prompt is 'What is the category of <region>? Using only one word or "
    "phrase.'; cosine of all-MiniLM-L6-v2 embeddings, and words in common (lower-cased) by all words; _ and : are "
    "blanks in the true names; of an answer what stands behind a colon counts, . and , are blanks."
)
DLC = (
    "DLC-Bench: 100 regions of 77 Objects365 images, masks, 'Describe the masked region in detail.'; a judge answers "
    "392 questions about what is there and 500 about what is not, {sees}; questions about a wrongly recognised region "
    "count 0 at most; mean of both kinds' means over regions. The judge is part of the protocol; its prompt is worded "
    "anew."
)
DLC_SEES = {
    "text": "from the description alone",
    "region": "from the description and the region: the image around it and its mask (GAR's variant)",
}
REF_L4 = "Ref-L4 val, boxes with a description of about 24 words each"


def _caption(model: str, meteor: float, cider: float, source: str) -> Published:
    return Published(model, {"METEOR": meteor, "CIDEr": cider}, source)


TASKS = {
    task.name: check_task(task)
    for task in (
        Task(
            name="world",
            data="data/world/test.jsonl",
            split="test",
            tag_threshold=0.9,
            generation={"num_beams": 2, "max_new_tokens": 32},
            protocol="Embedded world, unseen scenes and attribute combinations; boxes; several references a region; "
            "PTB tokens; BLEU, ROUGE-L, METEOR 1.5, CIDEr-D with document frequencies of this set's references.",
        ),
        Task(
            name="flickr30k",
            data="data/flickr30k/dev.jsonl",
            tokenizer="lower",
            tag_threshold=0.9,
            closed_attributes=True,
            generation={"num_beams": 2, "max_new_tokens": 20},
            protocol="Flickr30k Entities, boxes whose phrases name them alone, all phrases as references; lower-cased, "
            "punctuation removed, no PTB; CIDEr-D with document frequencies of this set's references; categories: "
            "8 coarse types, regions of several types left out; attributes: on regions with a colour word, other "
            "colours count as absent.",
        ),
        Task(
            name="refcocog-a",
            data="data/refcocog/val_expressions.jsonl",
            split="val",
            num_regions=4896,
            references="1",
            metrics=("captions",),
            tag_threshold=0.76,
            generation=SHORT,
            protocol="RefCOCOg protocol A (GLaMM, Osprey, Alpha-CLIP, ControlCap, DynRefer): UMD val, an item an "
            "expression with that one as its reference, 4,896 items, a region with two expressions is captioned and "
            f"scored twice; boxes (Osprey: masks) on COCO train2014 images; {COCO_CAPTION}.",
            published=(
                _caption("DynRefer 4.2B", 0.181, 1.153, "DynRefer, docs/train_and_eval.md"),
                _caption("ControlCap 4.2B (released weights)", 0.178, 1.128, "ControlCap, its documents"),
                _caption("ControlCap 4.2B", 0.170, 1.114, "ControlCap, paper"),
                _caption("Alpha-CLIP + LLaVA 7B", 0.167, 1.092, "ControlCap, paper"),
                _caption("Osprey 7B (masks)", 0.166, 1.083, "Osprey, table 7"),
                _caption("GLaMM 7B, fine-tuned", 0.162, 1.060, "GLaMM, paper"),
                _caption("GLaMM 7B, zero-shot", 0.157, 1.040, "GLaMM, paper"),
            ),
        ),
        *(
            Task(
                name=f"refcocog-{letter}-{split}",
                data=f"data/refcocog_{files}/{split}.jsonl",
                split=split,
                num_regions=count,
                metrics=("captions",),
                line_width=1 if letter == "d" else None,
                protocol=f"RefCOCOg protocol {letter.upper()}, {split}: {text}",
            )
            for letter, files, text, counts in (
                ("b", "asm", PER_REGION, {"val": 2573, "test": 5023}),
                ("d", "lmms", OVERLAY, {"val": 7573, "test": 5023}),
            )
            for split, count in counts.items()
        ),
        Task(
            name="vg-v1",
            data="data/vg_glamm/test.jsonl",
            split="test",
            references="1",
            clean="words",
            metrics=("captions",),
            tag_threshold=0.8,
            generation=SHORT,
            protocol="Visual Genome regions V1 (GLaMM's test_caption.json: GRiT's test images with one region each, "
            "about 5,000, 1 reference); boxes; texts lower-cased without punctuation; no cut at 100 words; "
            f"{COCO_CAPTION}.",
            published=(
                _caption("DynRefer 4.2B", 0.212, 1.905, "DynRefer, docs/train_and_eval.md"),
                _caption("ControlCap 4.2B (released weights)", 0.205, 1.833, "ControlCap, its documents"),
                _caption("ControlCap 4.2B", 0.204, 1.819, "ControlCap, paper"),
                _caption("GLaMM 7B, fine-tuned", 0.197, 1.805, "GLaMM, paper"),
                _caption("Alpha-CLIP + LLaVA 7B", 0.189, 1.603, "ControlCap, paper"),
                _caption("GLaMM 7B, zero-shot", 0.170, 1.270, "GLaMM, paper"),
            ),
        ),
        Task(
            name="vg-v2",
            data="data/vg_grit/test.jsonl",
            split="test",
            num_regions=232_935,
            references="1",
            clean="words",
            metrics=("captions",),
            tag_threshold=0.8,
            generation=SHORT,
            protocol="Visual Genome regions V2 (GRiT's test.json: all 232,935 regions of 5,000 images, 1 reference); "
            f"boxes; texts lower-cased without punctuation; {COCO_CAPTION}.",
            published=(
                _caption("ASM, fine-tuned", 0.183, 1.487, "ASMv2, README"),
                _caption("ASMv2 13B", 0.179, 1.535, "ASMv2, README"),
                _caption("TAP-H 1.1", 0.178, 1.542, "TAP, notebook"),
            ),
        ),
        *(
            Task(
                name=f"densecap-{name}{kind}",
                data=f"data/{name}/test.jsonl",
                split="test",
                metrics=("densecap",),
                boxes="detected" if kind else "given",
                references="1",
                generation=SHORT,
                protocol=f"Dense captioning, {full}: {DENSECAP}; {boxes}.",
                published=(
                    Published("DynRefer 4.2B", {"dense mAP (released)": 0.476}, "DynRefer, docs/train_and_eval.md"),
                    Published("ControlCap 4.2B", {"dense mAP (released)": 0.447}, "ControlCap, README"),
                )
                if (name, kind) == ("vg1.2", "")
                else (),
            )
            for name, full in DENSE_SETS.items()
            for kind, boxes in DENSE_BOXES.items()
        ),
        Task(
            name="ovad",
            data="data/ovad/test.jsonl",
            split="test",
            references="",
            metrics=("attributes",),
            protocol="OVAD, box oracle: 2,000 images of COCO val2017, 117 attributes; mean of the average precisions "
            "of attributes that some object has, each over the objects that know it.",
            published=tuple(
                Published(model, {"attribute mAP": value}, source)
                for model, value, source in (
                    ("DynRefer 4.2B", 0.292, "DynRefer, docs/train_and_eval.md"),
                    ("X-VLM", 0.280, "OVAD, README"),
                    ("BLIP-2", 0.255, "OVAD, README"),
                    ("BLIP", 0.243, "OVAD, README"),
                    ("CLIP", 0.166, "OVAD, README"),
                )
            ),
        ),
        *(
            Task(
                name=name,
                data="data/coco/val.jsonl",
                split="val",
                num_regions=36_335,
                references="",
                question=CATEGORY_QUESTION,
                metrics=("categories", "recognition"),
                score_source=source,
                protocol="COCO val2017, ground-truth boxes, 80 categories: accuracy of the best name over all objects "
                f"without crowds, and COCO box mAP of the same names, ranked by {ranked}. mAPs with different sources "
                "of scores do not compare. An answer in words is its category's name, where case, punctuation, "
                "underscores and a leading a, an or the do not count; what names none of the 80 is wrong.",
                published=published,
            )
            for name, source, ranked, published in (
                (
                    "coco-recognition",
                    "model",
                    "the score in the predictions (DynRefer: the raw logit)",
                    (Published("DynRefer 4.2B", {"category accuracy": 0.918}, "DynRefer, docs/train_and_eval.md"),),
                ),
                ("coco-recognition-text", "one", "nothing: every score is 1, as of models that answer in words", ()),
            )
        ),
        Task(
            name="lvis-boxes",
            data="data/lvis/val.jsonl",
            split="val",
            num_regions=244_707,
            annotations="data/lvis/lvis_v1_val.json",
            references="",
            metrics=("lvis",),
            protocol="LVIS 1.0 val, ground-truth boxes named by the model and ranked by its scores: AP, APr, APc, APf "
            "of boxes, federated, 300 detections an image.",
            published=(Published("TAP-H", {"LVIS AP": 0.596, "LVIS APr": 0.616}, "TAP, notebook"),),
        ),
        Task(
            name="lvis-proposals",
            data="data/lvis/val.jsonl",
            split="val",
            num_regions=244_707,
            annotations="data/lvis/lvis_v1_val.json",
            boxes="detected",
            references="",
            metrics=("lvis",),
            protocol="LVIS 1.0 val, boxes that the predictions bring along (proposals of a detector): AP, APr, APc, "
            "APf of boxes, federated, 300 detections an image. The proposals are part of the protocol.",
        ),
        *(
            Task(
                name=f"{name}-similarity",
                data=f"data/osprey_{name}/val.jsonl",
                split="val",
                num_regions=count,
                prompt="mask",
                references="",
                question=CATEGORY_QUESTION,
                metrics=("similarity",),
                generation=SHORT,
                protocol=f"{name.upper()} regions: {SIMILARITY}",
                published=tuple(
                    Published(model, {"semantic similarity": similarity, "word IoU": overlap}, source)
                    for model, similarity, overlap, source in published
                ),
            )
            for name, count, published in (
                (
                    "lvis",
                    4004,
                    (
                        ("DAM-8B", 0.890, 0.777, "DAM, project page"),
                        ("PAM-3B", 0.886, 0.783, "PAM, table 1"),
                        ("Osprey-7B", 0.652, 0.382, "Osprey, table 3"),
                    ),
                ),
                (
                    "paco",
                    4263,
                    (
                        ("PAM-3B", 0.874, 0.749, "PAM, table 1"),
                        ("DAM-8B", 0.842, 0.732, "DAM, project page"),
                        ("Osprey-7B", 0.731, 0.527, "Osprey, table 3"),
                    ),
                ),
            )
        ),
        *(
            Task(
                name=name,
                data="data/dlc_bench/test.jsonl",
                split="test",
                num_regions=100,
                annotations="data/dlc_bench/questions.json",
                prompt="mask",
                references="",
                question="Describe the masked region in detail.",
                metrics=("choices",),
                generation=DETAILED,
                judge_sees=sees,
                protocol=DLC.format(sees=DLC_SEES[sees]),
                published=tuple(
                    Published(f"{model}; judge {judge}", {"choice score": value}, source)
                    for model, value, source in published
                ),
            )
            for name, sees, judge, published in (
                (
                    "dlc-bench",
                    "text",
                    "Llama-3.1-8B",
                    (
                        ("GAR-1B", 0.679, "GAR, EVALUATION.md"),
                        ("GAR-8B", 0.674, "GAR, EVALUATION.md"),
                        ("DAM-3B", 0.673, "DAM, paper"),
                        ("DAM-3B (released weights)", 0.670, "DAM, project page"),
                    ),
                ),
                (
                    "dlc-bench-shown",
                    "region",
                    "GPT-4o (2024-11-20)",
                    (("GAR-1B", 0.771, "GAR, EVALUATION.md"), ("GAR-8B", 0.770, "GAR, EVALUATION.md")),
                ),
            )
        ),
        Task(
            name="ref-l4",
            data="data/ref_l4/val.jsonl",
            split="val",
            num_regions=13_420,
            references="1",
            metrics=("captions",),
            generation=DETAILED,
            question=DETAILED_QUESTION,
            protocol=f"{REF_L4}, of COCO and Objects365 images; the whole description is the reference, nothing is "
            f"shortened; {COCO_CAPTION}. Not what DAM and PAM report, who shorten both texts first: that is "
            "ref-l4-short.",
        ),
        Task(
            name="ref-l4-short",
            data="data/ref_l4/val_short.jsonl",
            split="val",
            references="1",
            metrics=("captions",),
            generation=DETAILED,
            question=DETAILED_QUESTION,
            protocol=f"{REF_L4}, those of Objects365 images (as PixelRefer's released files have it); references, and "
            "predictions before they come here, are shortened to a phrase by a language model, which is part of the "
            f"protocol (DAM: GPT-4o; PixelRefer leaves predictions of five words or fewer); {COCO_CAPTION}.",
            published=tuple(
                Published(model, {"ROUGE-L": rouge, "METEOR": meteor, "CIDEr": cider}, source)
                for model, rouge, meteor, cider, source in (
                    ("DAM-8B", 0.371, 0.194, 0.700, "DAM, project page"),
                    ("PAM-3B", 0.313, 0.172, 0.597, "PAM, table 1"),
                    ("DAM-3B", 0.308, 0.172, 0.564, "DAM, project page"),
                )
            ),
        ),
    )
}


def get_task(name: str, **changes: Any) -> Task:
    """The task of this name, with some fields replaced; ValueError with the nearest name for an unknown one."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}.{suggestion(name, TASKS)} Known: {', '.join(TASKS)}.")
    return check_task(replace(TASKS[name], **{key: value for key, value in changes.items() if value is not None}))
