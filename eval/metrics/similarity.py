"""How near a predicted name is to the true one: cosine of sentence embeddings, and overlap of their words.

The open-vocabulary recognition protocol of LVIS and PACO regions: a model answers with words, and the answer need not
be one of the names.
"""

import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .. import statistics
from .base import WORDS, Metric, Scoring

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
Encoder = Callable[[Sequence[str]], np.ndarray]  # N texts -> (N, E) embeddings, of any length


def similarity_scores(
    predictions: Mapping[str, str], references: Mapping[str, str], encode: Encoder | None = None
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Semantic similarity and word IoU of one predicted name a region with the true one.

    Args:
        predictions: region id -> answer, read by `answered_name`. A region without one, or with an empty one, scores 0
            in both.
        references: region id -> true name; "_" and ":" in it are spaces ("dog_collar", "car:wheel").
        encode: texts -> embeddings; `SentenceEncoder()` if None.

    Returns:
        ({"semantic similarity": mean cosine, "word IoU": mean overlap}, {region id: the same two}).

    Raises:
        ValueError: no references, an empty name, a prediction for an unknown region or one that is not a text.
    """
    if not references:
        raise ValueError("no references: there is nothing to compare names with")
    unknown = [region_id for region_id in predictions if region_id not in references]
    if unknown:
        raise ValueError(f"{len(unknown)} predictions are for unknown regions, the first for {unknown[0]!r}")
    true = {region_id: plain_name(name) for region_id, name in references.items()}
    empty = [region_id for region_id, name in true.items() if not name]
    if empty:
        raise ValueError(f"region {empty[0]!r}: its true name {references[empty[0]]!r} has no word")
    named = {region_id: answered_name(text) for region_id, text in predictions.items()}
    named = {region_id: text for region_id, text in named.items() if text}
    cosines = dict(zip(named, _cosines(list(named.values()), [true[i] for i in named], encode), strict=True))
    items = {
        region_id: {
            "semantic similarity": float(cosines.get(region_id, 0.0)),
            "word IoU": word_iou(named.get(region_id, ""), name),
        }
        for region_id, name in true.items()
    }
    corpus = {
        name: sum(item[name] for item in items.values()) / len(items) for name in ("semantic similarity", "word IoU")
    }
    return corpus, items


def word_iou(a: str, b: str) -> float:
    """Words that both have / words that either has; 0 for two texts without words.

    >>> word_iou("A red Cup", "cup")
    0.3333333333333333
    """
    a, b = set(plain_name(a).split()), set(plain_name(b).split())
    return len(a & b) / len(a | b) if a | b else 0.0


def plain_name(text: str) -> str:
    """Lower case, "_" and ":" as spaces, one space between words.

    >>> plain_name("Car_(automobile):wheel")
    'car (automobile) wheel'
    """
    if not isinstance(text, str):
        raise ValueError(f"name {text!r} is {type(text).__name__}; expected a text")
    return " ".join(text.lower().replace("_", " ").replace(":", " ").split())


def answered_name(text: str) -> str:
    """The name in an answer, by the rules of Osprey's evaluation: what stands behind a first ":" (before a second); "."
    and "," are spaces.

    >>> answered_name("The category is: Dog collar.")
    'dog collar'
    """
    if not isinstance(text, str):
        raise ValueError(f"name {text!r} is {type(text).__name__}; expected a text")
    answer = text.split(":")[1] if ":" in text else text
    return plain_name(answer.replace(".", " ").replace(",", " "))


class SentenceEncoder:
    """Mean of a Transformers encoder's last hidden states over the tokens of a text, as sentence-transformers does.

    name: a model of the Hub or a folder; downloaded at the first call. OSError (of Transformers) where it cannot be
    loaded.
    """

    def __init__(self, name: str = ENCODER, device: str = "cpu", batch_size: int = 256):
        self.name, self.device, self.batch_size = str(name), device, batch_size
        self.model = None

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, E) float32 embeddings of N texts, each cut at the model's longest input."""
        import torch

        self._load()
        rows = []
        for start in range(0, len(texts), self.batch_size):
            batch = self.tokenizer(
                list(texts[start : start + self.batch_size]),
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(self.device)
            with torch.inference_mode():
                hidden = self.model(**batch).last_hidden_state  # (B, T, E)
            mask = batch["attention_mask"][..., None].to(hidden.dtype)
            rows.append(((hidden * mask).sum(1) / mask.sum(1)).float().cpu().numpy())  # (B, E)
        return np.concatenate(rows)

    def _load(self) -> None:
        if self.model is None:
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import cached_file

            from dynrefer.models.base_parts import check_source
            from dynrefer.models.folder_check import check_numbers, reading

            check_source(self.name)
            with reading(f"sentence encoder {self.name!r}", "neither a folder nor a hub id that can be read"):
                self.tokenizer = AutoTokenizer.from_pretrained(self.name, trust_remote_code=False)
                self.model = AutoModel.from_pretrained(self.name, trust_remote_code=False, weights_only=True)
            check_numbers(self.model.named_parameters(), f"sentence encoder {self.name!r}")
            self.model.to(self.device).eval()
            self.max_length = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
            try:  # sentence-transformers' own limit, 256 tokens of the protocol's model
                with open(cached_file(self.name, "sentence_bert_config.json"), encoding="utf-8") as file:
                    self.max_length = min(self.max_length, json.load(file)["max_seq_length"] or self.max_length)
            except OSError:
                pass


def _cosines(a: list[str], b: list[str], encode: Encoder | None) -> np.ndarray:
    if not a:
        return np.zeros(0)
    texts = list(dict.fromkeys(a + b))  # every text once: names repeat
    vectors = np.asarray((encode or SentenceEncoder())(texts), np.float64)
    if vectors.shape[:1] != (len(texts),) or not np.isfinite(vectors).all():
        raise ValueError(f"the encoder gave {vectors.shape} for {len(texts)} texts; expected finite (texts, width)")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    place = {text: n for n, text in enumerate(texts)}
    return (vectors[[place[t] for t in a]] * vectors[[place[t] for t in b]]).sum(1)


# --- in a benchmark ------------------------------------------------------------------------------------------------


def add_scores(s: Scoring) -> None:
    true = {region.id: region.category for region in s.regions if region.category}
    if not true:
        s.scores.left_out["similarity"] = "no region has a category"
        return
    # an answer in words, or the best name of a classifier
    said = {i: r.caption or plain_name(r.category["name"] if r.category else "") for i, r in s.results.items()}
    said = {i: text for i, text in said.items() if i in true}
    corpus, items = similarity_scores(said, true, s.encode)
    s.scores.corpus |= corpus
    s.scores.regions["similarity"] = len(true)
    for region_id, values in items.items():
        s.scores.items[region_id] |= values
    s.scores.resamplings.append(
        statistics.means({name: s.spread({i: item[name] for i, item in items.items()}) for name in corpus})
    )


SIMILARITY = Metric(
    WORDS,
    add_scores,
    {
        "semantic similarity": lambda task, judge: f"similarity 2; {ENCODER}",
        "word IoU": lambda task, judge: "similarity 2",
    },
    {"semantic similarity": (-1.0, 1.0)},
)
