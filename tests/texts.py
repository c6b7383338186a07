"""Text encoders of random weights, and real tokenizers of few tokens, in the folder of a pipeline that takes prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
import transformers
from prompted import PIPELINES
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options, Wanted

TOKENS, CLIP_TOKENS, IMAGES = 14, 77, 16  # of T5, of CLIP, at once
CORPUS = [
    "a photo of a cat sitting on the table", "two dogs and a small red house", "an oil painting of mountains at night",
    "the quick brown fox jumps over the lazy dog", "blurry, low quality", "a city in the rain, cinematic light",
]  # fmt: skip
# empty, emoji, long, from right to left, and what tokenizers have been wrong about
ODD = [
    "", " ", "a cat", "A  Photo\tof\na CAT!!", "🐱👩‍👩‍👧 emoji", " ".join(f"cat{n}" for n in range(500)), "שלום עולם",
    "مرحبا بالعالم", "naïve café ﬁne ①", "don't it's we'll", "日本語の文", "<|endoftext|> </s> <pad> [SEP] [unk]", "x" * 300,
    "a\u0000b",    "１２ 3.14",
]  # fmt: skip


def clip_tokenizer(folder: Path, padding: str = "<|endoftext|>") -> int:
    """A byte-level BPE as CLIP has it, from vocab.json and merges.txt; returned is how many tokens there are.

    The end token is not the largest id, though that is what older configurations take for it.
    """
    start, end, suffix = "<|startoftext|>", "<|endoftext|>", "</w>"
    tokenizer = Tokenizer(models.BPE(unk_token=end, continuing_subword_prefix="", end_of_word_suffix=suffix))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=640, initial_alphabet=letters, end_of_word_suffix=suffix, special_tokens=["!"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    names = [*model["vocab"], start, end, *(f"{letter}{suffix}" for letter in letters)]
    vocabulary = {name: n for n, name in enumerate(dict.fromkeys(names))}
    folder.mkdir(parents=True, exist_ok=True)
    assert vocabulary[end] < vocabulary[f"3{suffix}"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n")
    options = {"model_max_length": 77, "pad_token": padding, "unk_token": end, "bos_token": start, "eos_token": end,
               "tokenizer_class": "CLIPTokenizer"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return len(vocabulary)


def t5_tokenizer(folder: Path) -> int:
    """A Unigram model as T5 has it, in tokenizer.json."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    pieces = json.loads(tokenizer.to_str())["model"]["vocab"]
    loaded = transformers.T5Tokenizer(vocab=[(piece, score) for piece, score in pieces], extra_ids=0, model_max_length=512)
    loaded.save_pretrained(folder)
    return len(loaded)


def bert_tokenizer(folder: Path, longest: int = TOKENS) -> int:
    """A WordPiece model as BERT has it, which writes small, from vocab.txt."""
    words = sorted({word for text in CORPUS for word in text.replace(",", " ,").split()})
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz0123456789.,!'-<|>/_", *"שלוםעמרحبالاعي日本語文"})
    pieces = ["[PAD]", *(f"[unused{n}]" for n in range(3)), "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    pieces += [*words, *(f"##{letter}" for letter in letters), "##ing", "##s"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in dict.fromkeys(pieces)))
    options = {"do_lower_case": True, "model_max_length": longest, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return len(dict.fromkeys(pieces))


def bert(folder: Path, width: int, seed: int = 4, **others: Any) -> None:
    size = bert_tokenizer(folder / "tokenizer")
    config = transformers.BertConfig(**{
        "vocab_size": size + 5, "hidden_size": width, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 2 * width, "max_position_embeddings": 40, **others,
    })  # fmt: skip
    _saved(transformers.BertModel, config, folder, "text_encoder", "BertTokenizer", seed)


def clip(folder: Path, name: str, seed: int, projected: bool, width: int = 12, act: str = "quick_gelu", end: int | None = None,
         padding: str = "<|endoftext|>", layers: int = 3, projection: int = 8) -> None:  # fmt: skip
    place = folder / name.replace("text_encoder", "tokenizer")
    size = clip_tokenizer(place, padding)
    last = json.loads((place / "vocab.json").read_text())["<|endoftext|>"]
    config = transformers.CLIPTextConfig(
        vocab_size=size, hidden_size=width, intermediate_size=2 * width, projection_dim=projection, num_hidden_layers=layers,
        num_attention_heads=2, hidden_act=act, eos_token_id=last if end is None else end, bos_token_id=last - 1,
        pad_token_id=last,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    _saved(kind, config, folder, name, "CLIPTokenizer", seed)


def t5(folder: Path, name: str, width: int, seed: int = 3, proj: str = "gated-gelu") -> None:
    size = t5_tokenizer(folder / name.replace("text_encoder", "tokenizer"))
    config = transformers.T5Config(
        vocab_size=size + 5, d_model=width, d_kv=6, d_ff=2 * width, num_layers=3, num_heads=4, feed_forward_proj=proj,
        relative_attention_num_buckets=16, relative_attention_max_distance=40,
    )  # fmt: skip
    _saved(transformers.T5EncoderModel, config, folder, name, "T5Tokenizer", seed)


def _saved(kind: Any, config: Any, folder: Path, name: str, tokenizer: str, seed: int) -> None:
    """With weights that all matter, and the index of the pipeline."""
    torch.manual_seed(seed)
    model = kind(config).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * (0.2 if parameter.ndim > 1 else 0.1) + (parameter.ndim == 1)
    model.save_pretrained(folder / name)
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    index |= {name: ["transformers", kind.__name__], name.replace("text_encoder", "tokenizer"): ["transformers", tokenizer]}
    path.write_text(json.dumps(index))


def pixart(folder: Path) -> None:
    t5(folder, "text_encoder", 24)


def sd3(folder: Path) -> None:
    """Two CLIPs of 6 and 8 channels, together less than T5's 16, and 12 and 8 of the pooled 20."""
    clip(folder, "text_encoder", 1, True, width=6, projection=12)
    clip(folder, "text_encoder_2", 2, True, width=8, act="gelu", padding="!", end=2)
    t5(folder, "text_encoder_3", 16)


def flux(folder: Path) -> None:
    clip(folder, "text_encoder", 1, False, width=20)
    t5(folder, "text_encoder_2", 16)


def minilm(folder: Path) -> None:
    """PixArt with a BERT in T5's place, and a tiny decoder."""
    bert(folder, 24)
    torch.manual_seed(5)
    parts = [(8, 8, 8, 8), (1, 1, 1, 1)]
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=parts[0], decoder_block_out_channels=parts[0], num_encoder_blocks=parts[1],
        num_decoder_blocks=parts[1], scaling_factor=1.25,
    )  # fmt: skip
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vae": ["diffusers", "AutoencoderTiny"]}))


MINILM = "pixart-minilm"
TEXTS = {MINILM: minilm, "pixart": pixart, "pixart-alpha": pixart, "sd3": sd3, "sd35": sd3, "flux": flux, "schnell": flux}


Further = tuple[tuple[str, int], ...]


class Exported(NamedTuple):
    """A pipeline folder, its artefact, and the tokens of a prompt."""

    folder: Path
    out: Path
    tokens: int


def folder_of(family: str, folder: Path) -> Path:
    """A pipeline with text encoders."""
    PIPELINES["pixart" if family == MINILM else family].folder(folder)
    TEXTS[family](folder)
    return folder


def exported(family: str, folder: Path, out: Path, further: Further = (), **options: object) -> Exported:
    """The artefact of a pipeline that is made where there is none yet; `further` programs are (schedule, steps)."""
    if not folder.exists():
        folder_of(family, folder)
    tokens = TOKENS + (CLIP_TOKENS if family.startswith("sd3") else 0)
    chosen = {"schedule": "every:2", "steps": 2, "model": str(folder), "size": (64, 64), "batch": IMAGES, "tokens": tokens}
    others = tuple(Wanted(*arguments) for arguments in further)
    compile_artefact(Options(**{**chosen, "out": out, "with_text": True, "further": others, **options}))
    return Exported(folder, out, tokens)


def live(folder: Path) -> Any:
    """The pipeline of a folder as diffusers runs it."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.register_to_config(shift_factor=0.1)  # the usual None is of pipelines that do not shift
    return pipe


def asked(family: str, **others: Any) -> dict[str, Any]:
    """Arguments of such a pipeline's own call, for two images."""
    of_pixart = {"use_resolution_binning": False, "clean_caption": False, "negative_prompt": "blurry"}
    of_sd3 = {"negative_prompt": ["blurry", "low quality"]}
    own = of_pixart if family.startswith("pixart") else of_sd3 if family.startswith("sd3") else {}
    said = {"prompt": ["a cat", "two dogs in the rain"], "height": 64, "width": 64, "max_sequence_length": TOKENS}
    return {**said, **own, "guidance_scale": 4.0, "num_inference_steps": 3, "generator": torch.manual_seed(3), **others}
